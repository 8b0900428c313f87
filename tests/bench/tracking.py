"""Tracing: a call and a large context beside MLflow's own autolog, and what a run pays for it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from measure import Table, measure, span, times

CONTEXT_CHARS = 2_000_000
TURNS = 8
SAMPLES = 512
IN_FLIGHT = 32
REPEATS = 3
ARMS = ("none", "fleet-rlm", "mlflow")


class Work(NamedTuple):
    title: str
    answers: int
    """Measured; a tenth as many warm up."""

    model_calls: int
    """Of an answer."""


WORKS = {
    "calls": Work("dspy.Predict", 200, 1),
    "rlm": Work("fleet_rlm.RLM", 20, TURNS + 2 * (TURNS - 1)),
}


def tables() -> list[Table]:
    with _store() as template:
        return [*_traces(template), _runs(template)]


def _traces(template: Path) -> tuple[Table, Table]:
    found = {
        work: {arm: [_child(template, work, arm) for _ in range(REPEATS)] for arm in ARMS}
        for work in WORKS
    }
    cost = {
        work: {arm: _median([one["cpu_s"] for one in of[arm]]) / WORKS[work].model_calls
               for arm in ARMS}
        for work, of in found.items()
    }  # fmt: skip
    rows = []
    for work, cpu in cost.items():
        ours, stock = (cpu[arm] - cpu["none"] for arm in ARMS[1:])
        rows.append([WORKS[work].title, *map(span, (cpu["none"], ours, stock)), times(stock, ours)])
    ours, stock = (_median([one["bytes"] for one in found["rlm"][arm]]) for arm in ARMS[1:])
    calls = Table(
        title="A traced model call",
        about="Processor time that tracing adds to a model call, all threads, traces written, one"
        f" answer after the other, median of {REPEATS}; stock is mlflow.dspy.autolog. The RLM"
        f" answers over {CONTEXT_CHARS:,} characters in {TURNS} turns, {TURNS - 1} of them with two"
        " sub-queries.",
        columns=("case", "untraced call", "fleet-rlm adds", "stock adds", "less"),
        rows=rows,
    )
    sizes = Table(
        title="A trace of an RLM over 2 MB",
        about="What one trace of that RLM takes in the store and its files.",
        columns=("case", "fleet-rlm", "stock", "less"),
        rows=[["bytes", f"{ours:,.0f}", f"{stock:,.0f}", times(stock, ours)]],
    )
    return calls, sizes


def _runs(template: Path) -> Table:
    sampled, off = [], []
    for _ in range(REPEATS):
        sampled.append(_run(template, "sampled"))
        off.append(_run(template, "none"))
    rows = []
    for place, part in enumerate(("the run", "the whole command")):
        ours, base = (_median([found[place] for found in costs]) for costs in (sampled, off))
        more = f"{100 * (ours / base - 1):+.1f} %"
        rows.append([f"C={IN_FLIGHT} N={SAMPLES}, {part}", span(ours), span(base), more])
    return Table(
        title="A run with sampled traces",
        about=f"fleet-eval run needle, {SAMPLES} samples, {IN_FLIGHT} in flight, mirrored to an"
        f" embedded store, median of {REPEATS} in turn: its own wall_s, and the command from start"
        " to end, which waits for the mirror.",
        columns=("case", "--trace sampled", "--trace none", "more"),
        rows=rows,
    )


def _run(template: Path, trace: str) -> tuple[float, float]:
    """Seconds of the run, and of the command."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(template, Path(folder) / "mlflow.db")
        command = [sys.executable, "-m", "fleet_rlm.cli.eval", "run", "needle", "--out", "run"]
        command += ["--set", "lengths=[8000]", "--set", f"windows={SAMPLES // 2}"]
        command += ["--limit", str(SAMPLES), "--concurrency", str(IN_FLIGHT), "--trace", trace]
        env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}

        def work() -> None:
            subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)

        whole = measure(work).wall_s
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
        return summary["wall_s"], whole


@contextmanager
def _store() -> Iterator[Path]:
    """A prepared, empty store to copy."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mlflow.db"
        code = (
            f"from fleet_rlm.tracking.store import prepare_store; prepare_store('sqlite:///{file}')"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        yield file


def _child(template: Path, work: str, arm: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(template, Path(folder) / "mlflow.db")
        done = subprocess.run(
            [sys.executable, __file__, work, arm],
            cwd=folder,
            env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"},
            check=True,
            capture_output=True,
            text=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        with sqlite3.connect(f"{folder}/mlflow.db") as store:
            query = "SELECT sum(length(content)), count(DISTINCT trace_id) FROM spans"
            stored, traces = store.execute(query).fetchone()
        files = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        files -= (Path(folder) / "mlflow.db").stat().st_size
        return found | {"bytes": ((stored or 0) + files) / max(traces, 1)}


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _work(work: str, arm: str) -> None:
    """What a child does: an untraced warm-up, then the traced work, its processor time printed."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import dspy
    import mlflow
    from scripted import action, scripted_lm

    import fleet_rlm
    from fleet_rlm.tracking import autolog

    def script(prompt: str, _number: int) -> str:
        if "REPL" not in prompt:
            return "[[ ## answer ## ]]\nblue\n\n[[ ## completed ## ]]"
        turn = prompt.rpartition("iteration ## ]]\n")[2].partition("/")[0]
        if int(turn) < TURNS:
            return action("print(llm_query_batched(['a' * 2000, 'b' * 2000]), context[:3000])")
        return action("SUBMIT('blue')")

    dspy.configure(lm=scripted_lm(script), callbacks=[])
    if work == "calls":
        program, inputs = dspy.Predict("question -> answer"), {"question": "Which?"}
    else:
        program = fleet_rlm.RLM("context, query -> answer", max_iters=TURNS + 2)
        context = "The sky is blue. " * (CONTEXT_CHARS // 17)
        inputs = {"context": context, "query": "Which colour?"}
    answers = WORKS[work].answers
    program(**inputs)
    mlflow.set_experiment("bench")
    tracer = None
    if arm == "fleet-rlm":
        tracer = autolog(experiment="bench")
    elif arm == "mlflow":
        mlflow.dspy.autolog(silent=True)
    for _ in range(answers // 10):
        program(**inputs)
    _flush(tracer, arm)
    started = time.process_time()
    for _ in range(answers):
        program(**inputs)
    _flush(tracer, arm)
    print(json.dumps({"cpu_s": (time.process_time() - started) / answers}))


def _flush(tracer, arm: str) -> None:
    if tracer:
        assert tracer.flush(60)
    elif arm == "mlflow":
        import mlflow

        mlflow.flush_trace_async_logging()


if __name__ == "__main__":
    _work(*sys.argv[1:])
