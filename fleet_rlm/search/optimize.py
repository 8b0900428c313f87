"""Compilation from Python: candidates, joint study and sealed test for a program on a suite."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import dspy

from fleet_rlm.config import resolve
from fleet_rlm.errors import FleetError, FleetWarning
from fleet_rlm.program.recursion import ProgramSettings, RecursionSettings
from fleet_rlm.program.registry import Entry
from fleet_rlm.project import project_dir
from fleet_rlm.runner.progress import make_progress
from fleet_rlm.search.job import JobResult, prepare, run_job
from fleet_rlm.search.recipe import make_recipe
from fleet_rlm.suites.suite import Suite
from fleet_rlm.tracking import mirrored


def optimize(
    program: str | dspy.Module,
    suite: str | Path | Suite,
    *,
    test: int,
    model: str | None = None,
    sub_model: str | None = None,
    concurrency: int | None = None,
    sandbox: str | None = None,
    out: Path | str | None = None,
    mlflow: bool = False,
    display: str = "none",
    **recipe: Any,
) -> JobResult:
    """Compile a program: prompts, worked examples and settings together, judged on a sealed test.

    The same call again resumes: nothing finished is paid for twice.

    Args:
        program: a name that `--program` takes, or a `dspy.Module` that takes `context` and `query`
            and gives `answer`; it is copied, never changed. Settings of an `RLM` inside it can be
            searched.
        suite: name, path, or a loaded suite.
        test: samples of the sealed test.
        model: root model, "sim" or provider/name. What is not given comes from the environment,
            then fleet.toml, then the default, as on the command line; keys come from the
            environment only.
        sub_model: model of sub-queries; the root model when absent.
        concurrency: samples in flight.
        sandbox: "auto" or the name of a level.
        out: the job's folder; in ./runs/jobs, named by program and model, when absent.
        mlflow: mirror the job to MLflow too, where the command line does; a store that cannot be
            used is a warning, and `fleet-eval sync` mirrors the folder later.
        display: progress on stderr: "auto", "live", "plain" or "none".
        recipe: any other key of a recipe file: `train=24, space={"max_iters": [8]}, max_usd=5.0`.

    Returns:
        The winner's bundle, both summaries of the test, their comparison, the front, the spending.

    Raises:
        UsageError: unknown names or keys, too few samples, a failing metric, one point to search.
        SandboxUnavailable: the program runs code and no isolation holds here.
        BudgetExhausted: a cap is met; the same call with a higher cap goes on.
        Paused: models or sandboxes keep failing; the same call goes on.
        FleetError: it was interrupted; the same call goes on.
    """
    project = project_dir(Path.cwd())
    named = program if isinstance(program, str) else type(program).__name__
    keys = {"name": named.replace("/", "-"), **recipe, "program": named, "test": test}
    keys["suite"] = suite.name if isinstance(suite, Suite) else str(suite)
    made = make_recipe(keys, "optimize()")
    flags = {"model": model, "sub_model": sub_model, "concurrency": concurrency, "sandbox": sandbox}
    resolved = resolve(made.flags(flags) | {"mlflow": mlflow}, os.environ, project)
    job = prepare(
        made,
        resolved,
        project,
        Path(out) if out is not None else None,
        program=None if isinstance(program, str) else _entry_of(program),
        suite=suite if isinstance(suite, Suite) else None,
    )
    sides = ("baseline", "winner")
    progress = {side: make_progress(display, f"{made.name} {side}") for side in sides}
    with mirrored(job.folder, resolved.config, project) as write_mirror:
        found = run_job(job, progress)
        if found is None:
            raise FleetError("The job was interrupted.", fix="the same call again")
        if problem := write_mirror():
            warnings.warn(problem, FleetWarning, stacklevel=2)
    return found


def _entry_of(program: dspy.Module) -> Entry:
    own = [part for _, part in program.named_parameters() if isinstance(part, RecursionSettings)]
    kind = _defaults_of(own[0]) if own else ProgramSettings
    return Entry(
        summary=f"program of yours ({type(program).__name__})",
        runs_code=True,  # nothing tells before it runs
        make=partial(_copy, program),
        settings_type=kind,
    )


def _defaults_of(settings: RecursionSettings) -> type[ProgramSettings]:
    """Settings whose defaults are what the program has."""
    spec = {name: replace(limits, default=settings[name]) for name, limits in settings.SPEC.items()}
    return type("OwnSettings", (ProgramSettings,), {"SPEC": spec})


def _copy(program: dspy.Module, guidance: str, settings: ProgramSettings) -> dspy.Module:
    made: dspy.Module = program.deepcopy()
    for _, part in made.named_parameters():
        if isinstance(part, RecursionSettings):
            part.update(settings.to_json())
    return made
