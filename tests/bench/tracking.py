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

from measure import Cost, Table, measure, span, times

CALLS = 200
CONTEXT_CHARS = 2_000_000
TURNS = 8
SAMPLES = 512
IN_FLIGHT = 32
REPEATS = 3
ARMS = ("none", "fleet-rlm", "mlflow")


def tables() -> list[Table]:
    with _store() as template:
        return [_calls(template), _contexts(template), _runs(template)]


def _calls(template: Path) -> Table:
    cpu = {arm: _median([_child(template, "calls", arm)["cpu_s"] for _ in range(REPEATS)])
           for arm in ARMS}  # fmt: skip
    ours, stock = (cpu[arm] - cpu["none"] for arm in ARMS[1:])
    row = ["dspy.Predict", *map(span, (cpu["none"], ours, stock)), times(stock, ours)]
    return Table(
        title="A traced model call",
        about=f"Processor time that tracing adds to a call, all threads, traces written: {CALLS}"
        f" calls of dspy.Predict one after the other, median of {REPEATS}; stock is"
        " mlflow.dspy.autolog.",
        columns=("case", "untraced call", "fleet-rlm adds", "stock adds", "less"),
        rows=[row],
    )


def _contexts(template: Path) -> Table:
    ours, stock = (_child(template, "rlm", arm) for arm in ARMS[1:])
    none = _child(template, "rlm", "none")
    rows = [
        ["bytes", f"{ours['bytes']:,.0f}", f"{stock['bytes']:,.0f}",
         times(stock["bytes"], ours["bytes"])],
        ["CPU", *(span(arm["cpu_s"] - none["cpu_s"]) for arm in (ours, stock)),
         times(stock["cpu_s"] - none["cpu_s"], ours["cpu_s"] - none["cpu_s"])],
    ]  # fmt: skip
    return Table(
        title="A trace of an RLM over 2 MB",
        about=f"One question over {CONTEXT_CHARS:,} characters, {TURNS} turns with two sub-queries"
        " each: what one trace takes in the store and its files, and the processor time it adds.",
        columns=("case", "fleet-rlm", "stock", "less"),
        rows=rows,
    )


def _runs(template: Path) -> Table:
    sampled, off = [], []
    for _ in range(REPEATS):
        sampled.append(_run(template, "sampled"))
        off.append(_run(template, "none"))
    ours, base = (_median([cost.wall_s for cost in costs]) for costs in (sampled, off))
    row = [
        f"C={IN_FLIGHT} N={SAMPLES}",
        span(ours),
        span(base),
        f"{100 * (ours / base - 1):+.1f} %",
    ]
    return Table(
        title="A run with sampled traces",
        about=f"fleet-eval run needle, {SAMPLES} samples, {IN_FLIGHT} in flight, mirrored to an"
        f" embedded store: the whole command, median of {REPEATS} in turn.",
        columns=("case", "--trace sampled", "--trace none", "more"),
        rows=[row],
    )


def _run(template: Path, trace: str) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(template, Path(folder) / "mlflow.db")
        command = [sys.executable, "-m", "fleet_rlm.cli.eval", "run", "needle", "--out", "run"]
        command += ["--set", "lengths=[8000]", "--set", f"windows={SAMPLES // 2}"]
        command += ["--limit", str(SAMPLES), "--concurrency", str(IN_FLIGHT), "--trace", trace]
        env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}

        def work() -> None:
            subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)

        return measure(work)


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
            (stored,) = store.execute("SELECT sum(length(content)) FROM spans").fetchone()
        files = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        files -= (Path(folder) / "mlflow.db").stat().st_size
        return found | {"bytes": (stored or 0) + files}


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
        program, inputs, repeats = dspy.Predict("question -> answer"), {"question": "Which?"}, CALLS
    else:
        context = "The sky is blue. " * (CONTEXT_CHARS // 17)
        program, inputs, repeats = fleet_rlm.RLM("context, query -> answer", max_iters=TURNS + 2), {
            "context": context, "query": "Which colour?",
        }, 1  # fmt: skip
    program(**inputs)
    mlflow.set_experiment("bench")
    tracer = None
    if arm == "fleet-rlm":
        tracer = autolog(experiment="bench")
    elif arm == "mlflow":
        mlflow.dspy.autolog(silent=True)
    program(**inputs)
    _flush(tracer, arm)
    started = time.process_time()
    for _ in range(repeats):
        program(**inputs)
    _flush(tracer, arm)
    print(json.dumps({"cpu_s": (time.process_time() - started) / repeats}))


def _flush(tracer, arm: str) -> None:
    if tracer:
        assert tracer.flush(60)
    elif arm == "mlflow":
        import mlflow

        mlflow.flush_trace_async_logging()


if __name__ == "__main__":
    _work(*sys.argv[1:])
