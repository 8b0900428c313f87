"""Evaluation from Python: score a program on a suite."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dspy

from fleet_rlm.config import resolve
from fleet_rlm.errors import FleetWarning, UsageError
from fleet_rlm.ledger import Caps, Limits
from fleet_rlm.lm.connect import specify_judge, specify_pair
from fleet_rlm.program.find import find_program, parse_settings
from fleet_rlm.program.recursion import ProgramSettings
from fleet_rlm.program.registry import Entry
from fleet_rlm.project import find_content, project_dir
from fleet_rlm.runner.arm import Arm, run_folder
from fleet_rlm.runner.progress import make_progress
from fleet_rlm.runner.run import Effort, Plan, run_arm
from fleet_rlm.runner.sandboxes import specify_sandbox
from fleet_rlm.runner.stored import Run, open_run
from fleet_rlm.scoring.judge import check_independent
from fleet_rlm.suites.suite import Suite, load_suite
from fleet_rlm.tracking import mirrored


def evaluate(
    program: str | dspy.Module,
    suite: str | Path | Suite,
    *,
    model: str | None = None,
    sub_model: str | None = None,
    judge: str | None = None,
    allow_same_judge: bool = False,
    settings: Mapping[str, int] | None = None,
    overrides: Mapping[str, Any] | None = None,
    limit: int | None = None,
    epochs: int = 1,
    concurrency: int | None = None,
    workers: int | None = None,
    sandbox: str | None = None,
    limits: Limits | None = None,
    caps: Caps | None = None,
    out: Path | str | None = None,
    mlflow: bool = False,
    display: str = "none",
) -> Run:
    """Score a program on a suite and store the run; the same call again resumes it.

    Args:
        program: a name that `--program` takes, or a `dspy.Module` that takes `context` and `query`
            and gives `answer`.
        suite: name, path, or a loaded suite.
        model: root model, "sim" or provider/name. What is not given comes from the environment,
            then fleet.toml, then the default, as on the command line; keys come from the
            environment only.
        sub_model: model of sub-queries; the root model when absent.
        judge: model that scores judged tasks; it must be none of the others.
        allow_same_judge: let it be one of them all the same.
        settings: recursion settings of a program given by name.
        overrides: suite keys, as `--set` takes them.
        limit: at most this many samples, spread over tasks and lengths.
        epochs: independent repetitions.
        concurrency: samples in flight.
        workers: processes; as many as pay for a program given by name, one for an object, when
            absent.
        sandbox: "auto" or the name of a level.
        limits: what one sample may use.
        caps: what the whole run may use, over all of its sessions.
        out: run folder; named by what runs, in ./runs, when absent.
        mlflow: mirror the run to MLflow too, where the command line does; a store that cannot be
            used is a warning, and `fleet-eval sync` mirrors the folder later.
        display: progress on stderr: "auto", "live", "plain" or "none".

    Returns:
        The stored run; a sample that failed is a record with an error, never an exception.

    Raises:
        UsageError: unknown names, malformed suite, no key, unwritable folder.
        SandboxUnavailable: the program runs code and no isolation holds here.
        BudgetExhausted: a cap is met; what is finished is stored, and the same call with a higher
            cap goes on.
    """
    project = project_dir(Path.cwd())
    if not isinstance(suite, Suite):
        suite = load_suite(find_content("evals", str(suite), project).path)
    suite = suite.override(dict(overrides or {}))
    flags = {"model": model, "sub_model": sub_model, "concurrency": concurrency, "sandbox": sandbox}
    flags["mlflow"] = mlflow
    resolved = resolve(flags, os.environ, project)
    root, sub = specify_pair(resolved, os.environ)
    name, entry, recursion = _named(program, settings or {})
    arm = Arm(
        program=name,
        entry=entry,
        settings=recursion,
        root=root,
        sub=sub,
        sandbox=specify_sandbox(resolved.config) if entry.runs_code else None,
        limits=limits or Limits(),
        judge=specify_judge(judge, resolved, os.environ) if judge else None,
    )
    if judge:
        check_independent(judge, {"root": root.name, "sub": sub.name}, allow_same=allow_same_judge)
    suite.read_in(os.environ)
    plan = Plan(suite=suite, samples=suite.plan(limit=limit), epochs=epochs)
    runs_dir = project / resolved.config.runs_dir
    folder = Path(out) if out is not None else run_folder(runs_dir, arm, suite)
    progress = make_progress(display, suite.name)
    effort = Effort(
        concurrency=resolved.config.concurrency,
        workers=workers or (None if isinstance(program, str) else 1),
        caps=caps or Caps(),
    )
    with mirrored(folder, resolved.config, project) as write_mirror:
        finished = run_arm(arm, plan, folder, effort=effort, progress=progress)
        if problem := write_mirror():
            warnings.warn(problem, FleetWarning, stacklevel=2)
    if finished.budget is not None:
        raise finished.budget
    return open_run(folder)


def _named(
    program: str | dspy.Module, settings: Mapping[str, int]
) -> tuple[str, Entry, ProgramSettings]:
    if isinstance(program, str):
        return program, find_program(program), parse_settings(program, settings)
    if settings:
        raise UsageError("Settings of a program object are set on the object itself.")
    own = Entry(summary="", runs_code=True, make=lambda _guidance, _settings: program)
    return type(program).__name__, own, ProgramSettings()
