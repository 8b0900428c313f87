"""Bench room `runner`: a run of ours beside dspy.Evaluate, dspy.RLM and dspy.LocalInterpreter."""

from __future__ import annotations

import heapq
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import dspy
from dspy.lm15 import Request, Response
from measure import Cost, Table, measure, times

from fleet_rlm.ledger import Limits
from fleet_rlm.lm.connect import specify
from fleet_rlm.lm.metered import MeteredLM
from fleet_rlm.lm.simulated import SimulatedEngine
from fleet_rlm.program.find import find_program
from fleet_rlm.program.recursion import RecursionSettings
from fleet_rlm.program.registry import AnswerQuery
from fleet_rlm.runner.arm import Arm
from fleet_rlm.runner.attempt import Job, Outcome, attempt
from fleet_rlm.runner.executor import StopFlag, execute
from fleet_rlm.runner.run import make_bench
from fleet_rlm.runner.store import RunStore
from fleet_rlm.sandbox import levels
from fleet_rlm.sandbox.redact import Redactor
from fleet_rlm.scoring import score
from fleet_rlm.suites.plan import PlannedSample
from fleet_rlm.suites.suite import load_suite

EVALS = Path(__file__).parents[2] / "evals"
LATENCY_S = 0.3
CASES = ((8, 32), (32, 96))
"""Samples in flight, samples in all."""
REPEATS = 3
SAMPLE_SETTING = "bench_sample"


class SlowEngine:
    """The simulated model with a service's latency; counts the calls of each sample."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._engine = SimulatedEngine()
        self._lock = threading.Lock()

    def complete(self, request: Request) -> Response:
        with self._lock:
            self.calls[dspy.settings.get(SAMPLE_SETTING)] += 1
        time.sleep(LATENCY_S)
        return self._engine.complete(request)

    def close(self) -> None:
        self._engine.close()

    def __deepcopy__(self, _memo: object) -> SlowEngine:
        return self


class Result(NamedTuple):
    """One arm on one case."""

    efficiency: float
    cost: Cost
    calls: int


Run = Callable[[Sequence[PlannedSample], int, SlowEngine], None]


def tables() -> list[Table]:
    dspy.disable_logging()
    suite = load_suite(EVALS / "needle.toml")
    samples = suite.plan()
    for sample in samples:
        sample.build()  # the plan remembers the contexts, so no arm is timed with writing them
    for run in (_run_ours, _run_stock):
        run(samples[:2], 2, SlowEngine())
    return [
        Table(
            title="RLM samples",
            about=(
                f"Medians of {REPEATS}. Needle samples of 8k to 128k tokens, one call of the"
                f" simulated model L = {LATENCY_S} s, C samples in flight. fleet-rlm: its executor,"
                " run folder, `fleet_rlm.RLM` and sandbox; stock: `dspy.Evaluate`, `dspy.RLM` and"
                " `dspy.LocalInterpreter`. Efficiency is ideal wall / measured wall, ideal being"
                " that samples take L a call and nothing else; CPU is that of all processes, the"
                " simulated model's included, a call."
            ),
            columns=(
                "case",
                "calls",
                "efficiency",
                "stock calls",
                "stock efficiency",
                "CPU a call",
                "stock CPU a call",
                "less CPU",
            ),
            rows=[_compare(samples[:count], in_flight) for in_flight, count in CASES],
        )
    ]


def _compare(samples: Sequence[PlannedSample], in_flight: int) -> list[str]:
    found = [
        [_measure(run, samples, in_flight) for run in (_run_ours, _run_stock)]
        for _ in range(REPEATS)
    ]
    cells: list[str] = []
    a_call: list[float] = []
    for results in zip(*found, strict=True):
        a_call.append(median(result.cost.cpu_s / result.calls for result in results))
        efficiency = median(result.efficiency for result in results)
        cells += [f"{results[0].calls}", f"{efficiency:.2f}"]
    cpu = [f"{seconds * 1000:.1f} ms" for seconds in a_call]
    return [f"C={in_flight} L={LATENCY_S}", *cells, *cpu, times(a_call[1], a_call[0])]


def _measure(run: Run, samples: Sequence[PlannedSample], in_flight: int) -> Result:
    engine = SlowEngine()
    cost = measure(lambda: run(samples, in_flight, engine))
    ideal = _ideal_s([engine.calls[sample.id] for sample in samples], in_flight)
    return Result(ideal / cost.wall_s, cost, sum(engine.calls.values()))


def _ideal_s(calls: Sequence[int], in_flight: int) -> float:
    """Wall time of samples that start in order as soon as a place is free and only wait."""
    free_at = [0.0] * in_flight
    for count in calls:
        heapq.heapreplace(free_at, free_at[0] + count * LATENCY_S)
    return max(free_at)


def _run_ours(samples: Sequence[PlannedSample], in_flight: int, engine: SlowEngine) -> None:
    sim = specify("sim", env={})
    arm = Arm(
        program="rlm",
        entry=find_program("rlm"),
        settings=RecursionSettings(),
        root=sim,
        sub=sim,
        sandbox=levels.choose(),
        limits=Limits(),
    )
    root, sub = (
        MeteredLM("sim", role=role, price=sim.price, engine=engine, cache=False)
        for role in ("root", "sub")
    )
    bench = replace(make_bench(arm, Redactor.from_env({})), root=root, sub=sub)

    with tempfile.TemporaryDirectory() as folder, RunStore(Path(folder)) as store:

        def work(job: Job) -> Outcome:
            with dspy.context(**{SAMPLE_SETTING: job.planned.id}):
                outcome = attempt(job, bench)
            store.write_trajectory(job.planned.id, outcome.trajectory)
            return outcome

        def record(outcome: Outcome, _in_flight: int) -> None:
            if outcome.record.error:
                raise SystemExit(outcome.record.error.message)
            store.append(outcome.record)

        jobs = [Job(sample, 0) for sample in samples]
        execute(jobs, work, record, concurrency=in_flight, stop=StopFlag())


class _Named(dspy.Module):
    """Stock `dspy.RLM`, which says which sample it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.rlm = dspy.RLM(AnswerQuery, interpreter_factory=dspy.LocalInterpreter)

    def forward(self, sample: str, **inputs: Any) -> dspy.Prediction:
        with dspy.context(**{SAMPLE_SETTING: sample}):
            return self.rlm(**inputs)


def _run_stock(samples: Sequence[PlannedSample], in_flight: int, engine: SlowEngine) -> None:
    planned = {sample.id: sample for sample in samples}

    def metric(example: dspy.Example, prediction: dspy.Prediction) -> float:
        sample = planned[example.sample]
        question = sample.build().question
        return score(prediction.answer, question, task_rule=sample.rule).robust

    devset = []
    for sample in samples:
        built = sample.build()
        example = dspy.Example(sample=sample.id, context=built.context, query=built.query)
        devset.append(example.with_inputs("sample", "context", "query"))
    evaluate = dspy.Evaluate(devset=devset, metric=metric, num_threads=in_flight, max_errors=1)
    with dspy.context(lm=dspy.LM("sim", engine=engine, cache=False)):
        evaluate(_Named())
