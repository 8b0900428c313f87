"""Lost sessions: rebuilt from their journal, no tool called twice, and what is missing is said."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from fleet_rlm.errors import LimitReached, SandboxError
from fleet_rlm.sandbox import journal, levels, local
from fleet_rlm.sandbox.interpreter import CellError, LocalInterpreter, SessionLost

DIE = "import os; os._exit(3)"


class Calls:
    """A tool that counts."""

    def __init__(self) -> None:
        self.made: list[Any] = []

    def __call__(self, question: Any) -> str:
        self.made.append(question)
        if question == "bad":
            raise ValueError("no such thing")
        return f"answer {len(self.made)} to {question}"


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def interpreter(calls: Calls) -> Iterator[LocalInterpreter]:
    with LocalInterpreter(tools={"ask": calls}) as made:
        yield made


def lose(interpreter: LocalInterpreter, code: str = DIE) -> str:
    with pytest.raises(SessionLost):
        interpreter.execute(code)
    return interpreter.rebuild()


def test_state_files_and_answers_come_back(interpreter: LocalInterpreter, calls: Calls) -> None:
    context = "word " * 20_000
    interpreter.execute("n = len(context)\ncontext = 'mine'", {"context": context})
    interpreter.execute(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(8) as pool: got = list(pool.map(ask, range(20)))\n"
        "same = [ask('again'), ask('again')]\n"
        "try: ask('bad')\nexcept RuntimeError as e: failure = str(e)\n"
        "open('notes.txt', 'w').write('kept')\n"
        "import random; drawn = random.random()\n"
        "def twice(x): return 2 * x"
    )
    with pytest.raises(CellError):
        interpreter.execute("partial = 1\n1 / 0")
    look = "[n, got, same, failure, open('notes.txt').read(), drawn, twice(4), partial]"
    before = interpreter.execute(look)
    note = lose(interpreter)
    assert "exit code 3" in note
    assert "ran again with the recorded results" in note
    assert "Missing" not in note
    assert len(calls.made) == 23
    assert interpreter.execute(look) == before
    assert interpreter.execute("len(context)", {"context": context}) == len(context)
    assert len(calls.made) == 23


def test_what_did_not_come_back_is_named(interpreter: LocalInterpreter) -> None:
    interpreter.timeout = 0.2
    interpreter.execute("sure = 1")
    interpreter.execute("import time; now = print(time.time_ns())")
    with pytest.raises(CellError, match="ran longer"):
        interpreter.execute("def helper(): pass\nhalf = 1\nwhile True: pass")
    note = lose(interpreter)
    assert "perhaps not as before: time, now, helper, half." in note
    assert interpreter.execute("[sure, 'half' in globals()]") == [1, False]


def test_a_block_that_ends_its_replay_too_is_left_out(interpreter: LocalInterpreter) -> None:
    """As one does that took all the memory there was."""
    interpreter.execute("a = 1")
    code = "b = 2\nimport os, time\nif time.time() > limit: os._exit(1)"
    interpreter.execute(code, {"limit": 4e9})
    interpreter._journal.steps[1].variables = {"limit": 0}
    interpreter.execute("c = 3")
    note = lose(interpreter)
    assert "perhaps not as before: b, os, time, c." in note
    assert interpreter.execute("[a, 'b' in globals(), 'c' in globals()]") == [1, False, False]
    assert lose(interpreter).count("Missing") == 0


def test_calls_that_were_never_made_are_not_made_in_a_replay(
    interpreter: LocalInterpreter, calls: Calls
) -> None:
    interpreter.execute("import time\nseen = ask(time.time_ns())")
    note = lose(interpreter)
    assert "seen" in note
    assert len(calls.made) == 1


def test_a_box_that_fails_is_replaced_and_nothing_is_noticed(calls: Calls) -> None:
    """Neither the model, nor whoever pays for its calls."""
    box: list[local.LocalSandbox] = [local.shared(levels.choose())]

    def break_the_box() -> str:
        if len(box) == 1:
            os.killpg(box[0].pid, signal.SIGKILL)
            box.append(box[0])
        return "broken"

    with LocalInterpreter(tools={"ask": calls, "smash": break_the_box}) as interpreter:
        interpreter.execute("kept = ask('first')")
        code = "print(ask('second'))\nsmash()\nprint(kept)\nprint(ask('third'))"
        assert interpreter.execute(code) == (
            "answer 2 to second\nanswer 1 to first\nanswer 3 to third\n"
        )
        assert calls.made == ["first", "second", "third"]
        assert interpreter.execute("kept") == "answer 1 to first"


def test_a_box_of_ones_own_is_not_replaced(calls: Calls) -> None:
    with local.LocalSandbox(levels.choose()) as box:
        interpreter = LocalInterpreter(sandbox=box, tools={"ask": calls})
        interpreter.execute("kept = ask('first')")
        os.killpg(box.pid, signal.SIGKILL)
        with pytest.raises(SessionLost):
            interpreter.execute("kept")
        with pytest.raises(SessionLost):
            interpreter.rebuild()


def test_a_record_that_grows_too_large_is_dropped(
    interpreter: LocalInterpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MAX_BYTES", 100_000)
    for n in range(4):
        interpreter.execute("kept = 1", {"x": str(n) * 40_000})
    note = lose(interpreter)
    assert "are gone" in note
    assert interpreter.execute("'kept' in globals()") is False


def test_limits_stop_a_block_without_a_trace_in_the_journal(interpreter: LocalInterpreter) -> None:
    def spend() -> None:
        raise LimitReached("calls", 2, 1)

    interpreter.tools["spend"] = spend
    with pytest.raises(LimitReached):
        interpreter.execute("spend()")
    assert "Missing" not in lose(interpreter)


def test_names_that_a_block_binds() -> None:
    code = (
        "import a.b, c as d\nfrom e import f\n"
        "x, (y, *z) = 1, (2, 3)\nfor i in []: j = 1\n"
        "with open('') as k: pass\n"
        "def g(hidden):\n    inner = 1\n"
        "class H:\n    inner = 1\n"
        "[n for n in []]; (w := 1)"
    )
    assert sorted(journal.bound(code)) == sorted(
        ["a", "d", "f", "x", "y", "z", "i", "j", "k", "g", "H", "w"]
    )
    assert list(journal.bound("x = (")) == []


def test_a_box_lost_while_a_session_opens_is_replaced() -> None:
    """Nothing has run in the session yet, so another box does as well."""
    level = levels.choose("auto")
    with LocalInterpreter() as first:
        assert first.execute("1") == 1
    group = local.shared(level).pid
    os.killpg(group, signal.SIGSTOP)
    second = LocalInterpreter()
    opening = threading.Thread(target=second.start)
    opening.start()
    opening.join(0.3)
    assert opening.is_alive()
    os.killpg(group, signal.SIGKILL)
    opening.join(20)
    assert second.execute("2") == 2
    assert local.shared(level).pid != group
    second.shutdown()


def test_a_box_that_never_opens_a_session_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise SandboxError("no room")

    monkeypatch.setattr(local.LocalSandbox, "open", refuse)
    with pytest.raises(SessionLost, match="no room"):
        LocalInterpreter().start()
