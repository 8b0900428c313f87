"""Bench room `sandbox`: fleet_rlm.LocalInterpreter beside dspy.LocalInterpreter, which isolates
nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import dspy
from measure import FASTER, Cost, Table, faster, measure, side_by_side

import fleet_rlm

LINE = "The quick brown fox jumps over item 12345 and says: ok.\n"
CELL = "n = len(context); print(n)"
CELLS = 20
STARTS = 10
CALLS = 300
PARALLEL = 64
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
    cases: tuple[tuple[str, Callable[[Make], Cost], int], ...] = (
        ("start to first result", _start, 5),
        ("execute p50", _execute, 5),
        ("tool call p50", _tool_call, 5),
        (f"{CELLS} executes on 50 MB", _large_context, 3),
        (f"{PARALLEL} sessions at once", _parallel, 3),
    )
    return [
        Table(
            title="Sessions",
            about=(
                "Medians of 3 to 5. Stock is `dspy.LocalInterpreter`, an ordinary process that is"
                f" no sandbox. Start: from the warm supervisor, mean of {STARTS} sessions."
                f" Executes on 50 MB print the length of that input, {CELLS} times in one session."
                f" {PARALLEL} sessions at once: all of them start and do the same on 1 MB."
            ),
            columns=FASTER,
            rows=[_compare(*case) for case in cases],
        )
    ]


def _compare(case: str, work: Callable[[Make], Cost], repeats: int) -> list[str]:
    ours, stock = ARMS
    return faster(case, *side_by_side(lambda: work(ours), lambda: work(stock), repeats=repeats))


def _start(make: Make) -> Cost:
    sessions = [make() for _ in range(STARTS)]
    cost = measure(lambda: [session.execute("6 * 7") for session in sessions], per=STARTS)
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


def _large_context(make: Make) -> Cost:
    text = _text(50_000_000)
    session = make()
    session.execute("1")
    cost = measure(lambda: _read_often(session, text))
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


def _read_often(session: Any, text: str) -> None:
    for _ in range(CELLS):
        if int(session.execute(CELL, {"context": text})) != len(text):
            raise SystemExit(f"{type(session)} lost a part of its input")


def _text(size: int) -> str:
    return (LINE * (size // len(LINE) + 1))[:size]
