"""The experiment file: a question, the arms that answer it, the suites and seeds they run on."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fleet_rlm.config import read_toml
from fleet_rlm.errors import UsageError, nearest

COMPILE_SEED = 1_000
"""Added to a seed of the experiment to give that of a compilation: it learns from other samples
than those it is held against."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SuiteTable(_Table):
    """One suite that every arm runs."""

    suite: str
    """Name or path."""

    name: str = ""
    """Of this entry; the suite's own when empty. Two entries of one suite need names."""

    overrides: dict[str, Any] = Field(default_factory=dict)
    """Suite keys, as `--set` takes them."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """At most so many samples, spread over tasks and lengths."""

    @property
    def title(self) -> str:
        """What reports call it."""
        return self.name or Path(self.suite).stem


class ArmTable(_Table):
    """One arm."""

    name: str
    program: str = "rlm"
    """As `--program` takes it; a bundle or a file beside the experiment by its name there."""

    recipe: str = ""
    """Compiled once for each seed, and run in place of a program: a recipe beside the experiment or
    of the project."""

    model: str | None = None
    """The project's when absent."""

    sub_model: str | None = None
    judge: str | None = None
    settings: dict[str, int] = Field(default_factory=dict)
    guidance: str = ""


class ReferenceTable(_Table):
    """Published scores that stand beside an arm's."""

    arm: str
    source: str
    scores: dict[str, Annotated[float, Field(ge=0, le=1)]]
    """Task -> score, from 0 to 1."""

    usd: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Task -> dollars of a question, as published."""

    questions: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Task -> number of questions, as published."""

    @property
    def total_usd(self) -> float:
        """What the published dollars come to."""
        return sum(usd * self.questions.get(task, 0) for task, usd in self.usd.items())


class Experiment(_Table):
    """`experiments/NAME/experiment.toml`."""

    question: str
    about: str = ""
    """What a reader must know before quoting a number."""

    baseline: str
    """Name of the arm that the others are held against."""

    seeds: list[int] = Field(default_factory=list)
    """Suite seeds, each giving samples of its own, pooled; the suites' own when empty."""

    epochs: Annotated[int, Field(ge=1)] = 1
    max_usd: Annotated[float, Field(gt=0)]
    """Cap of all runs together."""

    suites: Annotated[list[SuiteTable], Field(min_length=1)]
    arms: Annotated[list[ArmTable], Field(min_length=2)]
    stand_ins: list[SuiteTable] = Field(default_factory=list)
    """What a dry run with the simulated model runs in place of suites that need data or a key."""

    references: list[ReferenceTable] = Field(default_factory=list)

    @property
    def ordered(self) -> list[ArmTable]:
        """The baseline, then the other arms."""
        return sorted(self.arms, key=lambda arm: arm.name != self.baseline)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run of an experiment."""

    suite: SuiteTable
    seed: int | None
    arm: ArmTable

    @property
    def folder(self) -> str:
        """Name of the run's folder."""
        seed = "" if self.seed is None else f"-seed{self.seed}"
        parts = (f"{self.suite.title}{seed}", self.arm.name)
        return "--".join(map(_named, parts))

    @property
    def job(self) -> str | None:
        """Name of the job's folder that compiles the arm; None where nothing is compiled."""
        return f"{_named(self.arm.name)}-seed{self.seed}" if self.arm.recipe else None

    @property
    def overrides(self) -> list[str]:
        """What `fleet-eval run` takes as `--set`."""
        found = dict(self.suite.overrides)
        if self.seed is not None:
            found["seed"] = self.seed
        found |= {f"settings.{name}": value for name, value in self.arm.settings.items()}
        if self.arm.guidance:
            found["program.guidance"] = self.arm.guidance
        return [f"{key}={json.dumps(value)}" for key, value in found.items()]


def _named(text: str) -> str:
    return re.sub(r"[^\w.@-]+", "-", text).strip("-")


def dry(experiment: Experiment) -> Experiment:
    """The experiment on its stand-ins, where it has some; nothing published is held beside them."""
    if not experiment.stand_ins:
        return experiment
    named = ", ".join(suite.title for suite in experiment.suites)
    note = f"Dry run on stand-ins: nothing on this page speaks of {named}, which was not run."
    return experiment.model_copy(
        update={
            "suites": experiment.stand_ins,
            "references": [],
            "about": f"{experiment.about.strip()}\n\n**{note}**".strip(),
        }
    )


def cells(experiment: Experiment) -> Iterator[Cell]:
    """All runs; every arm on the samples of one suite and seed before the next samples."""
    for suite in experiment.suites:
        for seed in experiment.seeds or (None,):
            for arm in experiment.ordered:
                yield Cell(suite=suite, seed=seed, arm=arm)


def load_experiment(path: Path) -> Experiment:
    """Read an experiment.

    Raises:
        UsageError: unreadable, malformed, a misspelt or missing key, a name that is given twice or
            that no arm has.
    """
    try:
        raw = read_toml(path)
    except FileNotFoundError:
        raise UsageError(f"No experiment at {path}.", fix="fleet-eval experiment list") from None
    try:
        found = Experiment(**raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        known = [key for table in (Experiment, SuiteTable, ArmTable, ReferenceTable)
                 for key in table.model_fields]  # fmt: skip
        extra = first["type"] == "extra_forbidden"
        hint = f" {nearest(str(first['loc'][-1]), known)}" if extra else ""
        raise UsageError(f"{path}: {place}: {first['msg']}.{hint}") from None
    _check_names(found, path)
    _check_recipes(found, path)
    return found.model_copy(update={"arms": [_beside(arm, path.parent) for arm in found.arms]})


def _beside(arm: ArmTable, folder: Path) -> ArmTable:
    """The arm with bundle, program or recipe taken from the experiment's own folder, if there."""
    found = {}
    for key, given in (("program", arm.program), ("recipe", arm.recipe)):
        if given and (folder / given.partition(":")[0]).exists():
            where = os.path.relpath(folder / given)
            # With a separator: a bare name is one of the registry or of the project.
            found[key] = where if os.sep in where else f"./{where}"
    return arm.model_copy(update=found)


def _check_recipes(found: Experiment, path: Path) -> None:
    for arm in found.arms:
        if not arm.recipe:
            continue
        given = {"program", "settings", "guidance"} & arm.model_fields_set
        if given:
            raise UsageError(
                f"{path}: arm {arm.name!r} has a recipe, which decides {given.pop()!r} too."
            )
        if not found.seeds:
            raise UsageError(
                f"{path}: arm {arm.name!r} is compiled, which needs seeds: it must learn from other"
                " samples than it is held against.",
                fix="seeds = [0, 1]",
            )


def _check_names(found: Experiment, path: Path) -> None:
    arms = [arm.name for arm in found.arms]
    for what, names in (
        ("arm", arms),
        ("suite", [suite.title for suite in found.suites]),
        ("suite", [suite.title for suite in found.stand_ins]),
    ):
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"{path}: two {what}s are named {twice!r}.")
    for key, named in (
        ("baseline", [found.baseline]),
        ("references", [r.arm for r in found.references]),
    ):
        for name in named:
            if name not in arms:
                raise UsageError(f"{path}: {key}: no arm {name!r}. {nearest(name, arms)}")
    folders = [cell.folder for cell in cells(found)]
    if len(set(folders)) < len(folders):
        raise UsageError(f"{path}: names of arms or suites differ in punctuation only.")
