"""What `fleet-eval run` does: resolve, check, run, show the result."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fleet_rlm.cli.given import open_suite, sort_overrides
from fleet_rlm.config import Resolved, parse_overrides, resolve
from fleet_rlm.errors import Exit, UsageError, nearest
from fleet_rlm.ledger import Caps, Limits
from fleet_rlm.lm.connect import ModelSpec, specify_judge, specify_pair
from fleet_rlm.program.find import find_program, parse_settings
from fleet_rlm.project import project_dir, relative
from fleet_rlm.report.tables import make_console, print_result
from fleet_rlm.runner.arm import Arm, run_folder
from fleet_rlm.runner.progress import make_progress
from fleet_rlm.runner.run import Effort, Finished, Plan, run_arm
from fleet_rlm.runner.sandboxes import specify_sandbox
from fleet_rlm.runner.store import read_json
from fleet_rlm.runner.stored import open_run
from fleet_rlm.scoring.judge import check_independent
from fleet_rlm.suites.suite import Suite
from fleet_rlm.tracking import mirrored, parse_trace

REPEATED = (
    "suite", "program", "flags", "price", "sub_price", "corpus", "overrides", "limit", "epochs",
    "iterations", "sub_calls", "wall_s", "working_s", "max_usd", "max_tokens", "max_seconds",
    "allow_unpriced", "judge", "judge_price", "allow_same_judge",
)  # fmt: skip
"""Parts of a request that make the run what it is; the rest says how to show it."""

NEARBY = 20
"""Runs beside one that are looked at for something to compare it with."""

BOUNDARIES = ("provider", "sandbox", "program", "scorer", "data")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """The command line of one run, as given."""

    suite: str
    program: str
    flags: Mapping[str, Any]
    """Settings of `Config` by name; None where the flag was not given."""

    price: str | None
    sub_price: str | None
    judge: str | None = None
    judge_price: str | None = None
    allow_same_judge: bool = False
    corpus: str | None
    overrides: list[str]
    limit: int | None
    epochs: int
    iterations: int | None
    sub_calls: int | None
    wall_s: float | None
    working_s: float | None
    max_usd: float | None
    max_tokens: int | None
    max_seconds: float | None
    allow_unpriced: bool
    retry_errors: bool
    trace: str | None
    """Whose answers MLflow shows as traces; see `tracking.choice`."""

    out: Path | None
    display: str
    as_json: bool
    print_config: bool

    @property
    def caps(self) -> Caps:
        """What the whole run may use."""
        return Caps(usd=self.max_usd, tokens=self.max_tokens, seconds=self.max_seconds)

    def to_json(self) -> dict[str, Any]:
        """What `fleet-eval resume` needs to give this command again; it holds no key."""
        return {name: value for name, value in asdict(self).items() if name in REPEATED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A command line resolved: what runs on what, and where it is stored."""

    request: RunRequest
    project: Path
    resolved: Resolved
    arm: Arm
    plan: Plan
    folder: Path


def run_command(request: RunRequest) -> int:
    """Run one arm on one suite and print the result; gives the exit code."""
    prepared = prepare(request)
    if request.print_config:
        print(json.dumps(_shown_config(prepared), indent=2))
        return Exit.OK
    return exit_code(prepared, execute(prepared, show=_show))


def prepare(request: RunRequest) -> Prepared:
    """Resolve a command line.

    Raises:
        UsageError: unknown names, a malformed file, no key, a value out of range.
    """
    project = project_dir(Path.cwd())
    overrides = sort_overrides(parse_overrides(request.overrides))
    flags = {**request.flags, "modal": overrides["modal"] or None}
    resolved = resolve(flags, os.environ, project)
    find_program(request.program)
    suite = open_suite(project, request.suite, request.corpus, overrides["suite"])
    plan = _plan(suite, request)
    arm = _arm(request, resolved, overrides)
    folder = request.out or run_folder(project / resolved.config.runs_dir, arm, suite)
    return Prepared(
        request=request, project=project, resolved=resolved, arm=arm, plan=plan, folder=folder
    )


def resume_command(folder: Path, changes: Mapping[str, Any], flags: Mapping[str, Any]) -> int:
    """Go on with a stored run, by the command that made it.

    Args:
        folder: of the run.
        changes: parts of the request that are new; None where the stored one stays.
        flags: settings of `Config` that are new; None where the stored one stays.

    Raises:
        UsageError: no run, or one that no command made.
    """
    command = open_run(folder).lock.get("command")
    if command is None:
        raise UsageError(
            f"{folder} was made from Python or by an older version: no command is stored in it.",
            fix="the same `fleet_rlm.evaluate` call, or `fleet-eval run` with --out",
        )
    given = {name: value for name, value in changes.items() if value is not None}
    settings = {name: value for name, value in flags.items() if value is not None}
    shown = {
        "retry_errors": False,
        "trace": None,
        "display": "auto",
        "as_json": False,
        "print_config": False,
    }
    request = {**shown, **command, **given, "out": folder}
    return run_command(RunRequest(**request | {"flags": {**command["flags"], **settings}}))


def _plan(suite: Suite, request: RunRequest) -> Plan:
    if request.limit is not None and request.limit < 1:
        raise UsageError(f"--limit must be at least 1, got {request.limit}.")
    suite.read_in(os.environ)
    return Plan(suite=suite, samples=suite.plan(limit=request.limit), epochs=request.epochs)


def _arm(request: RunRequest, resolved: Resolved, overrides: Mapping[str, Any]) -> Arm:
    settings = dict(overrides["settings"])
    given = {"max_iters": request.iterations, "max_llm_calls": request.sub_calls}
    settings |= {name: value for name, value in given.items() if value is not None}
    recursion = parse_settings(request.program, settings)
    limits = _limits(request, overrides["limits"])
    root, sub = specify_pair(
        resolved,
        os.environ,
        price=request.price,
        sub_price=request.sub_price,
        allow_unpriced=request.allow_unpriced,
    )
    if request.max_usd is not None and "unknown" in (root.price.source, sub.price.source):
        raise UsageError("--max-usd cannot hold for a model without a price.", fix="--price IN/OUT")
    if request.epochs > 1 and resolved.config.cache:
        raise UsageError("--epochs repeats the model's answers, and --cache would copy them.")
    entry = find_program(request.program)
    return Arm(
        program=request.program,
        entry=entry,
        guidance=_guidance(overrides["program"].get("guidance", "")),
        settings=recursion,
        root=root,
        sub=sub,
        sandbox=specify_sandbox(resolved.config) if entry.runs_code else None,
        limits=limits,
        judge=_judge(request, resolved, {"root": root.name, "sub": sub.name}),
    )


def _judge(request: RunRequest, resolved: Resolved, others: Mapping[str, str]) -> ModelSpec | None:
    if request.judge is None:
        return None
    check_independent(request.judge, others, allow_same=request.allow_same_judge)
    return specify_judge(
        request.judge,
        resolved,
        os.environ,
        price=request.judge_price,
        allow_unpriced=request.allow_unpriced,
    )


def _guidance(value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"program.guidance must be text, got {value!r}.")
    return value


def _limits(request: RunRequest, given: Mapping[str, Any]) -> Limits:
    known = {
        "working_s": (int, float),
        "wall_s": (int, float),
        "tokens": (int,),
        "usd": (int, float),
    }
    values = dict(given)
    flags = {"wall_s": request.wall_s, "working_s": request.working_s}
    values |= {name: value for name, value in flags.items() if value is not None}
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"Unknown limit {name!r}. {nearest(name, known)}")
        if isinstance(value, bool) or not isinstance(value, known[name]) or value <= 0:
            raise UsageError(f"Limit {name} must be a number above 0, got {value!r}.")
    return Limits(**values)


def execute(
    prepared: Prepared, *, show: Callable[[Prepared, Finished], None] | None = None
) -> Finished:
    """Run what is owed, with progress on stderr and the mirror to MLflow.

    Args:
        prepared: what.
        show: prints the result while the mirror is still written.

    Raises:
        UsageError: the folder holds another arm, or the model's service refused the configuration.
    """
    request, resolved, arm = prepared.request, prepared.resolved, prepared.arm
    quiet = request.as_json and request.display == "auto"
    progress = make_progress("none" if quiet else request.display, prepared.plan.suite.name)
    if arm.label:
        progress.say(arm.label)
    if arm.sandbox and not arm.sandbox.level.isolated:
        make_console(sys.stderr).print(f"[bold red]{arm.sandbox.level.label}[/]")
    trace = parse_trace(request.trace)
    with mirrored(prepared.folder, resolved.config, prepared.project, trace=trace) as write_mirror:
        finished = run_arm(
            arm,
            prepared.plan,
            prepared.folder,
            effort=Effort(
                concurrency=resolved.config.concurrency,
                workers=resolved.config.workers,
                caps=request.caps,
                retry=BOUNDARIES if request.retry_errors else (),
            ),
            progress=progress,
            command=request.to_json(),
        )
        if show is not None:
            show(prepared, finished)
        if problem := write_mirror():
            progress.say(problem)
    return finished


def _show(prepared: Prepared, finished: Finished) -> None:
    request, summary = prepared.request, finished.summary
    if request.as_json:
        print(json.dumps(summary), flush=True)
        return
    console = make_console(sys.stdout)
    print_result(console, summary, prepared.arm.label)
    shown = relative(finished.folder)
    console.print(f"run       {shown}", markup=False, soft_wrap=True)
    if finished.interrupted or finished.budget:
        console.print(f"next      fleet-eval resume {shown}", markup=False, soft_wrap=True)
        return
    following = _comparison(finished.folder, summary) or _other_arm(request)
    console.print(f"next      {following}", markup=False, soft_wrap=True)
    console.print("          fleet-eval view", markup=False)


def _comparison(folder: Path, summary: Mapping[str, Any]) -> str | None:
    """The command that holds a run against the last one beside it of another program, if any."""
    found = {path.resolve().parent for path in folder.parent.glob("*/run.json")}  # not `latest`
    for beside in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[:NEARBY]:
        suite, program = _suite_and_program(beside)
        if suite == summary["suite"] and program != summary["program"]:
            pair = [str(relative(beside)), str(relative(folder))]
            # the RLM is what is to be shown, everything else its baseline
            pair = pair[::-1] if program == "rlm" else pair
            return shlex.join(["fleet-eval", "compare", *pair])
    return None


def _suite_and_program(folder: Path) -> tuple[str | None, str | None]:
    """Of a run that has ended; None for both where its summary says nothing."""
    try:
        found = read_json(folder / "summary.json") or {}
    except UsageError:  # told when that run is asked for
        return None, None
    return found.get("suite"), found.get("program")


def _other_arm(request: RunRequest) -> str:
    """The command that runs the baseline on the same samples with the same models."""
    words = ["fleet-eval", "run", request.suite]
    words += ["--program", "direct" if request.program == "rlm" else "rlm"]
    for flag in ("model", "sub_model", "api_base"):
        if request.flags.get(flag):
            words += [f"--{flag.replace('_', '-')}", request.flags[flag]]
    if request.judge:
        words += ["--judge", request.judge]
        words += ["--allow-same-judge"] if request.allow_same_judge else []
    if request.corpus:
        words += ["--corpus", request.corpus]
    for assignment in request.overrides:
        if not assignment.startswith(("settings.", "limits.", "program.", "modal.")):
            words += ["--set", assignment]
    if request.limit:
        words += ["--limit", str(request.limit)]
    return shlex.join(words)


def exit_code(prepared: Prepared, finished: Finished) -> int:
    """How the process ends after a run; what is wrong is said on stderr."""
    if finished.interrupted:
        return Exit.INTERRUPTED
    if finished.budget is not None:
        print(f"error: {finished.budget}", file=sys.stderr)
        return Exit.BUDGET
    if finished.summary["coverage"] < prepared.resolved.config.min_coverage:
        print(
            f"error: coverage {finished.summary['coverage']:.0%} is below"
            f" {prepared.resolved.config.min_coverage:.0%}: see the errors in"
            f" {relative(finished.folder / 'records.jsonl')}."
            " Try: the same command with --retry-errors",
            file=sys.stderr,
        )
        return Exit.COVERAGE
    return Exit.OK


def _shown_config(prepared: Prepared) -> dict[str, Any]:
    plan, resolved = prepared.plan, prepared.resolved
    return {
        "suite": plan.suite.describe(),
        "samples": len(plan.samples),
        "epochs": plan.epochs,
        "arm": prepared.arm.to_json(),
        "config": {
            name: {"value": value, "from": resolved.origin[name]}
            for name, value in resolved.config.model_dump().items()
        },
        "folder": str(relative(prepared.folder)),
    }
