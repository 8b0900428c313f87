"""Sessions of a real box: what cells return, what they may break, and that it is only theirs."""

from __future__ import annotations

import contextvars
import gc
import hashlib
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet_rlm.errors import DataError, LimitReached, SandboxError
from fleet_rlm.sandbox import driver, levels, local
from fleet_rlm.sandbox.redact import Redactor
from fleet_rlm.sandbox.session import SHARED_BYTES, Limits, Session

QUICK = Limits(grace_s=0.4)


@pytest.fixture
def box() -> local.LocalSandbox:
    return local.shared(levels.choose())


@pytest.fixture
def session(box: local.LocalSandbox) -> Iterator[Session]:
    opened = box.open()
    yield opened
    opened.close()


def caller(**tools: Callable[..., Any]) -> dict[str, Any]:
    return {"tools": tools, "invoke": lambda name, args, kwargs: tools[name](*args, **kwargs)}


def lost(session: Session, code: str, match: str, **settings: Any) -> None:
    with pytest.raises(SandboxError, match=match):
        session.execute(code, **settings)
    with pytest.raises(SandboxError, match="gone"):
        session.execute("1")


# what a cell returns


def test_value_of_a_trailing_expression(session: Session) -> None:
    assert session.execute("x = 6\nx * 7").value == 42
    assert session.execute("{'a': (1, None, 2.5, True, 'ü')}").value == {
        "a": [1, None, 2.5, True, "ü"]
    }
    assert session.execute("x = 1").value is None


def test_value_that_is_not_plain_comes_as_text(session: Session) -> None:
    assert session.execute("{1, 2}").text == "{1, 2}"
    assert session.execute("float('nan')").text == "nan"
    long = session.execute("'x' * 10**7")
    assert long.value is None
    assert long.text is not None
    assert len(long.text) < 21_000


def test_a_large_trailing_value_is_shown_without_being_written_out(session: Session) -> None:
    for code in ("list(range(3_000_000))", "dict.fromkeys(range(3_000_000))", "'ab ' * 10**8"):
        start = time.monotonic()
        result = session.execute(f"x = {code}\nimport time; t = time.process_time()\nx")
        assert result.text is not None
        assert len(result.text) < 21_000
        assert session.execute("time.process_time() - t < 0.2").value is True
        assert time.monotonic() - start < 5
    assert session.execute("[[1] * 10] * 3").value == [[1] * 10] * 3


def test_output_and_error_stay_together(session: Session) -> None:
    result = session.execute("print('before')\ndef f():\n    return 1 / 0\nf()")
    assert result.kind == "error"
    assert result.stdout == "before\n"
    assert 'File "<cell-1>", line 3, in f\n    return 1 / 0' in result.error
    assert result.error.endswith("ZeroDivisionError: division by zero")
    assert "driver.py" not in result.error


def test_errors_of_all_kinds_keep_the_session(session: Session) -> None:
    session.execute("kept = 1")
    for code, expected in [
        ("exit()", "exit() ends the cell only"),
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
        ("quit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("x = b'x' * (1 << 40)", "MemoryError"),
        ("class E(Exception):\n    def __str__(self): 1/0\nraise E", "E"),
        ("class V:\n    def __repr__(self): 1/0\nV()", "ZeroDivisionError"),
    ]:
        result = session.execute(code)
        assert result.kind == "error", code
        assert expected in result.error, code
    assert session.execute("kept").value == 1


@pytest.mark.parametrize("code", ["if", "x = (", "\0", "'a\n", "(" * 5000])
def test_syntax_errors(session: Session, code: str) -> None:
    result = session.execute(code)
    assert result.kind == "syntax"
    assert result.error
    assert session.execute("1").value == 1


def test_guest_code_is_compiled_on_its_own(session: Session) -> None:
    """The driver's own future imports do not reach it."""
    assert session.execute("def f(x: int): ...\nf.__annotations__['x'] is int").value is True


def test_names_behave_as_in_a_script(session: Session) -> None:
    code = (
        "import dataclasses, pickle\n"
        "@dataclasses.dataclass\nclass Point:\n    x: int\n"
        "[__name__, pickle.loads(pickle.dumps(Point(3))).x]"
    )
    assert session.execute(code).value == ["__main__", 3]


def test_sets_and_random_numbers_repeat(box: local.LocalSandbox) -> None:
    code = "import random; [str({'a', 'b', 'c', 'd', 'e'}), random.random()]"
    first, second = box.open(), box.open()
    assert first.execute(code).value == second.execute(code).value
    first.close()
    second.close()


def test_packages_and_threads_work(session: Session) -> None:
    code = (
        "import asyncio, numpy, pandas, sqlite3, tempfile, zipfile, shutil, threading\n"
        "async def double(n):\n    await asyncio.sleep(0)\n    return 2 * n\n"
        "with tempfile.NamedTemporaryFile('w', suffix='.csv') as f:\n"
        "    f.write('a,b\\n1,2\\n'); f.flush()\n"
        "    total = pandas.read_csv(f.name).to_numpy().sum()\n"
        "    shutil.copy(f.name, 'copy.csv')\n"
        "db = sqlite3.connect('x.db'); db.execute('create table t (a)'); db.commit()\n"
        "out = []\n"
        "t = threading.Thread(target=out.append, args=(1,)); t.start(); t.join()\n"
        "open('/dev/null', 'w').write('x')\n"
        "[asyncio.run(double(21)), int(total), out, numpy.arange(3).sum().item()]"
    )
    result = session.execute(code)
    assert result.error == ""
    assert result.value == [42, 3, [1], 3]


# standard output


def test_long_output_keeps_head_tail_and_count(session: Session) -> None:
    result = session.execute("for i in range(100_000): print(f'line {i}')")
    expected = sum(len(f"line {i}\n") for i in range(100_000))
    assert result.stdout_chars == expected
    assert result.stdout.startswith("line 0\nline 1\n")
    assert result.stdout.endswith("line 99998\nline 99999\n")
    assert f"of {expected:,} characters not shown" in result.stdout
    assert len(result.stdout) < 40_200


def test_output_costs_no_memory(session: Session) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code = (
        "import resource\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "piece = 'z' * 10_000_000\n"
        "for i in range(20): print(piece)\n"
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak"
    )
    result = session.execute(code)
    assert result.stdout_chars == 200_000_020
    assert result.value < 60_000  # KB in the guest, the piece itself included
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def test_output_of_threads_is_counted_exactly(session: Session) -> None:
    code = (
        "import threading\n"
        "def work():\n    for i in range(2000): print('x' * 9)\n"
        "ts = [threading.Thread(target=work) for _ in range(8)]\n"
        "for t in ts: t.start()\n"
        "for t in ts: t.join()"
    )
    assert session.execute(code).stdout_chars == 8 * 2000 * 10


def test_output_of_c_code_is_kept(session: Session) -> None:
    code = (
        "import ctypes, os, sys\n"
        "ctypes.CDLL(None).printf(b'from c\\n')\n"
        "os.write(1, b'to descriptor 1\\n'); os.write(2, b'to descriptor 2\\n')\n"
        "sys.stdout.buffer.write(b'bytes\\n'); print('error', file=sys.stderr)"
    )
    out = session.execute(code).stdout
    for line in ("from c", "to descriptor 1", "to descriptor 2", "bytes", "error"):
        assert f"{line}\n" in out
    assert session.execute("print('next')").stdout == "next\n"
    flood = session.execute("for i in range(300): os.write(1, b'y' * 65536)")
    assert flood.kind == "error"  # a sealed file: it does not grow
    assert session.execute("1").value == 1


def test_surrogates_do_not_break_anything(session: Session) -> None:
    result = session.execute(r"print('\ud800'); '\udfff'")
    assert result.stdout == "?\n"
    assert result.value == "?"
    assert session.execute("len(x)", {"x": "\ud800" * 5}).value == 5
    assert session.execute("len(x)", {"x": "\ud800" * 50_000}).value == 50_000


def test_live_output_comes_while_the_cell_runs(session: Session) -> None:
    seen: list[str] = []
    session.execute(
        "for i in range(3):\n    print(i, flush=True)\n    wait()",
        on_stdout=seen.append,
        **caller(wait=lambda: seen.append("waited")),
    )
    assert seen == ["0\n", "waited", "1\n", "waited", "2\n", "waited"]
    seen.clear()
    session.execute("print('x' * 10_000_000)", on_stdout=seen.append)
    assert len("".join(seen)) == driver.MAX_STREAM


def test_replaced_stdout_lasts_one_cell(session: Session) -> None:
    session.execute("import sys; sys.stdout = None")
    assert session.execute("print('back')").stdout == "back\n"


# inputs


def test_inputs_travel_once(session: Session) -> None:
    context = "words and words " * (50 << 16)  # 52 MB
    for _ in range(20):
        assert session.execute("len(context)", {"context": context}).value == len(context)
    assert session.bytes_sent < 1.05 * len(context)


@pytest.mark.parametrize(
    "value",
    [
        "short",
        "long " * 20_000,
        "ünïcödé " * 20_000,
        b"raw" * 20_000,
        b"",
        "",
        3,
        10**30,
        -2.5,
        None,
        True,
        [1, [2, {"a": [3]}]],
        {"k": list(range(50_000))},
        {1: (2, {3})},
        ["ünïcödé document " * 2_000, "", "short"],
        ("document " * 2_000, "document " * 3_000),
        {"one": "document " * 2_000, "two": "document " * 3_000},
    ],
    ids=lambda value: f"{type(value).__name__}-{len(repr(value))}",
)
def test_inputs_arrive_fresh_in_every_cell(session: Session, value: Any) -> None:
    look = "import hashlib; hashlib.sha256(repr(x).encode()).hexdigest()"
    expected = hashlib.sha256(repr(value).encode()).hexdigest()
    assert session.execute(look, {"x": value}).value == expected
    session.execute("if hasattr(x, 'clear'): x.clear()\nx = 'mine'", {"x": value})
    sent = session.bytes_sent
    assert session.execute(look, {"x": value}).value == expected
    assert session.bytes_sent - sent < 400


def test_equal_text_is_not_sent_again(session: Session) -> None:
    context = "words " * 50_000
    session.execute("x", {"x": context})
    sent = session.bytes_sent
    again = "words " * int("50000")
    assert again is not context
    assert session.execute("len(x)", {"x": again}).value == len(context)
    assert session.bytes_sent - sent < 1000
    assert session.execute("x[0]", {"x": "Words " + again[6:]}).value == "W"


def test_huge_numbers_arrive(session: Session) -> None:
    assert session.execute("x == 10**5000", {"x": 10**5000}).value is True


def test_changed_containers_are_sent_again(session: Session) -> None:
    rows = [{"n": i} for i in range(20_000)]
    assert session.execute("rows[0]['n']", {"rows": rows}).value == 0
    sent = session.bytes_sent
    session.execute("rows[0]['n']", {"rows": rows})
    assert session.bytes_sent - sent < 1000
    rows[0]["n"] = 7
    assert session.execute("rows[0]['n']", {"rows": rows}).value == 7
    assert session.bytes_sent - sent > 20_000


def test_inputs_may_be_larger_than_the_memory_limit(box: local.LocalSandbox) -> None:
    small = box.open(Limits(memory_bytes=100 << 20))
    context = "x" * (70 << 20)
    assert small.execute("len(context)", {"context": context}).value == len(context)
    assert "MemoryError" in small.execute("y = b'x' * (2 << 30)").error
    small.close()


def test_a_list_of_documents_travels_once(session: Session) -> None:
    documents = [f"{n} " + "words " * 17_000 for n in range(300)]  # 30 MB
    cell = "documents.append('mine'); [len(documents), documents[7][:2]]"
    assert session.execute(cell, {"documents": documents}).value == [301, "7 "]
    sent = session.bytes_sent
    for _ in range(20):
        assert session.execute(cell, {"documents": documents}).value == [301, "7 "]
    assert session.bytes_sent - sent < 20_000
    documents[7] = "changed"
    assert session.execute(cell, {"documents": documents}).value == [301, "ch"]


def test_inputs_that_are_no_data_are_refused(session: Session) -> None:
    with pytest.raises(DataError, match="'x'"):
        session.execute("1", {"x": [object()]})
    assert session.execute("x", {"x": [1]}).value == [1]


# tools


def test_tools_from_eight_threads(session: Session) -> None:
    def slow(n: int) -> int:
        time.sleep(0.1)
        return n

    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(8) as pool: got = list(pool.map(slow, range(16)))\n"
        "got"
    )
    start = time.monotonic()
    assert session.execute(code, **caller(slow=slow)).value == list(range(16))
    assert time.monotonic() - start < 1.2


def test_many_more_threads_than_tools_at_work(session: Session) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def tool(n: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1
        return n

    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(100) as pool: got = list(pool.map(tool, range(300)))\n"
        "got == list(range(300))"
    )
    assert session.execute(code, **caller(tool=tool)).value is True
    assert 1 < most <= 32


def test_tools_see_the_context_of_the_caller(session: Session) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("of the caller")
    assert session.execute("look()", **caller(look=variable.get)).value == "of the caller"


def test_a_failing_tool_is_an_error_of_the_call(session: Session) -> None:
    def tool(text: str) -> str:
        raise ValueError(f"no {text}")

    code = "try: tool('good')\nexcept RuntimeError as e: print(e)\ntool('luck')"
    result = session.execute(code, **caller(tool=tool))
    assert result.stdout == "ValueError: no good\n"
    assert "RuntimeError: ValueError: no luck" in result.error
    assert "tool('luck')" in result.error


def test_large_results_and_too_large_ones(session: Session) -> None:
    tools = caller(get=lambda n: "x" * n)
    assert session.execute("len(get(19 * 2**20))", **tools).value == 19 << 20
    assert "at most" in session.execute("get(21 * 2**20)", **tools).error
    assert "can leave" in session.execute("get('x' * 22 * 2**20)", **tools).error
    assert session.execute("1").value == 1


def test_arguments_that_are_no_data_are_explained(session: Session) -> None:
    result = session.execute("echo({1, 2})", **caller(echo=lambda x: x))
    assert "TypeError: arguments of echo(): set is not plain data" in result.error
    code = "import numpy; echo(numpy.arange(3), n=numpy.int64(4))"
    assert session.execute(code, **caller(echo=lambda x, n: [x, n])).value == [[0, 1, 2], 4]


def test_results_that_are_no_data_are_explained(session: Session) -> None:
    result = session.execute("get()", **caller(get=lambda: object()))
    assert "the result of get() is not plain data" in result.error


def test_limits_reach_the_caller(session: Session) -> None:
    def spend() -> None:
        raise LimitReached("calls", 3, 2)

    # In a loop right behind an `except` Python 3.12.1 looks for no signal, hence `kept` between.
    code = "try: spend()\nexcept BaseException: pass\nkept = 5\nwhile True: pass"
    with pytest.raises(LimitReached, match="calls limit"):
        session.execute(code, **caller(spend=spend))
    assert session.execute("kept").value == 5


def test_keyboard_interrupt_in_a_tool_reaches_the_caller(session: Session) -> None:
    def tool() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.execute("tool()", **caller(tool=tool))
    assert session.execute("1").value == 1


def test_tools_end_with_their_cell(session: Session) -> None:
    calls: list[int] = []
    code = (
        "import threading, time\n"
        "errors = []\n"
        "def later():\n"
        "    go.wait()\n"
        "    try: tool()\n"
        "    except RuntimeError as e: errors.append(str(e))\n"
        "go = threading.Event()\n"
        "thread = threading.Thread(target=later); thread.start()\n"
        "signal_timer = threading.Timer(0.1, go.set); signal_timer.start()"
    )
    session.execute(code, **caller(tool=lambda: calls.append(1)))
    time.sleep(0.3)
    assert session.execute("thread.join(); errors").value == [
        "tools can only be called while a cell is running"
    ]
    assert calls == []


# SUBMIT and reserved names


def test_submit(session: Session) -> None:
    assert session.execute("SUBMIT(7)").value == {"output": 7}
    two = ["answer", "why"]
    assert session.execute("SUBMIT(1, 'x')", fields=two).value == {"answer": 1, "why": "x"}
    assert session.execute("SUBMIT(why='x', answer=[1])", fields=two).value["answer"] == [1]
    for code in ("SUBMIT(1)", "SUBMIT(1, why=2)", "SUBMIT(answer=1)", "SUBMIT(a=1, b=2)"):
        assert "SUBMIT(answer, why)" in session.execute(code, fields=two).error
    assert "takes one value" in session.execute("SUBMIT()").error


def test_submit_of_what_is_no_data_is_explained(session: Session) -> None:
    for code in ("{1, 2}", "b'raw'", "float('nan')", "object()", "10**5000", "(x for x in [])"):
        result = session.execute(f"SUBMIT({code})")
        assert result.kind == "error"
        assert "SUBMIT field 'output'" in result.error
        assert "Convert first" in result.error
    loop = session.execute("loop = []; loop.append(loop)\nSUBMIT(loop)")
    assert "Circular reference" in loop.error
    assert session.execute("import numpy; SUBMIT(numpy.int64(3))").value == {"output": 3}
    assert session.execute("SUBMIT((1, 2))").value == {"output": [1, 2]}


def test_submit_survives_a_bare_except_and_a_thread(session: Session) -> None:
    assert session.execute("try: SUBMIT(1)\nexcept: pass").value == {"output": 1}
    code = "import concurrent.futures as c\nwith c.ThreadPoolExecutor() as p: p.submit(SUBMIT, 2)"
    assert session.execute(code).value == {"output": 2}


def test_reserved_names_are_restored(session: Session) -> None:
    tools = caller(tool=lambda: "real")
    session.execute(
        "SUBMIT = tool = lambda *a: 'fake'\n"
        "import builtins\n"
        "builtins.print = builtins.len = builtins.open = None\n"
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
        **tools,
    )
    assert session.execute("print(len('ab'))\ntool()", **tools).value == "real"
    assert session.execute("SUBMIT(3)", **tools).kind == "final"
    assert session.execute("while True: pass", timeout_s=0.1).kind == "interrupted"
    assert "NameError" in session.execute("tool()").error


# time


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import re; re.match('(a+)+$', 'a' * 60 + 'b')",
        "import threading; threading.Event().wait()",
        "import asyncio; asyncio.run(asyncio.sleep(60))",
        "while True: print('x' * 1000)",
        "class R:\n    def __repr__(self):\n        while True: pass\nR()",
    ],
)
def test_deadline_keeps_the_state(session: Session, code: str) -> None:
    session.execute("kept = 1")
    start = time.monotonic()
    assert session.execute(code, timeout_s=0.2).kind == "interrupted"
    assert time.monotonic() - start < 1.5
    assert session.execute("kept").value == 1


def test_errors_that_never_end_keep_the_state(session: Session) -> None:
    code = (
        "kept = 1\nclass E(Exception):\n    def __str__(self):\n        while True: pass\nraise E"
    )
    assert session.execute(code, timeout_s=0.2).kind == "error"
    assert session.execute("kept").value == 1


def test_interrupted_code_is_shown(session: Session) -> None:
    result = session.execute("x = 1\nwhile True:\n    x += 1", timeout_s=0.1)
    assert 'File "<cell-1>", line' in result.error
    assert "Interrupt" not in result.error


def test_deadline_ends_threads_that_wait_for_tools(session: Session) -> None:
    """Leaving the executor joins its threads; their calls end too, and the session lives."""
    release = threading.Event()
    code = (
        "kept = 1\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "import time\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    futures = [pool.submit(slow) for _ in range(12)]\n"
        "    while True: sum(range(1000))"
    )
    start = time.monotonic()
    result = session.execute(code, timeout_s=0.3, **caller(slow=lambda: release.wait(30)))
    assert result.kind == "interrupted"
    assert time.monotonic() - start < 2.5
    release.set()
    assert session.execute("kept").value == 1


def test_deadline_stands_still_while_a_tool_works(session: Session) -> None:
    tools = caller(slow=lambda: time.sleep(0.8))
    assert session.execute("slow(); 'done'", timeout_s=0.3, **tools).value == "done"


def test_deadline_counts_work_behind_a_tool(session: Session) -> None:
    release = threading.Event()
    code = "import threading\nthreading.Thread(target=slow).start()\nwhile True: pass"
    start = time.monotonic()
    result = session.execute(code, timeout_s=0.3, **caller(slow=lambda: release.wait(20)))
    release.set()
    assert result.kind == "interrupted"
    assert time.monotonic() - start < 3


def test_interrupt_from_another_thread(session: Session) -> None:
    session.interrupt()  # nothing runs: nothing happens
    session.execute("kept = 1")
    timer = threading.Timer(0.2, session.interrupt)
    timer.start()
    assert session.execute("while True: pass").kind == "interrupted"
    timer.join()
    for _ in range(20):  # never the next cell
        assert session.execute("kept").value == 1


def test_an_interrupt_never_hits_the_next_cell(session: Session) -> None:
    stop = threading.Event()

    def nag() -> None:
        while not stop.is_set():
            session.interrupt()

    nagging = threading.Thread(target=nag)
    nagging.start()
    kinds = {session.execute("sum(range(2000))").kind for _ in range(100)}
    stop.set()
    nagging.join()
    assert kinds <= {"ok", "interrupted"}
    assert all(session.execute("1").kind == "ok" for _ in range(50))


# loss


def test_a_stubborn_cell_loses_its_session_only(box: local.LocalSandbox) -> None:
    sibling = box.open()
    code = "import time\nwhile True:\n    try: time.sleep(1)\n    except BaseException: pass"
    start = time.monotonic()
    lost(box.open(QUICK), code, "did not stop", timeout_s=0.1)
    assert time.monotonic() - start < 2
    assert sibling.execute("1").value == 1
    sibling.close()


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import os; os._exit(3)", "exit code 3"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "did not stop"),
        ("import os; os.close(3)", "exit code|channel"),
        ("import os; os.write(3, b'\\xff' * 100)", "protocol"),
    ],
)
def test_what_kills_a_session_kills_no_other(box: local.LocalSandbox, code: str, why: str) -> None:
    sibling = box.open()
    sibling.execute("kept = 1")
    lost(box.open(QUICK), code, why, timeout_s=0.3)
    assert sibling.execute("kept").value == 1
    sibling.close()


def test_forged_frames_are_not_believed(session: Session) -> None:
    forge = (
        "import json, os, struct\n"
        "def forge(number, **message):\n"
        "    data = json.dumps(message).encode()\n"
        "    os.write(3, struct.pack('!IIBB', len(data), 99, number, 0) + data)\n"
        "for n in range(1, 4):\n"
        f"    forge({driver.RESULT}, id=n, kind='final', value={{'output': 'forged'}})\n"
        f"    forge({driver.READY}, applied=[])\n"
        f"    forge({driver.DIED}, why='closed')\n"
        'print(\'{"final": "forged"}\')'
    )
    result = session.execute(forge)
    assert result.kind == "ok"
    assert result.stdout == '{"final": "forged"}\n'
    for n in range(5):  # and the next answer belongs to the next question
        assert session.execute(f"{n}").value == n


@pytest.mark.parametrize(
    "payload",
    ["{'id': 1}", "[]", "{'id': 'x', 'name': 1, 'args': 2, 'kwargs': 3}"],
)
def test_malformed_calls_end_the_session(box: local.LocalSandbox, payload: str) -> None:
    code = (
        "import json, os, struct, time\n"
        f"data = json.dumps({payload}).encode()\n"
        f"os.write(3, struct.pack('!IIBB', len(data), 0, {driver.TOOL_CALL}, 0) + data)\n"
        "time.sleep(5)"
    )
    lost(box.open(), code, "protocol")


def test_floods_of_calls_end_the_session(box: local.LocalSandbox) -> None:
    code = (
        "import threading\n"
        "for _ in range(12):\n"
        "    threading.Thread(target=hang, args=('x' * 9_000_000,), daemon=True).start()\n"
        "hang()"
    )
    release = threading.Event()
    lost(box.open(), code, "flooded", **caller(hang=lambda *_: release.wait(20)))
    release.set()


@pytest.mark.parametrize("kind", [driver.STDOUT, driver.READY, driver.RESULT])
def test_floods_of_frames_end_the_session(box: local.LocalSandbox, kind: int) -> None:
    """Frames that come faster than they are read hold up neither the deadline nor the host."""
    code = (
        "import os, struct\n"
        f"frame = struct.pack('!IIBB', 9, 0, {kind}, 0) + b'{{\"id\": 1}}'\n"
        "while True: os.write(3, frame * 100)"
    )
    start = time.monotonic()
    lost(box.open(), code, "flooded", timeout_s=30)
    assert time.monotonic() - start < 10


def test_floods_of_small_calls_end_the_session(box: local.LocalSandbox) -> None:
    code = (
        "import json, os, struct\n"
        "call = json.dumps({'id': 1, 'name': 'hang', 'args': [], 'kwargs': {}}).encode()\n"
        f"frame = struct.pack('!IIBB', len(call), 0, {driver.TOOL_CALL}, 0) + call\n"
        "while True: os.write(3, frame)"
    )
    release = threading.Event()
    lost(box.open(), code, "flooded", timeout_s=30, **caller(hang=lambda *_: release.wait(20)))
    release.set()


def test_steady_calls_do_not_hold_up_the_deadline(session: Session) -> None:
    code = (
        "import threading\n"
        "def work():\n"
        "    while True: quick()\n"
        "for _ in range(4): threading.Thread(target=work, daemon=True).start()\n"
        "while True: pass"
    )
    start = time.monotonic()
    result = session.execute(code, timeout_s=0.3, **caller(quick=lambda: None))
    assert result.kind == "interrupted"
    assert time.monotonic() - start < 5


def test_a_dead_box_is_replaced() -> None:
    level = levels.choose()
    box = local.shared(level)
    session = box.open()
    os.killpg(box.pid, signal.SIGKILL)
    lost(session, "while True: pass", "gone")
    again = local.shared(level)
    assert again is not box
    fresh = again.open()
    assert fresh.execute("6 * 7").value == 42
    fresh.close()


def test_close_ends_a_running_cell(session: Session) -> None:
    threading.Timer(0.2, session.close).start()
    with pytest.raises(SandboxError, match="closed"):
        session.execute("while True: pass", timeout_s=None)


def test_one_cell_at_a_time(session: Session) -> None:
    tools = caller(again=lambda: session.execute("1").value)
    assert "one session per thread" in session.execute("again()", **tools).error


def test_eight_threads_never_mix(box: local.LocalSandbox) -> None:
    wrong: list[Any] = []

    def work(n: int) -> None:
        session = box.open()
        session.execute(f"me = {n}")
        for i in range(20):
            result = session.execute(
                f"print(me, {i}); tool({i})", **caller(tool=lambda x, n=n: [n, x])
            )
            if (result.stdout, result.value) != (f"{n} {i}\n", [n, i]):
                wrong.append(result)
        session.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_sixty_four_sessions_at_once(box: local.LocalSandbox) -> None:
    sessions: list[Session] = []

    def work() -> None:
        session = box.open()
        assert session.execute("6 * 7").value == 42
        sessions.append(session)

    threads = [threading.Thread(target=work) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sessions) == 64
    for session in sessions:
        session.close()


def test_keys_are_shown_as_they_are(session: Session) -> None:
    """JSON would make text of them, and a model would look for text."""
    assert session.execute("{1: 'a', 'b': 2}").text == "{1: 'a', 'b': 2}"
    assert session.execute("[{None: 1}]").text == "[{None: 1}]"
    assert session.execute("{'b': {'c': [2]}}").value == {"b": {"c": [2]}}


def test_what_keeps_a_session_from_starting_is_said_at_once() -> None:
    with local.LocalSandbox(levels.choose("landlock")) as box:
        scratch = Path(box.open().execute("import os; os.getcwd()").value)
        driver.erase(str(scratch.parent))
        start = time.monotonic()
        with pytest.raises(SandboxError, match="No such file"):
            box.open()
        assert time.monotonic() - start < 5
    with pytest.raises(SandboxError, match="no-python"):
        local.LocalSandbox(levels.choose("landlock"), python="/no-python")


def test_a_session_that_is_dropped_leaves_nothing(box: local.LocalSandbox) -> None:
    def held() -> int:
        files = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        return sum("memfd:input" in str(path.readlink()) for path in files)

    before = held()
    for size in (1 << 20, SHARED_BYTES):  # one of its own, one shared
        dropped = box.open()
        context = f"{size}" * size
        assert dropped.execute("len(context)", {"context": context}).value == len(context)
        references = sys.getrefcount(context)
        del dropped
        gc.collect()
        for _ in range(100):
            if sys.getrefcount(context) < references:
                break
            time.sleep(0.02)
        assert sys.getrefcount(context) == 2
        assert held() == before


def test_large_inputs_where_there_are_no_memory_files(
    box: local.LocalSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a Mac, from where inputs go to sandboxes elsewhere."""
    monkeypatch.delattr(os, "memfd_create")
    session = box.open()
    for value in ("ü" * 50_000, list(range(50_000))):
        assert session.execute("len(x)", {"x": value}).value == 50_000
    session.close()


def test_a_forged_reason_is_no_way_out_for_a_secret(box: local.LocalSandbox) -> None:
    session = box.open(clean=Redactor().clean_data)
    code = (
        "import json, os, struct, sys, time\n"
        "frame = sys._getframe()\n"
        "while 'request' not in frame.f_locals or 'code' not in frame.f_locals['request']:\n"
        "    frame = frame.f_back\n"
        "fault = {'id': frame.f_locals['request']['id'], 'kind': 'fault',\n"
        "         'error': 'ghp_' + 'Zx9kQ2mB7vN4tR8w' * 2 + ' ' * 10**6}\n"
        "data = json.dumps(fault).encode()\n"
        f"os.write(3, struct.pack('!IIBB', len(data), 0, {driver.RESULT}, 0) + data)\n"
        "time.sleep(5)"
    )
    with pytest.raises(SandboxError, match="REDACTED") as caught:
        session.execute(code)
    assert "Zx9k" not in str(caught.value)
    assert len(str(caught.value)) < 5_000
