"""One context, many sessions: the box holds it once, and never beside that of another sample."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet_rlm.errors import SandboxError
from fleet_rlm.sandbox import levels, local
from fleet_rlm.sandbox.interpreter import LocalInterpreter
from fleet_rlm.sandbox.session import SHARED_BYTES, Session

MB = 10**6
HOLDER = "import os; os.getppid()"
HELD = """
import sys
frame = sys._getframe()
while "shared" not in frame.f_locals or not hasattr(frame.f_locals["shared"], "inputs"):
    frame = frame.f_back
[given.fresh()[:5] for given in frame.f_locals["shared"].inputs]
"""
"""Guest code that finds in its own process what it shares with others."""


@pytest.fixture(scope="module")
def box() -> Iterator[local.LocalSandbox]:
    with local.LocalSandbox(levels.choose("landlock")) as sandbox:
        yield sandbox


def text(start: str, size: int = 2 * SHARED_BYTES) -> str:
    return start + "words " * (size // 6)


def processes(box: local.LocalSandbox) -> list[int]:
    """Those of the box."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) == box.pid and state != "Z":
            found.append(int(path.parent.name))
    return found


def memory_mb(box: local.LocalSandbox) -> float:
    """Of all its processes, a page that several share counted once."""
    kilobytes = 0
    for pid in processes(box):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        kilobytes += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes / 1000


def open_many(box: local.LocalSandbox, count: int, code: str, **variables: Any) -> list[Any]:
    """Sessions with the value of their first cell, all opened at once."""
    found: list[Any] = []

    def work() -> None:
        session = box.open()
        found.append((session, session.execute(code, variables).value))

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == count
    return found


def wait_until(condition: Any) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never came true")


def test_sessions_share_one_context(box: local.LocalSandbox) -> None:
    context, before = text("hello", 80 * MB), len(processes(box))
    opened = open_many(box, 16, f"{HOLDER}; [os.getppid(), len(context)]", context=context)
    sessions: list[Session] = [session for session, _ in opened]
    holders = {holder for _, (holder, _) in opened}
    assert {size for _, (_, size) in opened} == {len(context)}
    assert len(holders) == 1
    assert sum(session.bytes_sent for session in sessions) < 1.01 * len(context)
    with_name = sessions[0].execute("document is not None and len(document)", {"document": context})
    assert with_name.value == len(context)
    if os.geteuid() == 0:  # others may not look at how much memory a locked process has
        assert memory_mb(box) < 80 + 40 + 17 * 6 + 80  # and the session that has it under two names
    for session in sessions:
        session.close()
    wait_until(lambda: len(processes(box)) == before)


def test_samples_never_share(box: local.LocalSandbox) -> None:
    """Not even a part: who has these very inputs is in, and nobody else."""
    one, two = text("first"), text("other")
    rows = [{"n": i, "text": "x" * 90} for i in range(90_000)]
    holders: dict[str, set[int]] = {}
    sessions = []
    for name, variables, held in (
        ("one", {"context": one}, ["first"]),
        ("two", {"context": two}, ["other"]),
        ("one", {"document": "first" + one[5:], "query": "small"}, ["first"]),
        ("both", {"context": one, "more": two}, ["first", "other"]),
        ("none", {"context": "small"}, []),
    ):
        session = box.open()
        sessions.append(session)
        assert session.execute(HELD, variables).value == held
        holders.setdefault(name, set()).add(session.execute(HOLDER).value)
    assert [len(found) for found in holders.values()] == [1, 1, 1, 1]
    assert len(set.union(*holders.values())) == 4
    lists = open_many(box, 2, f"rows[1].clear(); {HOLDER}", rows=rows)
    assert lists[0][1] == lists[1][1]
    assert sum(session.bytes_sent for session, _ in lists) < 1.5 * 90_000 * 100
    for session, _ in lists:
        assert session.execute("rows[1]['n']", {"rows": rows}).value == 1
    papers = open_many(box, 2, HOLDER, papers=[text(str(n), MB) for n in range(20)])
    assert papers[0][1] == papers[1][1]
    assert sum(session.bytes_sent for session, _ in papers) < 1.1 * 20 * MB
    lists += papers
    for session in [*sessions, *(session for session, _ in lists)]:
        session.close()


def test_a_holder_that_dies_costs_its_own_sessions_only(box: local.LocalSandbox) -> None:
    context = text("hello")
    other = box.open()
    other.execute("kept = 1", {"context": text("other")})
    with LocalInterpreter(sandbox=box, tools={"tool": lambda n: n + 1}) as interpreter:
        interpreter.execute("n = tool(1)", {"context": context})
        ((lost, holder),) = open_many(box, 1, HOLDER, context=context)
        os.kill(holder, signal.SIGKILL)
        with pytest.raises(SandboxError, match="held its inputs"):
            lost.execute("while True: pass")
        # lost through no fault of its code: the interpreter goes on as if nothing had happened
        assert interpreter.execute("[n, context[:5]]", {"context": context}) == [2, "hello"]
        assert interpreter.execute(HOLDER) not in (holder, box.pid)
    assert other.execute("kept").value == 1
    other.close()


def test_interrupts_while_a_session_moves_to_its_holder(box: local.LocalSandbox) -> None:
    session, done = box.open(), threading.Event()

    def nag() -> None:
        while not done.wait(0.002):
            session.interrupt()

    nagging = threading.Thread(target=nag)
    nagging.start()
    assert session.execute("while True: pass", {"context": text("a")}).kind == "interrupted"
    done.set()
    nagging.join()
    assert session.execute("context[:2]", {"context": text("a")}).value == "aw"
    session.close()
    session = box.open()
    stopper = threading.Timer(0.01, session.close)
    stopper.start()
    with pytest.raises(SandboxError, match="closed"):
        session.execute("while True: pass", {"context": text("b")}, timeout_s=None)
    stopper.join()


def test_inputs_larger_than_the_limit_are_shared_too(box: local.LocalSandbox) -> None:
    session = box.open(local.Limits(memory_bytes=100 << 20))
    context = text("x", 150 * MB)
    assert session.execute("len(context)", {"context": context}).value == len(context)
    assert "MemoryError" in session.execute("y = b'x' * (2 << 30)").error
    session.close()
