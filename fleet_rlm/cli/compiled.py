"""The arms of an experiment that are compiled first: their jobs, and what these make of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleet_rlm.cli.given import open_suite, sort_overrides
from fleet_rlm.config import parse_overrides, resolve
from fleet_rlm.errors import UsageError
from fleet_rlm.project import find_content, project_dir, relative
from fleet_rlm.runner.experiment import COMPILE_SEED, Cell
from fleet_rlm.search.recipe import SOURCES, SUB_MODEL, Recipe, load_recipe, make_recipe
from fleet_rlm.search.stored import StoredJob, open_job

if TYPE_CHECKING:
    from fleet_rlm.search.job import Compilation


def make_job(
    cell: Cell, flags: Mapping[str, Any], folder: Path, max_usd: float | None
) -> Compilation:
    """What compiles an arm for one seed.

    Args:
        cell: of the experiment, whose arm has a recipe.
        flags: settings of `Config` by name; None where there is none.
        folder: of the job.
        max_usd: cap on all of its sessions; the recipe's own holds as well.

    Raises:
        UsageError: as `search.job.prepare`.
    """
    from fleet_rlm.search.job import prepare

    project = project_dir(Path.cwd())
    recipe = seeded(cell, max_usd)
    return prepare(recipe, resolve(recipe.flags(flags), os.environ, project), project, folder)


def seeded(cell: Cell, max_usd: float | None = None) -> Recipe:
    """The recipe of an arm with the seed of its cell.

    Raises:
        UsageError: no such recipe, or a malformed one.
    """
    path = find_content("optimize", cell.arm.recipe, project_dir(Path.cwd())).path
    recipe = load_recipe(path)
    assert cell.seed is not None  # a file without seeds is refused
    caps = [cap for cap in (recipe.max_usd, max_usd) if cap is not None]
    changed = {"seed": COMPILE_SEED + cell.seed, "max_usd": min(caps, default=None)}
    return make_recipe(recipe.model_dump() | changed, str(path))


def compile_arm(job: Compilation, flags: Mapping[str, Any], display: str) -> StoredJob | None:
    """The finished job, which is run first if it is not finished; None when it is interrupted.

    Raises:
        BudgetExhausted: its cap is met.
        UsageError: its folder holds another job, or its program cannot be kept as a bundle.
    """
    stored = stored_job(job.folder)
    if stored is None or stored.result is None or stored.lock != job.identity():
        from fleet_rlm.cli.compile import compile_job

        project = project_dir(Path.cwd())
        config = resolve(job.recipe.flags(flags), os.environ, project).config
        if compile_job(job, config, project, display) is None:
            return None
        stored = open_job(str(job.folder), job.folder.parent)
    if not (job.folder / "bundle").exists():
        raise UsageError(
            f"{job.folder} has no bundle: program {job.recipe.program!r} is not this package's."
        )
    return stored


def stored_job(folder: Path) -> StoredJob | None:
    """A job as its files tell it; None before there is one.

    Raises:
        UsageError: a file of it cannot be read.
    """
    return open_job(str(folder), folder.parent) if (folder / "job.json").exists() else None


def spent_usd(folder: Path) -> float:
    """Dollars that a job has spent so far."""
    stored = stored_job(folder)
    return 0.0 if stored is None else float(stored.status()["usd"])


def compiled(cell: Cell, job: StoredJob) -> Cell:
    """The cell with the bundle that its job has made."""
    arm = cell.arm.model_copy(update={"program": str(relative(job.folder / "bundle"))})
    return Cell(suite=cell.suite, seed=cell.seed, arm=arm)


def chosen_models(job: StoredJob) -> dict[str, str]:
    """The sub-model that a job has chosen, as settings of `Config`, where its space has any."""
    assert job.result is not None
    sub = job.result["winner"]["params"].get(SUB_MODEL)
    return {"sub_model": sub} if sub else {}


def told(job: StoredJob) -> dict[str, Any]:
    """What was compiled, and what it took: a row of the results and a part of the lock."""
    assert job.result is not None
    recipe, before, after = job.lock["recipe"], job.trial(0)["params"], job.result["winner"]
    kept = ("optimizer", "seed", "validation", "suite", "overrides", "space", "policy")
    return {
        "recipe": recipe["name"],
        **{key: recipe[key] for key in kept},
        "train": recipe["train"] if SOURCES[recipe["optimizer"]] else 0,
        "suite_digest": job.lock["suite"],
        "trials": len(job.trials),
        "chosen": {
            name: value for name, value in after["params"].items() if value != before.get(name)
        },
        "demos": job.result["demos"],
        **{key: job.result["usage"][key] for key in ("calls", "usd")},
    }


def check_apart(cell: Cell, job: Compilation) -> None:
    """Refuse to hold an arm against contexts that it learns from, before it has cost anything.

    Args:
        cell: of the experiment.
        job: that compiles its arm.

    Raises:
        UsageError: there are such contexts.
    """
    overrides = sort_overrides(parse_overrides(cell.overrides))["suite"]
    suite = open_suite(project_dir(Path.cwd()), cell.suite.suite, None, overrides)
    learned = {sample.cluster for part in job.split[:2] for sample in part}
    # Contexts that differ in their part of a bank alone ask the same of other lines.
    alike = (suite, suite.part("train"), suite.part("validation"))
    if shared := learned & {sample.cluster for one in alike for sample in one.plan()}:
        raise UsageError(
            f"Arm {cell.arm.name!r} would be held against {len(shared)} contexts that it learns"
            f" from: another seed draws the same from {cell.suite.title!r}.",
            fix="a suite whose texts are made by seed, or a recipe on another suite",
        )
