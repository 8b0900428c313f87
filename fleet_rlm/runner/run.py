"""Runs one arm on one suite into one folder: plan, execute what is owed, summarize."""

from __future__ import annotations

import json
import os
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from fleet_rlm.board import Board
from fleet_rlm.errors import BudgetExhausted, SandboxUnavailable, UsageError
from fleet_rlm.ledger import Caps, Purse
from fleet_rlm.lm.connect import connect
from fleet_rlm.lm.throttle import Gate
from fleet_rlm.runner.arm import Arm, lock
from fleet_rlm.runner.attempt import Bench, Job, Outcome
from fleet_rlm.runner.budget import Before, Reserve, RunPurse
from fleet_rlm.runner.contexts import share_contexts
from fleet_rlm.runner.executor import (
    Done,
    Shard,
    StopFlag,
    ThreadShard,
    execute,
    stop_on_signals,
)
from fleet_rlm.runner.record import Key, Record, last_records, owed, total_usage
from fleet_rlm.runner.sandboxes import make_factory
from fleet_rlm.runner.store import SCHEMA, RunStore, write_trajectory
from fleet_rlm.runner.summary import summarize
from fleet_rlm.runner.worker import ProcessShard, Setup
from fleet_rlm.sandbox.redact import Redactor
from fleet_rlm.scoring import is_judged
from fleet_rlm.suites.plan import PlannedSample
from fleet_rlm.suites.suite import Suite

SAMPLES_A_WORKER = 64
"""Samples in flight that one process feeds well; measured, see docs/performance.md."""

CORES_A_WORKER = 2
"""A process keeps its own core busy and about one more with the sandboxes of its samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be run."""

    suite: Suite
    samples: Sequence[PlannedSample]
    epochs: int = 1

    @property
    def keys(self) -> list[Key]:
        """Every sample in every epoch, in the order in which they are started."""
        return [Key(sample.id, epoch) for epoch in range(self.epochs) for sample in self.samples]


class Progress(Protocol):
    """Watches a run; called from the thread that runs it."""

    def started(self, total: int, settled: Sequence[Record]) -> None:
        """The run begins: `total` samples and epochs, of which `settled` have their record."""

    def watch(self, purse: RunPurse) -> None:
        """Show what is spent of the caps and what is in flight, from the purse's board."""

    def recorded(self, record: Record, in_flight: int) -> None:
        """One more record is stored; `in_flight` samples are being answered."""

    def say(self, message: str) -> None:
        """Show a line that must not be missed."""

    def ended(self) -> None:
        """The run is over, however it ended; called once, and last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a run ended."""

    folder: Path
    summary: dict[str, Any]
    interrupted: bool
    budget: BudgetExhausted | None = None
    """Set when a cap of the run ended it; the same command with a higher cap goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How hard a run tries; nothing of it changes a score."""

    concurrency: int = 8
    """Samples in flight."""

    workers: int | None = None
    """Processes; None for as many as pay: see `processes`."""

    caps: Caps = field(default_factory=Caps)
    retry: Sequence[str] = ()
    """Error boundaries whose samples are run again."""

    def processes(self, owed: int) -> int:
        """Processes to use for so many samples."""
        if self.workers is not None:
            return self.workers
        busy = min(self.concurrency, owed)
        cores = len(os.sched_getaffinity(0))
        return max(1, min(cores // CORES_A_WORKER, busy // SAMPLES_A_WORKER))


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """What several runs share that are parts of one job. They run in one process."""

    purse: Purse
    """What the job may spend; each run books in it too."""

    stop: StopFlag
    """Stops all of them: a cap or a refusal that one meets holds for the others."""

    gate: Gate = field(default_factory=Gate)
    """Lets their model calls through: a service that says "too many" to one has said it to all."""


def run_arm(
    arm: Arm,
    plan: Plan,
    folder: Path,
    *,
    effort: Effort,
    progress: Progress,
    command: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    whole: Whole | None = None,
) -> Finished:
    """Run what is owed and summarize.

    Args:
        arm: what is measured.
        plan: on which samples.
        folder: the run's folder; records in it are kept and not run again.
        effort: concurrency, processes, caps.
        progress: told of each step.
        command: what made this run, stored so that `fleet-eval resume` can repeat it.
        env: where secrets to redact are found; this process's environment when absent.
        whole: what this run is a part of, if anything.

    Raises:
        UsageError: the folder holds another arm, cannot be written, or the model's service refused
            the configuration.
        SandboxUnavailable: Modal refused the token, cannot be reached, or has no image.
    """
    _check_fit(arm, plan)
    with RunStore(folder) as store:
        run = _open_run(store, arm, plan, command)
        started = time.monotonic()
        before, before_s = store.ended, wall_so_far(folder)
        stop = StopFlag() if whole is None else whole.stop
        redactor = Redactor.from_env(os.environ if env is None else env)
        session = _Session(
            arm, plan, store, redactor, stop, effort, progress, started, before_s, whole
        )
        try:
            session.run()
        finally:
            progress.ended()
            # Looking at a finished run again takes no time of the run's.
            spent_s = time.monotonic() - started if store.ended > before else 0.0
            wall_s = before_s + spent_s
            summary = summarize(run, store.records, plan.keys, wall_s, store.abandoned)
            store.write_json("summary.json", summary)
    if whole is None:
        _point_latest(folder)
    budget = stop.error if isinstance(stop.error, BudgetExhausted) else None
    if stop.error is not None and budget is None:
        raise stop.error
    return Finished(
        folder=folder, summary=summary, interrupted=bool(stop) and not budget, budget=budget
    )


def _check_fit(arm: Arm, plan: Plan) -> None:
    """Refuse an arm that could not score the plan's samples, or would store what is sealed."""
    judged = [sample.task for sample in plan.samples if is_judged(sample.rule)]
    if judged and arm.judge is None:
        raise UsageError(
            f"Task {judged[0]!r} of suite {plan.suite.name!r} is scored by a judge",
            fix=f"--judge provider/model; or --set 'tasks.{judged[0]}.rule=\"match-part\"'",
        )
    cached = any(spec.cache for spec in arm.models.values())
    if cached and any(sample.is_sealed for sample in plan.samples):
        raise UsageError(
            f"Suite {plan.suite.name!r} is sealed, and a cache would store its texts",
            fix="the same command without --cache",
        )


class _Session:
    """One go at what a run owes."""

    def __init__(
        self,
        arm: Arm,
        plan: Plan,
        store: RunStore,
        redactor: Redactor,
        stop: StopFlag,
        effort: Effort,
        progress: Progress,
        started: float,
        before_s: float,
        whole: Whole | None,
    ) -> None:
        self.arm, self.plan, self.store = arm, plan, store
        self.outer = whole.purse if whole else None
        self.gate = whole.gate if whole else None
        self.stop, self.effort, self.progress = stop, effort, progress
        self.redactor = redactor
        spent = store.spent
        self.before = Before(usd=spent.usd, tokens=spent.tokens, seconds=before_s)
        self.started = started
        self.results: queue.SimpleQueue[Done] = queue.SimpleQueue()

    def run(self) -> None:
        """Run the owed samples; returns when nothing is in flight any more."""
        jobs = self._owed_jobs()
        if not jobs:
            return
        rows = self.effort.processes(len(jobs))
        board = Board(rows)
        gate = self.gate or Gate(board)
        self.purse = RunPurse(
            self.effort.caps,
            board,
            self.before,
            self.started,
            outer=self.outer,
            calls=gate.board,
        )
        self.reserve = Reserve(self.purse)
        for record in last_records(self.store.records).values():
            if record.status != "error":
                self.reserve.learn(record)
        self.progress.watch(self.purse)
        if self.arm.sandbox:
            self.arm.sandbox.prepare()
        contexts = share_contexts(self.arm.sandbox, jobs)
        bench = make_bench(
            self.arm,
            self.redactor,
            board=board,
            gate=gate,
            purse=self.purse,
            tags=run_tags(self.store.folder, self.plan.suite),
            contexts=contexts,
        )
        shards: list[Shard] = [ThreadShard(bench, self._finish, self.results)]
        shards += [self._worker(board, row, contexts) for row in range(1, rows)]
        with stop_on_signals(self.stop, self.progress.say):
            execute(
                jobs,
                shards,
                self.results,
                self._take,
                concurrency=self.effort.concurrency,
                stop=self.stop,
                may_start=self._may_start,
            )

    def _owed_jobs(self) -> list[Job]:
        plan, store = self.plan, self.store
        owing = set(owed(plan.keys, store.records, retry=self.effort.retry, limits=self.arm.limits))
        planned = set(plan.keys)
        settled = last_records(store.records)
        self.progress.started(
            len(planned), [settled[key] for key in settled if key in planned and key not in owing]
        )
        return [
            Job(sample, epoch)
            for epoch in range(plan.epochs)
            for sample in plan.samples
            if (sample.id, epoch) in owing
        ]

    def _worker(self, board: Board, row: int, contexts: Mapping[str, str]) -> ProcessShard:
        setup = Setup(
            arm=self.arm,
            suite=self.plan.suite,
            folder=self.store.folder,
            caps=self.effort.caps,
            before=self.before,
            started=self.started,
            rows=board.rows,
            row=row,
            contexts=contexts,
        )
        return ProcessShard(setup, board, self.results)

    def _finish(self, outcome: Outcome) -> Outcome:
        return write_trajectory(self.store.folder, outcome)

    def _may_start(self, in_flight: int) -> bool:
        problem = self.reserve.problem(in_flight)
        if problem is not None and not in_flight:
            self.stop.set("budget", problem)
        return problem is None

    def _take(self, outcome: Outcome, in_flight: int) -> None:
        record = outcome.record
        self.reserve.settle(total_usage(outcome.usage))
        if record is None:
            self.store.abandon(outcome.key, outcome.abandoned, outcome.usage)
            # Every further sample would fail alike, so none is booked and all stay owed.
            if outcome.abandoned == "misconfigured":
                refused = f"Model {self.arm.root.name!r} was refused: {outcome.why}"
                self.stop.set("misconfigured", UsageError(refused))
            elif outcome.abandoned == "no-sandbox":
                unavailable = SandboxUnavailable(outcome.why, fix="fleet-rlm doctor")
                self.stop.set("no-sandbox", unavailable)
            elif outcome.abandoned == "budget":
                self.stop.set("budget", BudgetExhausted(outcome.why))
            return
        self.store.append(record)
        if record.status != "error":
            self.reserve.learn(record)
        self.progress.recorded(record, in_flight)
        if warning := self.reserve.warning():
            self.store.note("budget", message=warning)
            self.progress.say(warning)


def run_tags(folder: Path, suite: Suite) -> dict[str, str]:
    """What the sandboxes of a run are tagged with."""
    return {"run": folder.name, "suite": suite.name}


def make_bench(
    arm: Arm,
    redactor: Redactor,
    *,
    board: Board | None = None,
    gate: Gate | None = None,
    purse: RunPurse | None = None,
    tags: Mapping[str, str] | None = None,
    contexts: Mapping[str, str] | None = None,
) -> Bench:
    """Connect the models and make the program of an arm.

    Args:
        arm: what is measured.
        redactor: cleans what is stored.
        board: shared with the other processes of the run; one of its own when absent.
        gate: of the model calls; one of its own, over the board, when absent.
        purse: what the run may spend.
        tags: of sandboxes that are not on this machine: "run" and "suite".
        contexts: from `share_contexts`.
    """
    board = board or Board()
    gate = gate or Gate(board)
    return Bench(
        program=arm.make_program(),
        root=connect(arm.root, "root", gate),
        sub=connect(arm.sub, "sub", gate),
        limits=arm.limits,
        redactor=redactor,
        purse=purse,
        contexts=contexts or {},
        interpreter_factory=_interpreter_factory(arm, board, redactor, tags)
        if arm.entry.runs_code
        else None,
        judge=connect(arm.judge, "judge", gate) if arm.judge else None,
    )


def _interpreter_factory(
    arm: Arm, board: Board, redactor: Redactor, tags: Mapping[str, str] | None
) -> Callable[[], Any]:
    if arm.sandbox is None:
        raise UsageError(f"Program {arm.program!r} runs code and needs a sandbox.")
    return make_factory(arm.sandbox, arm.limits, board, redactor, tags)


def _open_run(
    store: RunStore, arm: Arm, plan: Plan, command: Mapping[str, Any] | None
) -> dict[str, Any]:
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
        "command": command,
        "lock": lock(arm),
    }
    if path.exists():
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _refuse_other_arm(stored, run, store.folder)
        run |= {key: stored[key] for key in ("created", "lock")}
        run["command"] = command or stored.get("command")
    store.write_json("run.json", run)
    return run


def _refuse_other_arm(stored: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> None:
    was, wanted = _identity(stored), _identity(asked)
    differing = [key for key in {**was, **wanted} if was.get(key) != wanted.get(key)]
    if "suite.digest" in differing:
        was, wanted = was | _tasks(stored), wanted | _tasks(asked)
        differing += [key for key in {**was, **wanted} if was.get(key) != wanted.get(key)]
    # A digest says that something differs; whatever else differs says what.
    named = [key for key in differing if not key.endswith("digest")] or differing
    if named:
        shown = "; ".join(f"{key} {was.get(key)!r}, not {wanted.get(key)!r}" for key in named)
        raise UsageError(
            f"{folder} holds another run, with {shown}.", fix="--out DIR with a new folder"
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


def _tasks(run: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of what a suite says of its tasks, as `run.json` holds it."""
    tasks = json.loads(json.dumps(run["suite"]["tasks"]))
    return {f"{task['name']}.{key}": value for task in tasks for key, value in task.items()}


def wall_so_far(folder: Path) -> float:
    """Seconds that the earlier sessions of a run took."""
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
