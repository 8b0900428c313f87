"""Bench room `runner`: a run of ours beside dspy.Evaluate, dspy.RLM and dspy.LocalInterpreter."""

from __future__ import annotations

import gc
import heapq
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import dspy
from measure import Cost, Table, measure, memory_mb, side_by_side, slower

from fleet_rlm.config import Config
from fleet_rlm.ledger import Limits
from fleet_rlm.lm.connect import ModelSpec, specify
from fleet_rlm.lm.simulated.launch import SimulatedServer, simulated_server
from fleet_rlm.program.find import find_program
from fleet_rlm.program.recursion import RecursionSettings
from fleet_rlm.program.registry import AnswerQuery
from fleet_rlm.runner.arm import Arm
from fleet_rlm.runner.evaluate import open_run
from fleet_rlm.runner.progress import make_progress
from fleet_rlm.runner.record import Record
from fleet_rlm.runner.run import Effort, Plan, run_arm
from fleet_rlm.runner.sandboxes import specify_sandbox
from fleet_rlm.runner.store import RunStore, read_columns, read_trajectory, repair_and_read
from fleet_rlm.scoring import score
from fleet_rlm.suites.plan import PlannedSample
from fleet_rlm.suites.suite import Suite, load_suite

LIMIT = (
    "Of the harness's own time, thread by thread at C=32, DSPy's engine takes 30 % (the prompt as"
    " JSON, HTTP, the reply read and checked), what is asked and booked around it 10 %, action"
    " prompts and replies 9 %, the session with its sandbox 20 %, score, record and trajectory"
    " 15 %; the rest is spread over the program and its threads. No function of ours is above 5 %:"
    " the next limit is DSPy's engine, then the interpreter lock, which a process meets when calls"
    " in flight exceed latency / CPU a call (about 200 at 0.3 s, 1,400 at 2 s); from there on more"
    " `--workers` help where cores are free. Two cores are not: they are used up when calls a"
    " second times what harness, sandboxes and, here, the model's server take for one reach two"
    " seconds, which is near what C=128 asks for at 0.3 s."
)
"""What bounds the figures; the shares were taken with each thread's CPU clock around each part."""

EVALS = Path(__file__).parents[2] / "evals"
BATCH_WORKERS = RecursionSettings.SPEC["batch_workers"].default


class Case(NamedTuple):
    """Samples in flight against a service of so much latency."""

    in_flight: int
    latency_s: float
    samples: int
    repeats: int
    with_stock: bool

    workers: int | None = None

    @property
    def name(self) -> str:
        shown = f"C={self.in_flight} L={self.latency_s:g}"
        return shown if self.workers is None else f"{shown} workers={self.workers}"


CASES = (
    Case(8, 0.3, 64, 3, True),
    Case(32, 0.3, 192, 3, True),
    Case(64, 0.3, 256, 3, True),
    Case(128, 0.3, 512, 3, True),
    Case(128, 0.3, 512, 1, False, 2),
    Case(512, 0.3, 512, 1, False),
    Case(64, 2.0, 192, 1, True),
    Case(128, 2.0, 384, 1, True),
    Case(512, 2.0, 512, 1, True),
    Case(512, 2.0, 512, 1, False, 2),
)


class Result(NamedTuple):
    """One arm on one case."""

    efficiency: float
    cost: Cost
    harness_s: float
    """Processor time of this process: the harness when it has no workers, sandboxes aside."""

    calls: int
    mean_in_flight: float
    """As the server counts it."""

    mb_a_sample: float


Run = Callable[[Case, Sequence[PlannedSample], SimulatedServer], None]


def tables() -> list[Table]:
    dspy.disable_logging()
    suite = load_suite(EVALS / "aggregate.toml").override(
        {"lengths": [8000], "windows": 64, "questions": 8}
    )
    samples = suite.plan()
    for sample in samples:
        sample.build()  # the plan remembers the contexts, so no arm is timed with writing them
    with simulated_server() as server:
        warm = Case(2, 0.0, 2, 1, True)
        for run in (_run_ours(suite), _run_stock):
            run(warm, samples[:2], server)
        depths = _depths(suite, samples, server)
        rows = [_compare(case, suite, samples[: case.samples], depths, server) for case in CASES]
    return [
        Table(
            title="RLM samples",
            about=(
                "Medians of 3, of 1 from C=512 or L=2 on. Aggregation over 8k tokens: about"
                f" {sum(depths.values()) / len(depths):.1f} model calls in sequence a sample, and"
                " its sub-queries in batches. C samples in flight, L seconds a call of the"
                " simulated model, which is served over HTTP by a process of its own on the same"
                " two cores. fleet-rlm: `run_arm`, so executor, run folder, trajectories,"
                " `fleet_rlm.RLM` and sandbox; stock: `dspy.Evaluate`, `dspy.RLM` and"
                " `dspy.LocalInterpreter`. Efficiency is ideal wall / measured wall, ideal being"
                " that samples take L for each call in sequence and nothing else. In flight: mean"
                " by the server's own count, beside the ideal's. CPU a call: of the harness, and"
                " with all sandboxes. MB: memory for each sample in flight, sandboxes included."
                f"\n\n{LIMIT}"
            ),
            columns=(
                "case",
                "calls",
                "efficiency",
                "stock",
                "in flight",
                "ideal",
                "CPU a call",
                "stock",
                "with sandboxes",
                "stock",
                "ratio",
                "MB",
            ),
            rows=rows,
        ),
        _store_table(),
    ]


def _compare(
    case: Case,
    suite: Suite,
    samples: Sequence[PlannedSample],
    depths: dict[str, int],
    server: SimulatedServer,
) -> list[str]:
    server.configure(latency_ms=case.latency_s * 1000)
    runs = [_run_ours(suite), *([_run_stock] if case.with_stock else [])]
    ideal_s = _ideal_s([depths[sample.id] for sample in samples], case)
    found = [
        [_measure(run, case, samples, ideal_s, server) for run in runs] for _ in range(case.repeats)
    ]
    ours, stock = ([results[arm] for results in found] if arm < len(runs) else [] for arm in (0, 1))
    calls = ours[0].calls
    own = [_median(r.harness_s / r.calls for r in arm) for arm in (ours, stock)]
    everything = [_median(r.cost.cpu_s / r.calls for r in arm) for arm in (ours, stock)]
    return [
        case.name,
        f"{calls}",
        _number(_median(r.efficiency for r in ours)),
        _number(_median(r.efficiency for r in stock)),
        f"{_median(r.mean_in_flight for r in ours):.0f}",
        f"{calls * case.latency_s / ideal_s:.0f}",
        "-"
        if case.workers
        else _ms(own[0]),  # what workers used is known with their sandboxes only
        _ms(own[1]),
        *map(_ms, everything),
        "-" if everything[1] is None else f"{everything[0] / everything[1]:.2f}",
        f"{_median(r.mb_a_sample for r in ours):.1f}",
    ]


def _median(values: Iterator[float]) -> float | None:
    found = list(values)
    return median(found) if found else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.2f} ms"


def _measure(
    run: Run, case: Case, samples: Sequence[PlannedSample], ideal_s: float, server: SimulatedServer
) -> Result:
    server.configure()
    served_s = server.stats()["cpu_s"]
    harness_s = time.process_time()
    with _peak_memory() as memory:
        cost = measure(lambda: run(case, samples, server))
    harness_s = time.process_time() - harness_s
    stats = server.stats()
    if stats["kinds"].get("unknown"):
        raise SystemExit("the simulated model did not know a prompt")
    served_s = stats["cpu_s"] - served_s
    return Result(
        efficiency=ideal_s / cost.wall_s,
        cost=cost._replace(cpu_s=cost.cpu_s - served_s),
        harness_s=harness_s,
        calls=stats["requests"],
        mean_in_flight=stats["mean_in_flight"],
        mb_a_sample=memory.grown_mb / case.in_flight,
    )


def _ideal_s(depths: Sequence[int], case: Case) -> float:
    """Wall time of samples that start in order as soon as a place is free and only wait."""
    free_at = [0.0] * case.in_flight
    for depth in depths:
        heapq.heapreplace(free_at, free_at[0] + depth * case.latency_s)
    return max(free_at)


def _depths(
    suite: Suite, samples: Sequence[PlannedSample], server: SimulatedServer
) -> dict[str, int]:
    """Sample -> model calls that have to follow one another, read off its trajectory."""
    server.configure(latency_ms=0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        _run_arm(suite, samples, folder, server, in_flight=16, workers=1)
        records = repair_and_read(folder / "records.jsonl")
        return {r.sample: _depth(read_trajectory(folder, r)["steps"]) for r in records}


def _depth(steps: Sequence[dict[str, Any]]) -> int:
    # The simulated model's code asks all queries of one step in one batch.
    return sum(1 + math.ceil(len(step["queries"]) / BATCH_WORKERS) for step in steps)


def _run_ours(suite: Suite) -> Run:
    def run(case: Case, samples: Sequence[PlannedSample], server: SimulatedServer) -> None:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "run"
            _run_arm(suite, samples, folder, server, in_flight=case.in_flight, workers=case.workers)
            if open_run(folder).summary["coverage"] < 1:
                raise SystemExit(f"a sample failed: {repair_and_read(folder / 'records.jsonl')}")

    return run


def _run_arm(
    suite: Suite,
    samples: Sequence[PlannedSample],
    folder: Path,
    server: SimulatedServer,
    *,
    in_flight: int,
    workers: int | None,
) -> None:
    model = _model(server)
    arm = Arm(
        program="rlm",
        entry=find_program("rlm"),
        settings=RecursionSettings(),
        root=model,
        sub=model,
        sandbox=specify_sandbox(Config()),
        limits=Limits(),
    )
    run_arm(
        arm,
        Plan(suite=suite, samples=samples),
        folder,
        effort=Effort(concurrency=in_flight, workers=workers),
        progress=make_progress("none", "bench"),
    )


def _model(server: SimulatedServer) -> ModelSpec:
    return specify("openai/sim", env={}, api_base=server.url, api_key="none")


def _run_stock(case: Case, samples: Sequence[PlannedSample], server: SimulatedServer) -> None:
    planned = {sample.id: sample for sample in samples}

    def metric(example: dspy.Example, prediction: dspy.Prediction, *_: Any) -> float:
        sample = planned[example.sample]
        return score(prediction.answer, sample.build().question, task_rule=sample.rule).robust

    devset = []
    for sample in samples:
        built = sample.build()
        example = dspy.Example(sample=sample.id, context=built.context, query=built.query)
        devset.append(example.with_inputs("context", "query"))
    evaluate = dspy.Evaluate(devset=devset, metric=metric, num_threads=case.in_flight, max_errors=1)
    lm = dspy.LM("openai/sim", api_base=server.url, api_key="none", cache=False)
    with dspy.context(lm=lm):
        evaluate(dspy.RLM(AnswerQuery, interpreter_factory=dspy.LocalInterpreter))


@dataclass
class _Memory:
    before_mb: float
    peak_mb: float

    @property
    def grown_mb(self) -> float:
        return self.peak_mb - self.before_mb


@contextmanager
def _peak_memory() -> Iterator[_Memory]:
    """Of this process and all descendants.

    Looked at rarely: that takes 0.2 ms of processor time for each sandbox.
    """
    found = _Memory(memory_mb(), 0.0)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(2.5):
            found.peak_mb = max(found.peak_mb, memory_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()
        found.peak_mb = max(found.peak_mb, found.before_mb)


# ---- the store ----------------------------------------------------------------------------------

STORED = 100_000
RESUMED = 10_000


def _store_table() -> Table:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path = folder / "records.jsonl"
        lines = [_line(number) for number in range(STORED)]
        path.write_bytes(b"".join(lines))
        frame, plain = _in_turn(lambda: _frame(path), lambda: _plain_frame(path))
        path.write_bytes(b"".join(lines[:RESUMED]))
        opened, read = _in_turn(lambda: RunStore(folder).close(), lambda: _plain_frame(path))
    return Table(
        title="Stored records",
        about=(
            f"Medians of 3. `open_run(...).records()` of {STORED:,} records, and opening a folder"
            f" of {RESUMED:,} to go on with it; stock is `json.loads` of each line and a data"
            " frame."
        ),
        columns=("case", "fleet-rlm", "stock", "ratio", "CPU fleet-rlm", "CPU stock", "CPU ratio"),
        rows=[
            slower(f"records() of {STORED:,}", frame, plain),
            slower(f"open to resume {RESUMED:,}", opened, read),
        ],
    )


def _in_turn(ours: Callable[[], object], stock: Callable[[], object]) -> tuple[Cost, Cost]:
    stock()  # pandas is imported now
    gc.collect()
    gc.freeze()  # what the table above has left behind is no part of this one
    return side_by_side(lambda: measure(ours), lambda: measure(stock), repeats=3)


def _line(number: int) -> bytes:
    import orjson

    usage = {
        role: {"calls": 5, "input_tokens": 9000, "cached_tokens": 0, "output_tokens": 600,
               "usd": 0.01186, "seconds": 1.5, "cache_hits": 0, "saved_usd": 0.0}
        for role in ("root", "sub")
    }  # fmt: skip
    record = Record(
        sample=f"needle-128k-{number}.0-5bc18e66",
        epoch=0,
        task="needle",
        cluster=f"needle-128k-{number // 4}-5bc18e66",
        length=128_000,
        status="scored",
        stop="submitted",
        score=0.5,
        official=0.5,
        robust=0.5,
        answer="Answer: 616",
        tokens=126_920,
        turns=5,
        seconds=0.7,
        working_s=0.7,
        usage=usage,
        trajectory=f"trajectories/needle-128k-{number}.0-5bc18e66.0.json.gz",
    )
    return orjson.dumps(record.to_json(), option=orjson.OPT_APPEND_NEWLINE)


def _frame(path: Path) -> object:
    import pandas

    return pandas.DataFrame(read_columns(path))


def _plain_frame(path: Path) -> object:
    import json

    import pandas

    return pandas.DataFrame([json.loads(line) for line in path.read_text().splitlines()])
