"""Bench room `sandbox`: fleet_rlm.LocalInterpreter beside the interpreters of DSPy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import dspy
from dspy.primitives.code_interpreter import CodeInterpreterError
from measure import FASTER, Cost, Table, faster, measure, memory_mb, side_by_side, span

import fleet_rlm

LINE = "The quick brown fox jumps over item 12345 and says: ok.\n"
CELL = "n = len(context); print(n)"
CELLS = 20
STARTS = 10
CALLS = 300
PARALLEL = 64
LARGE_MB = 400
ARMS = (fleet_rlm.LocalInterpreter, dspy.LocalInterpreter)

TIMED_CALLS = f"""\
import statistics, time
spent = []
for number in range({CALLS}):
    start = time.perf_counter()
    add(number, 1)
    spent.append(time.perf_counter() - start)
print(statistics.median(spent))
"""

Make = Callable[..., Any]
"""Makes an interpreter; it starts with its first `execute`."""


def tables() -> list[Table]:
    for make in ARMS:
        _start(make)  # the supervisor that sessions fork from runs from now on
    return [_sessions(), _memory(), *_beside_deno()]


def _sessions() -> Table:
    cases: tuple[tuple[str, Callable[[Make], Cost], int], ...] = (
        ("start to first result", _start, 5),
        ("execute p50", _execute, 5),
        ("tool call p50", _tool_call, 5),
        (f"{CELLS} executes on 50 MB", _large_context, 3),
        (f"{CELLS} executes on 500 documents", _documents, 3),
        (f"{PARALLEL} sessions at once", _parallel, 3),
    )
    why = _why_no_deno()
    missing = f" `dspy.PythonInterpreter` has no rows: it did not start ({why})." if why else ""
    return Table(
        title="Sessions",
        about=(
            "Medians of 3 to 5. Stock is `dspy.LocalInterpreter`, an ordinary process that is"
            f" no sandbox. Start: from the warm supervisor, mean of {STARTS} sessions."
            f" Executes on 50 MB print the length of that input, {CELLS} times in one session;"
            " the same as a list of 500 documents of 100 kB."
            f" {PARALLEL} sessions at once: all of them start and do the same on 1 MB.{missing}"
        ),
        columns=FASTER,
        rows=[_compare(*case, ARMS) for case in cases],
    )


def _compare(
    case: str, work: Callable[[Make], Cost], repeats: int, arms: tuple[Make, Make]
) -> list[str]:
    ours, stock = arms
    return faster(case, *side_by_side(lambda: work(ours), lambda: work(stock), repeats=repeats))


def _memory() -> Table:
    ours, stock = (_idle_mb(make) for make in ARMS)
    together = _shared_mb()
    large, printed = _in_a_fresh_process("large"), _in_a_fresh_process("printed")
    each = f"{(together - LARGE_MB) / PARALLEL:.1f}"
    return Table(
        title="Memory",
        about=(
            f"One run, in MB. Sandboxes: of all {PARALLEL} sessions and the processes that they"
            f" fork from, a page that several share counted once, which only root may look at."
            f" Stock is `dspy.LocalInterpreter`, which has no memory in common. Host: by how much"
            f" the peak of a process that does this and nothing else grows, the {LARGE_MB} MB of"
            f" its own text included; the text is read {CELLS} times in one session."
        ),
        columns=("case", "sandboxes", "a session", "stock a session", "host", "time"),
        rows=[
            [f"{PARALLEL} sessions", f"{ours:.0f}", *_each(ours, stock), "-", "-"],
            [f"{PARALLEL} sessions share {LARGE_MB} MB", f"{together:.0f}", each, "-", "-", "-"],
            [f"{CELLS} executes on {LARGE_MB} MB", "-", "-", "-", *large],
            ["1 GB printed", "-", "-", "-", *printed],
        ],
    )


def _each(*totals: float) -> list[str]:
    return [f"{total / PARALLEL:.1f}" for total in totals]


@contextmanager
def _open(make: Make, code: str, **variables: Any) -> Iterator[None]:
    """PARALLEL sessions that have run a cell."""
    sessions = [make() for _ in range(PARALLEL)]
    with ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(lambda session: session.execute(code, variables), sessions))
    yield
    for session in sessions:
        session.shutdown()


def _idle_mb(make: Make) -> float:
    before = memory_mb(own=False)
    with _open(make, "6 * 7"):
        return memory_mb(own=False) - before


def _shared_mb() -> float:
    before, text = memory_mb(own=False), _text(LARGE_MB * 1_000_000)
    with _open(fleet_rlm.LocalInterpreter, "len(context)", context=text):
        return memory_mb(own=False) - before


def _in_a_fresh_process(work: str) -> list[str]:
    """By how many MB the host grew, and how long it took."""
    command = [sys.executable, __file__, work]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    grown_mb, wall_s = json.loads(done.stdout)
    return [f"{grown_mb:.0f}", span(wall_s)]


def _host_growth(work: str) -> None:
    """In the fresh process."""
    session = fleet_rlm.LocalInterpreter()
    session.execute("1")
    before, start = _peak_mb(), time.perf_counter()
    if work == "printed":
        session.execute("piece = 'z' * 1_000_000\nfor _ in range(1_000): print(piece)")
    else:
        _read_often(session, _text(LARGE_MB * 1_000_000))
    print(json.dumps([_peak_mb() - before, time.perf_counter() - start]))
    session.shutdown()


def _peak_mb() -> float:
    # Not ru_maxrss: a process that was just started has that of its parent.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _beside_deno() -> list[Table]:
    """Beside DSPy's default, where that starts: it loads a part of itself from the net."""
    arms = (fleet_rlm.LocalInterpreter, dspy.PythonInterpreter)
    if _why_no_deno():
        return []
    cases: tuple[tuple[str, Callable[[Make], Cost]], ...] = (
        ("start to first result", lambda make: _start(make, 2)),
        ("execute p50", _execute),
        ("tool call p50", _tool_call),
        (f"{CELLS} executes on 1 MB", lambda make: _large_context(make, 1)),
    )
    return [
        Table(
            title="Beside Deno",
            about="Medians of 3. Stock is `dspy.PythonInterpreter`: WASM in a process of Deno's.",
            columns=FASTER,
            rows=[_compare(case, work, 3, arms) for case, work in cases],
        )
    ]


@cache
def _why_no_deno() -> str:
    """Nothing when it starts."""
    try:
        dspy.PythonInterpreter().execute("1")
    except CodeInterpreterError as error:
        return re.split(r"[:.]\s", str(error))[0]
    return ""


def _start(make: Make, starts: int = STARTS) -> Cost:
    sessions = [make() for _ in range(starts)]
    cost = measure(lambda: [session.execute("6 * 7") for session in sessions], per=starts)
    for session in sessions:
        session.shutdown()
    return cost


def _execute(make: Make) -> Cost:
    session = make()
    session.execute("1")
    spent: list[float] = []

    def work() -> None:
        for _ in range(CALLS):
            start = time.perf_counter()
            session.execute("6 * 7")
            spent.append(time.perf_counter() - start)

    cost = measure(work, per=CALLS)
    session.shutdown()
    return Cost(median(spent), cost.cpu_s)


def _tool_call(make: Make) -> Cost:
    session = make(tools={"add": lambda a, b: a + b})
    session.execute("1")
    shown: list[object] = []
    cost = measure(lambda: shown.append(session.execute(TIMED_CALLS)), per=CALLS)
    session.shutdown()
    return Cost(float(str(shown[0])), cost.cpu_s)


def _large_context(make: Make, megabytes: int = 50) -> Cost:
    return _in_one_session(make, _text(megabytes * 1_000_000))


def _documents(make: Make) -> Cost:
    return _in_one_session(make, [f"{number} {_text(100_000)}" for number in range(500)])


def _in_one_session(make: Make, context: str | list[str]) -> Cost:
    session = make()
    session.execute("1")
    cost = measure(lambda: _read_often(session, context))
    session.shutdown()
    return cost


def _parallel(make: Make) -> Cost:
    text = _text(1_000_000)

    def one_session(_: int) -> None:
        session = make()
        _read_often(session, text)
        session.shutdown()

    with ThreadPoolExecutor(PARALLEL) as pool:
        return measure(lambda: list(pool.map(one_session, range(PARALLEL))))


def _read_often(session: Any, context: str | list[str]) -> None:
    for _ in range(CELLS):
        if int(session.execute(CELL, {"context": context})) != len(context):
            raise SystemExit(f"{type(session)} lost a part of its input")


def _text(size: int) -> str:
    return LINE * (size // len(LINE))


if __name__ == "__main__":
    _host_growth(*sys.argv[1:])
