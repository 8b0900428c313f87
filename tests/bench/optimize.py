"""Bench room `optimize`: the joint study beside stock MIPROv2, the pool beside stock bootstrap.

Writes `experiments/settings-vs-prompts/against-mipro.md`. Seeds that were measured with the very
same sources are read back from `runs/bench-optimize`, so an interrupted bench goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import dspy
import numpy as np
from measure import Table, span

from fleet_rlm.config import resolve
from fleet_rlm.ledger import Caps
from fleet_rlm.lm.connect import ModelSpec
from fleet_rlm.lm.simulated import LABEL, ORACLE_GUIDANCE
from fleet_rlm.lm.simulated.launch import simulated_server
from fleet_rlm.runner.arm import Arm
from fleet_rlm.runner.attempt import bench_context, score_answer
from fleet_rlm.runner.executor import StopFlag
from fleet_rlm.runner.progress import make_progress
from fleet_rlm.runner.record import last_records, total_usage
from fleet_rlm.runner.run import Effort, Plan, Whole, make_bench, run_arm
from fleet_rlm.runner.store import read_records
from fleet_rlm.sandbox.redact import Redactor
from fleet_rlm.search.candidates import as_it_is, read_candidates
from fleet_rlm.search.job import Compilation, prepare, run_job
from fleet_rlm.search.lab import Lab
from fleet_rlm.search.learn import Learning
from fleet_rlm.search.recipe import load_recipe
from fleet_rlm.search.spending import JobPurse
from fleet_rlm.search.stored import open_job
from fleet_rlm.search.writer import Writer
from fleet_rlm.statistics.paired import compare_paired
from fleet_rlm.suites.plan import PlannedSample

ROOT = Path(__file__).parents[2]
EXPERIMENT = ROOT / "experiments" / "settings-vs-prompts"
KEPT = ROOT / "runs" / "bench-optimize"

SEEDS = range(16)
MIPRO = {"num_candidates": 6, "max_bootstrapped_demos": 3}
MIPRO_TRIALS = 10
NEAR = 0.95
"""Share of the known optimum that counts as reached."""

BUDGETS = (600, 1_000, 2_000)
"""Calls after which the best program so far of either search is compared."""

POOL_SAMPLES, POOL_LATENCY_MS, POOL_IN_FLIGHT = 32, 300, 32

Row = dict[str, Any]


def tables() -> list[Table]:
    rows = [_kept(f"seed-{seed}", lambda seed=seed: _measure_seed(seed)) for seed in SEEDS]
    found = [_scores(rows), _verdicts(rows), _pool(_kept("pool", _measure_pool))]
    EXPERIMENT.joinpath("against-mipro.md").write_text(_page(found), encoding="utf-8")
    return found


def _page(found: Sequence[Table]) -> str:
    head = (
        "# Settings and prompts together, or prompts alone?\n\n"
        "<!-- Written by `make bench-optimize`. -->\n\n"
        f"{LABEL}. Its skill table is in docs/models.md; its optimum, guidance that brings out"
        " every ability, is known. The joint arm is `joint.toml`; the other is DSPy's MIPROv2 as it"
        " is, on the same program, samples, metric and model.\n\n"
    )
    return head + "\n".join(table.to_markdown() for table in found)


def _kept(name: str, make: Callable[[], Row]) -> Row:
    sources = [Path(__file__), EXPERIMENT / "joint.toml"]
    for room in ("search", "lm/simulated", "program", "suites", "scoring"):
        sources += sorted((ROOT / "fleet_rlm" / room).rglob("*.py"))
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    path = KEPT / digest / f"{name}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = make()
        path.write_text(json.dumps(found), encoding="utf-8")
        print(name, json.dumps(found), flush=True)
    row: Row = json.loads(path.read_text(encoding="utf-8"))
    return row


def _measure_seed(seed: int) -> Row:
    folder = Path(tempfile.mkdtemp(prefix="fleet-bench-"))
    try:
        job = _seeded_job(seed, folder / "joint")
        truth = _Truth(job, folder / "truth")
        oracle = truth.of(replace(job.arm, guidance=ORACLE_GUIDANCE))["score"]
        return {
            "seed": seed,
            "oracle": oracle,
            "baseline": truth.of(job.arm)["score"],
            "joint": _joint(job, truth),
            "mipro": _mipro(job, truth, seed),
        }
    finally:
        shutil.rmtree(folder)


def _seeded_job(seed: int, folder: Path) -> Compilation:
    recipe = load_recipe(EXPERIMENT / "joint.toml").model_copy(update={"seed": seed})
    job = prepare(recipe, resolve({"model": "sim"}, {}, folder.parent), folder.parent, folder)

    def seeded(spec: ModelSpec) -> ModelSpec:
        return replace(spec, seed=seed)

    return replace(
        job,
        arm=replace(job.arm, root=seeded(job.arm.root), sub=seeded(job.arm.sub)),
        proposer=seeded(job.proposer),
        models={name: seeded(spec) for name, spec in job.models.items()},
    )


class _Truth:
    """What programs really score: on the whole sealed test, which no search has seen."""

    def __init__(self, job: Compilation, folder: Path) -> None:
        self._job, self._folder = job, folder

    def of(self, arm: Arm) -> Row:
        plan = Plan(suite=self._job.suite, samples=self._job.split.test)
        folder = self._folder / arm.program_digest[:16] / arm.sub.name
        finished = run_arm(arm, plan, folder, effort=Effort(workers=1), progress=_silent())
        n = finished.summary["samples"]
        return {
            "score": finished.summary["score"],
            "usd": finished.summary["usage"]["usd"] / n,
        }


def _joint(job: Compilation, truth: _Truth) -> Row:
    found = run_job(job, {side: _silent() for side in ("baseline", "winner")})
    assert found is not None
    stored = open_job(str(job.folder), job.folder.parent)
    lab = _lab(job, read_candidates(job.folder / "candidates.json", job.identity()))
    assert stored.study is not None
    # Before the study the best so far is what did best on the training samples.
    path, best = [], -1.0
    for step in lab.candidates.passes:
        if step["score"] >= best:
            best = step["score"]
            path.append([step["calls"], truth.of(lab.arm_of(step["params"]))["score"]])
    path += [
        [step["calls"], truth.of(lab.arm_of(stored.trial(step["best"])["params"]))["score"]]
        for step in stored.study["history"]
    ]
    winner = stored.trial(found.winner["trial"])
    calls = path[-1][0]
    return {"calls": calls, "path": path, **truth.of(lab.arm_of(winner["params"]))}


def _lab(job: Compilation, candidates: Any) -> Lab:
    purse = JobPurse(job.folder / "unused.jsonl", Caps())
    return Lab(
        folder=job.folder,
        suite=job.suite,
        arm=job.arm,
        models=job.models,
        candidates=candidates or as_it_is(job.arm.make_program()),
        whole=Whole(purse=purse, stop=StopFlag()),
        concurrency=job.concurrency,
        epochs=1,
        say=lambda _: None,
    )


def _mipro(job: Compilation, truth: _Truth, seed: int) -> Row:
    """DSPy's MIPROv2 as it is; calls are counted where they end, at the model."""
    planned = {s.id: s for part in job.split for s in part}
    validation = {sample.id for sample in job.split.validation}
    bench = make_bench(job.arm, Redactor())
    calls_after: list[int] = []
    lock = threading.Lock()

    def calls() -> int:
        return sum(sum(lm.engine.kinds.values()) for lm in {bench.root, bench.sub})

    def metric(example: dspy.Example, prediction: dspy.Prediction, _trace: Any = None) -> float:
        if example.sample in validation:
            with lock:
                calls_after.append(calls())
        return _score(prediction, planned[example.sample])

    with _quiet(), bench_context(bench, _ledger()):
        tuner = dspy.MIPROv2(
            metric=metric,
            metric_threshold=job.recipe.threshold,
            auto=None,
            max_labeled_demos=0,
            num_threads=job.concurrency,
            seed=seed,
            verbose=False,
            **MIPRO,
        )
        compiled = tuner.compile(
            bench.program,
            trainset=_examples(job.split.train),
            valset=_examples(job.split.validation),
            num_trials=MIPRO_TRIALS,
            minibatch=False,
        )
    n = len(job.split.validation)
    best, path = -1.0, []
    for number, log in enumerate(list(compiled.trial_logs.values())):
        if log.get("full_eval_score", -1.0) > best:
            best = log["full_eval_score"]
            reached = calls_after[min(len(calls_after), (number + 1) * n) - 1]
            path.append([reached, truth.of(_arm_with(job, log["full_eval_program"]))["score"]])
    return {"calls": calls(), "path": path, **truth.of(_arm_with(job, compiled))}


def _arm_with(job: Compilation, program: dspy.Module) -> Arm:
    made = replace(job.arm.entry, make=lambda _guidance, _settings: program.deepcopy())
    return replace(job.arm, entry=made)


def _examples(samples: Sequence[PlannedSample]) -> list[dspy.Example]:
    made = []
    for planned in samples:
        built = planned.build()
        example = dspy.Example(context=built.context, query=built.query, sample=planned.id)
        made.append(example.with_inputs("context", "query"))
    return made


def _score(prediction: dspy.Prediction, planned: PlannedSample) -> float:
    answer = str(prediction.get("answer") or "")
    score: float = score_answer(planned, planned.build(), answer)["score"]
    return score


def _ledger() -> Any:
    from fleet_rlm.ledger import Ledger

    return Ledger()


def _silent() -> Any:
    return make_progress("none", "", io.StringIO())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logging.getLogger("dspy").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _scores(rows: Sequence[Row]) -> Table:
    shown = [
        [
            f"seed {row['seed']}",
            f"{row['baseline']:.3f}",
            f"{row['oracle']:.3f}",
            *(f"{row[arm]['score']:.3f}" for arm in ("mipro", "joint")),
            *(f"{row[arm]['usd']:.5f}" for arm in ("mipro", "joint")),
            *(f"{row[arm]['calls']:,}" for arm in ("mipro", "joint")),
            *(_shown_reach(row, arm) for arm in ("mipro", "joint")),
        ]
        for row in rows
    ]
    return Table(
        title="Prompts alone (MIPROv2) and prompts with settings (joint), simulated",
        about=(
            "RLM on quickstart tasks of 8k and 16k tokens; 24 samples to learn from, 48 to validate"
            f" on, 72 in a sealed test that gives the scores. MIPROv2: {MIPRO_TRIALS} trials, each"
            f" on the whole validation. Calls: of the whole search, proposals included, the test"
            f" not. To {NEAR:.0%}: calls until the best program so far really scores {NEAR:.0%} of"
            " the known optimum; '>' where it never did."
        ),
        columns=(
            "case", "baseline", "optimum", "score MIPROv2", "score joint", "$ MIPROv2", "$ joint",
            "calls MIPROv2", "calls joint", f"to {NEAR:.0%} MIPROv2", f"to {NEAR:.0%} joint",
        ),
        rows=shown,
    )  # fmt: skip


def _reach(row: Row, arm: str) -> int | None:
    """Calls until the best so far stays at `NEAR` of the optimum; None when it never does."""
    wanted = NEAR * row["oracle"]
    return next((calls for calls, score in row[arm]["path"] if score >= wanted), None)


def _shown_reach(row: Row, arm: str) -> str:
    reached = _reach(row, arm)
    return f">{row[arm]['calls']:,}" if reached is None else f"{reached:,}"


def _at(row: Row, arm: str, calls: int) -> float:
    """What the best program after so many calls really scores."""
    known = [score for spent, score in row[arm]["path"] if spent <= calls]
    return known[-1] if known else row["baseline"]


def _verdicts(rows: Sequence[Row]) -> Table:
    seeds = [str(row["seed"]) for row in rows]

    def difference(name: str, pairs: Iterator[tuple[float, float]]) -> list[str]:
        found = compare_paired(np.array([ours - theirs for ours, theirs in pairs]), seeds)
        low, high = found.ci or (float("nan"), float("nan"))
        shown = f"{found.difference:+.3f} ({low:+.3f} to {high:+.3f}), p = {found.p:.3g}"
        return [name, shown, "higher, p < 0.05"]

    dollars = [row["joint"]["usd"] / row["mipro"]["usd"] for row in rows]
    # A search that never got there is taken to have got there with its last call.
    reach = {
        arm: [_reach(row, arm) or row[arm]["calls"] for row in rows] for arm in ("joint", "mipro")
    }
    missed = {arm: sum(_reach(row, arm) is None for row in rows) for arm in reach}
    ratio = median(a / b for a, b in zip(reach["joint"], reach["mipro"], strict=True))
    calls = fmean(row["joint"]["calls"] / row["mipro"]["calls"] for row in rows)
    return Table(
        title="Joint beside MIPROv2 over seeds, simulated",
        about=(
            f"{len(rows)} seeds of the simulated model and of the samples; the search was tuned on"
            " sixteen others. Score: mean difference"
            " on the sealed test, 95 % interval over seeds, exact sign-flip p; after so many calls"
            " of the best program until then, which before the joint study is what did best on the"
            " training samples; p is not adjusted for the number of rows. The joint search made"
            f" {calls:.2f} times the calls of MIPROv2, on average."
        ),
        columns=("case", "found", "wanted"),
        rows=[
            *(
                difference(
                    f"score after {budget:,} calls, joint less MIPROv2",
                    ((_at(row, "joint", budget), _at(row, "mipro", budget)) for row in rows),
                )
                for budget in BUDGETS
            ),
            difference(
                "score at the end, joint less MIPROv2",
                ((row["joint"]["score"], row["mipro"]["score"]) for row in rows),
            ),
            [
                "dollars a sample, joint / MIPROv2 (mean of ratios)",
                f"{fmean(dollars):.3f}x",
                "<= 0.7x, score not lower",
            ],
            [
                f"calls to {NEAR:.0%} of the optimum (median of ratios)",
                f"{ratio:.2f}x; never there: joint {missed['joint']}, MIPROv2 {missed['mipro']}"
                f" of {len(rows)}",
                "<= 0.5x",
            ],
        ],
    )


def _measure_pool() -> Row:
    """The same training samples for worked examples, at a model that needs 300 ms a call."""
    with (
        simulated_server(latency_ms=POOL_LATENCY_MS) as server,
        tempfile.TemporaryDirectory(prefix="fleet-bench-") as name,
    ):
        folder = Path(name)
        recipe = load_recipe(EXPERIMENT / "joint.toml").model_copy(
            update={"optimizer": "bootstrap", "train": POOL_SAMPLES, "validation": 2, "test": 2}
        )
        env = {"DSPY_LM_API_BASE": server.url}
        flags = {"model": "openai/sim", "concurrency": POOL_IN_FLIGHT}
        job = prepare(recipe, resolve(flags, env, folder), folder, folder / "job")
        job.folder.mkdir()
        lab = _lab(job, None)
        writer = Writer(job.proposer, lab.whole, folder / "none", lambda _: None)
        started = time.monotonic()
        purse = lab.whole.purse
        learning = Learning(
            lab, recipe, job.split.train, writer, lambda: purse.usage, lambda _: None
        )
        pooled = learning.candidates()
        ours = time.monotonic() - started
        records = last_records(read_records(job.folder / "train" / "0" / "records.jsonl")).values()
        started = time.monotonic()
        kept = _stock_bootstrap(job)
        stock = time.monotonic() - started
    return {
        "ours_s": ours,
        "stock_s": stock,
        "calls": sum(total_usage(record.usage).calls for record in records),
        "passed": sum((record.score or 0) >= recipe.threshold for record in records),
        "sets": len(pooled.demos["generate_action"]) - 1,
        "stock_demos": kept,
    }


def _stock_bootstrap(job: Compilation) -> int:
    planned = {sample.id: sample for sample in job.split.train}
    bench = make_bench(job.arm, Redactor())

    def metric(example: dspy.Example, prediction: dspy.Prediction, _trace: Any = None) -> float:
        return _score(prediction, planned[example.sample])

    with _quiet(), bench_context(bench, _ledger()):
        tuner = dspy.BootstrapFewShot(
            metric=metric,
            metric_threshold=job.recipe.threshold,
            max_bootstrapped_demos=POOL_SAMPLES,  # all of them, as the pool does
            max_labeled_demos=0,
        )
        compiled = tuner.compile(bench.program, trainset=_examples(job.split.train))
    return len(compiled.generate_action.demos)


def _pool(found: Row) -> Table:
    ratio = found["ours_s"] / found["stock_s"]
    return Table(
        title="Worked examples from one pass over training samples, simulated",
        about=(
            f"{POOL_SAMPLES} samples, a model over HTTP that needs {POOL_LATENCY_MS} ms a call,"
            f" {POOL_IN_FLIGHT} samples in flight, beside DSPy's BootstrapFewShot on all of them."
            f" {found['calls']} calls; {found['passed']} samples passed. Wanted: at most 0.15x."
        ),
        columns=("case", "pool", "stock", "ratio"),
        rows=[
            [
                f"C={POOL_IN_FLIGHT} L={POOL_LATENCY_MS / 1000:g}",
                span(found["ours_s"]),
                span(found["stock_s"]),
                f"{ratio:.3f}x",
            ]
        ],
    )


if __name__ == "__main__":
    # One seed by itself, for machines that have cores to spare.
    seed = int(os.environ["BENCH_SEED"])
    _kept(f"seed-{seed}", lambda: _measure_seed(seed))
