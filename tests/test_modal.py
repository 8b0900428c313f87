"""ModalInterpreter over the loopback: the real SDK, sandboxes that are local processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.primitives.code_interpreter import CodeExecutionError, FinalOutput
from dspy.utils import DummyLM
from grpclib import GRPCError, Status

from fleet_rlm import LocalInterpreter, ModalInterpreter
from fleet_rlm.errors import LimitReached, SandboxUnavailable
from fleet_rlm.sandbox import modal_box, modal_create, modal_link
from fleet_rlm.sandbox.interpreter import CellError, SessionLost
from fleet_rlm.sandbox.modal_pace import SLOWEST, Pace
from tests.modal_loopback import LoopbackModal


@pytest.fixture(params=[LocalInterpreter, ModalInterpreter])
def make(request: pytest.FixtureRequest, lab: LoopbackModal) -> Any:
    return request.param


# what both back ends promise alike


def test_what_execute_returns(make: Any) -> None:
    with make(output_fields=[{"name": "answer"}], tools={"twice": lambda n: 2 * n}) as session:
        assert isinstance(session, dspy.CodeInterpreter)
        assert session.execute("print('hi')") == "hi\n"
        assert session.execute("x = 1") is None
        assert session.execute("x + 1") == 2
        assert session.execute("twice(n=x)") == 2
        with pytest.raises(CellError, match="ZeroDivisionError") as caught:
            session.execute("print('so far')\n1 / 0")
        assert caught.value.stdout == "so far\n"
        with pytest.raises(SyntaxError):
            session.execute("if")
        with pytest.raises(CodeExecutionError, match="exit"):
            session.execute("exit()")
        assert session.execute("SUBMIT(x)") == FinalOutput({"answer": 1})


def test_tools_in_threads_and_limits_raised_by_them(make: Any) -> None:
    def limit() -> None:
        raise LimitReached("calls", 2, 1)

    with make(tools={"slow": lambda n: time.sleep(0.1) or n, "limit": limit}) as session:
        code = "from concurrent.futures import ThreadPoolExecutor as Pool\n"
        assert session.execute(code + "list(Pool(8).map(slow, range(8)))") == list(range(8))
        with pytest.raises(LimitReached):
            session.execute("limit()")
        assert session.execute("1") == 1


def test_an_interrupt_keeps_the_state_and_output_is_live(make: Any) -> None:
    seen = threading.Event()
    with make(on_stdout=lambda text: seen.set() if "begun" in text else None) as session:
        session.execute("kept = 1")
        threading.Thread(target=lambda: seen.wait(20) and session.interrupt()).start()
        with pytest.raises(CellError, match="interrupted"):
            session.execute("print('begun', flush=True)\nwhile True: pass")
        assert session.execute("kept") == 1


def test_a_lost_process_is_no_error_of_the_code(make: Any) -> None:
    with make() as session, pytest.raises(SessionLost, match="exit code 3"):
        session.execute("import os; os._exit(3)")


def test_large_inputs_travel_once(make: Any) -> None:
    text = "ü words and words " * (1 << 18)
    size = len(text.encode())
    with make() as session:
        for _ in range(20):
            assert session.execute("len(context)", {"context": text, "n": [1, 2]}) == len(text)
            session.execute("context = ''; n.append(3)", {"context": text, "n": [1, 2]})
        assert session.execute("n", {"n": [1, 2]}) == [1, 2]
        assert size <= session.bytes_sent <= 1.05 * size


def test_plain_rlm_end_to_end(make: Any) -> None:
    steps = ["part = llm_query('which?')\nprint(part)", "SUBMIT(answer=part + str(len(context)))"]
    acts = [{"reasoning": "next", "code": f"```python\n{code}\n```"} for code in steps]
    with dspy.context(lm=DummyLM(acts)):
        rlm = dspy.RLM(
            "context, question -> answer",
            interpreter_factory=make,
            sub_lm=lambda prompt: ["blue"],
        )
        assert rlm(context="word " * 20_000, question="colour?").answer == "blue100000"


# what is Modal's


def test_the_sandbox_is_safe_by_default(lab: LoopbackModal) -> None:
    with ModalInterpreter(tags={"run": "r1", "sample": "s1"}, timeout=700) as session:
        (sandbox,) = lab.live()
        wanted = sandbox.wanted
        assert sandbox.offline
        assert (wanted.timeout_secs, wanted.idle_timeout_secs) == (700, 60)
        assert wanted.resources.memory_mb_max == 2048
        assert sandbox.tags.items() >= {"project": "fleet-rlm", "run": "r1"}.items()
        assert {"owner", "expires"} <= sandbox.tags.keys()
        assert "MODAL_TOKEN_SECRET" not in session.execute("import os; dict(os.environ)")
    assert lab.calls["SandboxTagsSetV2"] == 0


def test_the_context_is_no_argument_and_not_on_stdin_again(lab: LoopbackModal) -> None:
    text = "x" * (8 << 20)
    with ModalInterpreter() as session:
        before = lab.uploaded
        for _ in range(20):
            session.execute("len(context)", {"context": text})
        assert len(text) <= lab.uploaded - before <= 1.05 * len(text)


def test_creates_are_retried(
    lab: LoopbackModal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(modal_create, "LONGEST_PAUSE_S", 0.05)
    blip = GRPCError(Status.INTERNAL, "worker was lost")
    with lab.failing("SandboxCreateV2", blip, lab.throttled(0.1)), ModalInterpreter() as session:
        assert session.execute("1") == 1
    assert "Retrying" not in caplog.text  # the SDK says nothing into our progress
    torn = GRPCError(Status.DATA_LOSS, "torn")  # which the SDK does not try again by itself
    failing = lab.failing("SandboxCreateV2", *[torn] * 4)
    with failing, pytest.raises(SessionLost, match="in 4 tries"):
        ModalInterpreter().start()


def test_a_create_waits_for_room_and_all_slow_down(
    lab: LoopbackModal, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = GRPCError(Status.RESOURCE_EXHAUSTED, "no room")
    with lab.failing("SandboxCreateV2", full, None), ModalInterpreter() as session:
        assert session.execute("1") == 1
    monkeypatch.setattr(modal_create, "PATIENCE_S", 0.0)
    failing = lab.failing("SandboxCreateV2", *[full] * 4)
    with failing, pytest.raises(SessionLost, match="no room for a sandbox"):
        ModalInterpreter().start()


def test_the_pace_of_creates_follows_what_the_service_takes(tmp_path: Path) -> None:
    now = [1000.0]
    mine, other = (Pace(4.0, path=tmp_path / "pace", clock=lambda: now[0]) for _ in range(2))
    assert [mine.take(), other.take()] == [0.0, 0.25]
    now[0] += 0.25
    assert [other.take(), mine.take()] == [0.0, 0.25]
    mine.refused()
    other.refused()  # an answer to the same burst
    assert mine.part == 0.5
    now[0] += 2.0
    assert [mine.take(), other.take()] == [0.0, 0.5]
    for _ in range(20):
        other.made()
    assert mine.part == 1.0
    for _ in range(20):
        now[0] += 2.0
        mine.refused()
    assert mine.part == SLOWEST
    now[0] = 0.0  # the machine was started again, and its clock begins anew
    assert mine.take() == 0.0


@pytest.mark.parametrize("when", ["between cells", "in a cell"])
def test_a_lost_sandbox_is_replaced_or_told(lab: LoopbackModal, when: str) -> None:
    """The record of the session is played again in another sandbox; nothing hangs."""
    calls: list[int] = []
    with ModalInterpreter(tools={"paid": calls.append}) as session:
        session.execute("paid(1); kept = 7")
        (sandbox,) = lab.live()
        if when == "between cells":
            lab.end(sandbox)
            assert session.execute("kept") == 7
        else:
            session.tools["kill"] = lambda: lab.end(sandbox) if not sandbox.result else None
            assert session.execute("kill(); kept") == 7
        assert calls == [1]


def test_without_a_valid_token(lab: LoopbackModal) -> None:
    refused = GRPCError(Status.UNAUTHENTICATED, "Token ID is malformed")
    failing = lab.failing("SandboxCreateV2", refused)
    with failing, pytest.raises(SandboxUnavailable, match="modal token new"):
        ModalInterpreter().start()


def test_an_allow_list_is_what_modal_is_told(lab: LoopbackModal) -> None:
    with ModalInterpreter(domains=["data.example.com"], cidrs=["192.0.2.0/24"], cpu=(0.5, 1.0)):
        (sandbox,) = lab.live()
        allowed = sandbox.wanted.network_access
        assert list(allowed.allowed_domains) == ["data.example.com"]
        assert list(allowed.allowed_cidrs) == ["192.0.2.0/24"]
        assert not sandbox.offline
        resources = sandbox.wanted.resources
        assert (resources.milli_cpu, resources.milli_cpu_max) == (500, 1000)


def test_a_create_that_is_given_up_leaves_no_sandbox(
    lab: LoopbackModal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modal_create, "CREATE_S", 0.5)
    monkeypatch.setattr(modal_create, "TRIES", 1)
    lab.latency["SandboxCreateV2"] = 1.5
    with pytest.raises(SessionLost, match="TimeoutError"):
        ModalInterpreter().start()
    assert eventually(lambda: lab.sandboxes and not lab.live())


HOST = """
import sys, time
from fleet_rlm import ModalInterpreter
from fleet_rlm.sandbox import modal_box
modal_box.SILENCE_S = 2.0
session = ModalInterpreter(idle_timeout=1)
session.execute("1")
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_sandbox_outlives_its_host(lab: LoopbackModal, end: signal.Signals) -> None:
    host = subprocess.Popen(
        [sys.executable, "-c", HOST], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert host.stdout is not None
    with host:
        assert host.stdout.readline() == "ready\n"
        (sandbox,) = lab.live()
        host.send_signal(end)
        host.wait(30)
        if end is signal.SIGINT:  # an orderly end: told, not left to the lease
            assert not lab.live()
    assert eventually(lambda: not lab.live())
    assert sandbox.wanted.idle_timeout_secs == 1


def test_no_sandbox_outlives_a_lost_network(
    lab: LoopbackModal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modal_link, "PING_S", 0.2)
    monkeypatch.setattr(modal_box, "SILENCE_S", 1.5)
    with ModalInterpreter(idle_timeout=1) as session:
        session.execute("1")
        time.sleep(3.0)
        (sandbox,) = lab.live()  # the host says that it is there
        lab.latency["TaskExecStdinWrite"] = 20.0
        assert eventually(lambda: sandbox.result is not None)


def eventually(true: Callable[[], Any], seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.05)
    return bool(true())
