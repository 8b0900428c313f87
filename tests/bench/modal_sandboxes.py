"""Bench room `modal`: many Modal sandboxes at once, over the loopback, which is no Modal.

The server and its sandboxes are other processes: what is measured is what this machine does for
them. Latencies, where there are any, are those that were published of Modal, injected.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

from measure import Table, span

ROOT = Path(__file__).parents[2]
COUNT = int(os.environ.get("BENCH_MODAL_SANDBOXES", "200"))
CELLS = 10
CONTEXT_CHARS = 200_000
PUBLISHED_S = {"SandboxCreateV2": 1.4, "TaskExecStdinWrite": 0.12, "TaskExecStart": 0.12}
"""Call -> seconds, so that a start takes 1.4 s and an execute about 0.12 s: medians of 2026-08."""

PACES = (("no latency", {}, 1000.0), ("as published", PUBLISHED_S, 40.0))

SAMPLES = 10_000
LIFE_S = 120.0
"""Assumed life of a sandbox: a sample of the plan takes two minutes."""
TURNS = 8
PLANS = ((4.0, 100), (20.0, 500), (40.0, 2_000))
"""Creates a second, sandboxes at once: what a small account takes, and larger ones."""


class Found(NamedTuple):
    """What one case gave."""

    start_s: float
    start_cpu_s: float
    cells_s: float
    cells_cpu_s: float
    p50_s: float
    p95_s: float
    rss_bytes: float
    peak: int


def tables() -> list[Table]:
    found = {name: _measure(latency, pace) for name, latency, pace in PACES}
    fan_out = Table(
        title="Sandboxes on Modal",
        about=(
            f"{COUNT} sandboxes of the loopback (a test double on this machine, its processes not"
            f" counted), all live at once; then {CELLS} cells in each on {CONTEXT_CHARS:,}"
            " characters. CPU and memory are those of the host. As published: latencies of Modal"
            " injected."
        ),
        columns=("case", "starts/s", "CPU a start", "cells/s", "cell p50", "cell p95",
                 "CPU a cell", "memory a sandbox", "live at once"),
        rows=[_row(f"N={COUNT} {name}", each) for name, each in found.items()],
    )  # fmt: skip
    return [fan_out, _plan(found["as published"])]


def _row(case: str, found: Found) -> list[str]:
    cells = COUNT * CELLS
    return [
        case,
        f"{COUNT / found.start_s:.3g}",
        span(found.start_cpu_s / COUNT),
        f"{cells / found.cells_s:.3g}",
        span(found.p50_s),
        span(found.p95_s),
        span(found.cells_cpu_s / cells),
        f"{found.rss_bytes / COUNT / 1024:.0f} KiB",
        str(found.peak),
    ]


def _plan(found: Found) -> Table:
    from fleet_rlm.sandbox.modal_recipe import Recipe

    usd = SAMPLES * LIFE_S * Recipe().usd_per_s
    cpu_s = SAMPLES * (found.start_cpu_s / COUNT + TURNS * found.cells_cpu_s / (COUNT * CELLS))
    return Table(
        title=f"A plan for {SAMPLES:,} samples on Modal",
        about=(
            f"An estimate, not a measurement: each sample has a sandbox for {LIFE_S:.0f} s and runs"
            f" {TURNS} cells. Wall is the longer of two bounds, the pace of creates and the number"
            " at once. Dollars are of sandboxes at what is requested; CPU is what sandboxes take of"
            " the host, from the table above, without models and programs."
        ),
        columns=("creates/s, at once", "wall", "sandbox hours", "dollars", "host CPU"),
        rows=[
            [
                f"{pace:g}/s, {live:,}",
                _long(max(SAMPLES / pace, SAMPLES * LIFE_S / live)),
                f"{SAMPLES * LIFE_S / 3600:.0f}",
                f"${usd:.2f}",
                span(cpu_s),
            ]
            for pace, live in PLANS
        ],
    )


def _long(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def _measure(latency: dict[str, float], pace: float) -> Found:
    """In a process of its own: the SDK keeps its first connection."""
    with _server(latency) as (environment, ended):
        child = subprocess.run(
            [sys.executable, __file__, str(pace)],
            env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return Found(**json.loads(child.stdout), peak=ended()["peak"])


@contextmanager
def _server(latency: dict[str, float]) -> Iterator[tuple[dict[str, str], Callable[[], Any]]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.modal_loopback", "auto", json.dumps(latency)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    said: list[Any] = []
    try:
        yield json.loads(process.stdout.readline()), lambda: said[0]
    finally:
        process.stdin.close()
        said.append(json.loads(process.stdout.readline()))
        process.stdout.close()
        process.wait(60)


def _child(pace: float) -> None:
    from fleet_rlm import ModalInterpreter
    from fleet_rlm.sandbox.modal_box import ModalBoxes
    from fleet_rlm.sandbox.modal_create import prepare
    from fleet_rlm.sandbox.modal_recipe import Recipe

    recipe = Recipe(creates_per_s=pace)
    prepare(recipe)
    boxes = [ModalBoxes(recipe) for _ in range(COUNT)]
    sessions = [ModalInterpreter(sandbox=each) for each in boxes]
    text = "x" * CONTEXT_CHARS
    spent: list[float] = []
    lock = threading.Lock()

    def cells(session: Any) -> None:
        for _ in range(CELLS):
            start = time.perf_counter()
            session.execute("len(context)", {"context": text})
            with lock:
                spent.append(time.perf_counter() - start)

    memory = _rss()
    with ThreadPoolExecutor(COUNT) as pool:
        start_s, start_cpu_s = _timed(lambda: list(pool.map(lambda s: s.start(), sessions)))
        grown = _rss() - memory
        cells_s, cells_cpu_s = _timed(lambda: list(pool.map(cells, sessions)))
        list(pool.map(lambda s: s.shutdown(), sessions))
        list(pool.map(lambda b: b.close(), boxes))
    cuts = quantiles(spent, n=20)
    shown = Found(start_s, start_cpu_s, cells_s, cells_cpu_s, cuts[9], cuts[18], grown, 0)
    print(json.dumps({name: value for name, value in shown._asdict().items() if name != "peak"}))


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), _cpu()
    work()
    return time.perf_counter() - wall, _cpu() - cpu


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    _child(float(sys.argv[1]))
