"""Runs one arm on one suite into one folder: plan, execute what is owed, summarize."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from fleet_rlm.errors import UsageError
from fleet_rlm.lm.connect import connect
from fleet_rlm.runner.arm import Arm, lock
from fleet_rlm.runner.attempt import Bench, Job, Outcome, attempt
from fleet_rlm.runner.executor import StopFlag, execute, stop_on_signals
from fleet_rlm.runner.record import Key, Record, last_records, owed
from fleet_rlm.runner.store import SCHEMA, RunStore
from fleet_rlm.runner.summary import summarize
from fleet_rlm.sandbox.redact import Redactor
from fleet_rlm.suites.plan import PlannedSample
from fleet_rlm.suites.suite import Suite

CELL_SECONDS = 120.0
"""Longest that one piece of generated code may compute, model calls not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be run."""

    suite: Suite
    samples: Sequence[PlannedSample]
    epochs: int = 1

    @property
    def keys(self) -> list[Key]:
        return [Key(sample.id, epoch) for epoch in range(self.epochs) for sample in self.samples]


class Progress(Protocol):
    """Watches a run; called from the thread that runs it."""

    def started(self, total: int, settled: Sequence[Record]) -> None: ...
    def recorded(self, record: Record, in_flight: int) -> None: ...
    def say(self, message: str) -> None: ...
    def ended(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a run ended."""

    folder: Path
    summary: dict[str, Any]
    interrupted: bool


def run_arm(
    arm: Arm,
    plan: Plan,
    folder: Path,
    *,
    concurrency: int,
    progress: Progress,
    retry: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Finished:
    """Run what is owed and summarize.

    Args:
        arm: what is measured.
        plan: on which samples.
        folder: the run's folder; records in it are kept and not run again.
        concurrency: samples in flight.
        progress: told of each step.
        retry: error boundaries whose samples are run again.
        env: where secrets to redact are found; this process's environment when absent.

    Raises:
        UsageError: the folder holds another arm, cannot be written, or the model's service refused
            the configuration.
    """
    with RunStore(folder) as store:
        run = _open_run(store, arm, plan)
        started = time.monotonic()
        before, before_s = len(store.records), _wall_so_far(folder)
        stop = StopFlag()
        redactor = Redactor.from_env(os.environ if env is None else env)
        try:
            _execute(arm, plan, store, redactor, stop, concurrency, progress, retry)
        finally:
            progress.ended()
            # Looking at a finished run again takes no time of the run's.
            spent_s = time.monotonic() - started if len(store.records) > before else 0.0
            wall_s = before_s + spent_s
            summary = summarize(run, store.records, plan.keys, wall_s)
            store.write_json("summary.json", summary)
    _point_latest(folder)
    if stop.reason not in {"", "interrupted"}:
        raise UsageError(stop.reason)
    return Finished(folder=folder, summary=summary, interrupted=bool(stop))


def _execute(
    arm: Arm,
    plan: Plan,
    store: RunStore,
    redactor: Redactor,
    stop: StopFlag,
    concurrency: int,
    progress: Progress,
    retry: Sequence[str],
) -> None:
    owing = set(owed(plan.keys, store.records, retry=retry))
    jobs = [
        Job(sample, epoch)
        for epoch in range(plan.epochs)
        for sample in plan.samples
        if (sample.id, epoch) in owing
    ]
    planned = set(plan.keys)
    settled = last_records(store.records)
    progress.started(
        len(planned), [settled[key] for key in settled if key in planned and key not in owing]
    )
    if not jobs:
        return
    bench = make_bench(arm, redactor)

    def record(outcome: Outcome, in_flight: int) -> None:
        if outcome.misconfigured:
            # Every further sample would fail alike, so none is booked and all stay owed.
            stop.set(f"Model {arm.root.name!r} was refused: {outcome.misconfigured}")
            return
        store.append(outcome.record)
        progress.recorded(outcome.record, in_flight)

    def work(job: Job) -> Outcome:
        outcome = attempt(job, bench)
        name = f"{job.planned.id}.{job.epoch}"
        path = store.write_trajectory(name, outcome.trajectory)
        return replace(outcome, record=replace(outcome.record, trajectory=path))

    with stop_on_signals(stop, progress.say):
        execute(jobs, work, record, concurrency=concurrency, stop=stop)


def make_bench(arm: Arm, redactor: Redactor) -> Bench:
    """Connect the models and make the program of an arm."""
    return Bench(
        program=arm.make_program(),
        root=connect(arm.root, "root"),
        sub=connect(arm.sub, "sub"),
        limits=arm.limits,
        redactor=redactor,
        interpreter_factory=_interpreter_factory(arm) if arm.entry.runs_code else None,
    )


def _interpreter_factory(arm: Arm) -> Callable[[], Any]:
    from fleet_rlm.sandbox.interpreter import LocalInterpreter

    if arm.sandbox is None:
        raise UsageError(f"Program {arm.program!r} runs code and needs a sandbox.")
    limits = arm.limits
    seconds = min(CELL_SECONDS, *filter(None, (limits.working_s, limits.wall_s)))
    return LocalInterpreter.factory(level=arm.sandbox.name, timeout=seconds)


def _open_run(store: RunStore, arm: Arm, plan: Plan) -> dict[str, Any]:
    """Write `run.json`, or check that the folder holds this very arm."""
    path = store.folder / "run.json"
    run = {
        "schema": SCHEMA,
        "run": store.folder.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "suite": plan.suite.describe(),
        "arm": arm.to_json(),
        "epochs": plan.epochs,
        "planned": len(plan.keys),
        "lock": lock(arm),
    }
    if path.exists():
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _refuse_other_arm(stored, run, store.folder)
        run |= {key: stored[key] for key in ("created", "lock")}
    store.write_json("run.json", run)
    return run


def _refuse_other_arm(stored: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> None:
    was, wanted = _identity(stored), _identity(asked)
    differing = [key for key in {**was, **wanted} if was.get(key) != wanted.get(key)]
    # A digest says that something differs; whatever else differs says what.
    differing.sort(key=lambda key: key.endswith("digest"))
    if differing:
        key = differing[0]
        raise UsageError(
            f"{folder} holds another run: its {key} is {was.get(key)!r}, not {wanted.get(key)!r}.",
            fix="--out DIR with a new folder",
        )


def _identity(run: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of all that makes a run this run; limits may be raised on the way."""
    leaves: dict[str, Any] = {f"suite.{key}": run["suite"][key] for key in ("name", "digest")}
    waiting = [(key, value) for key, value in run["arm"].items() if key != "limits"]
    for key, value in waiting:
        if isinstance(value, Mapping):
            waiting += [(f"{key}.{name}", inner) for name, inner in value.items()]
        else:
            leaves[key] = value
    return leaves


def _wall_so_far(folder: Path) -> float:
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return float(summary["wall_s"])
    except (OSError, ValueError, KeyError):
        return 0.0


def _point_latest(folder: Path) -> None:
    # For people only; a file system without links simply has none.
    link = folder.parent / "latest"
    temporary = folder.parent / f".latest.{os.getpid()}"
    try:
        temporary.symlink_to(folder.name, target_is_directory=True)
        temporary.replace(link)
    except OSError:
        temporary.unlink(missing_ok=True)
