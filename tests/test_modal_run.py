"""`fleet-eval run --sandbox modal` over the loopback: the same scores, faults as missing data."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils import DummyLM
from grpclib import GRPCError, Status

import fleet_rlm
from fleet_rlm import RLM, ModalInterpreter
from fleet_rlm.runner import contexts
from fleet_rlm.sandbox import modal_create
from tests.modal_loopback import LoopbackModal

SMALL = ("--set", "lengths=[4000]", "--set", "windows=1", "--set", "modal.creates_per_s=100")


def read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    lines = (folder / "records.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], json.loads((folder / "run.json").read_text())


@pytest.fixture
def run(command: Any) -> Any:
    def run_here(*words: str, suite: str = "quickstart") -> Any:
        return command("run", suite, *SMALL, "--no-mlflow", "--json", *words)

    return run_here


def test_the_same_scores_as_in_a_box_of_this_machine(
    lab: LoopbackModal, run: Any, project: Path
) -> None:
    local = json.loads(run("--out", "here").stdout)
    done = run("--sandbox", "modal", "--out", "there", "-j", "6")
    assert done.returncode == 0, done.stderr
    remote = json.loads(done.stdout)
    assert remote["tasks"] == local["tasks"]
    assert remote["sandbox"].items() >= {"backend": "modal", "level": "modal"}.items()
    paid = remote["usage"]["by_role"]["sandbox"]
    assert paid["usd"] > 0
    roles = remote["usage"]["by_role"].values()
    assert remote["usage"]["usd"] == pytest.approx(sum(role["usd"] for role in roles))
    records, _ = read(project / "there")
    assert all(record["usage"]["sandbox"]["seconds"] > 0 for record in records)
    tags = [sandbox.tags for sandbox in lab.sandboxes.values()]
    assert sorted(each["sample"] for each in tags) == sorted(each["sample"] for each in records)
    names = {"project", "run", "suite", "task", "sample", "attempt", "owner", "expires"}
    for sandbox in lab.sandboxes.values():
        assert sandbox.tags.keys() == names
        assert (sandbox.tags["run"], sandbox.tags["suite"]) == ("there", "quickstart")
        assert sandbox.offline
        assert sandbox.wanted.timeout_secs == 900  # the 600 s of a sample, and a margin


def test_an_allow_list_is_told_to_modal_and_stored(lab: LoopbackModal, run: Any) -> None:
    words = ("--sandbox", "modal", "--set", "modal.domains=['data.example.com']")
    done = run(*words, "--limit", "1", "--out", "open")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sandbox"]["domains"] == ["data.example.com"]
    (sandbox,) = lab.sandboxes.values()
    assert list(sandbox.wanted.network_access.allowed_domains) == ["data.example.com"]
    refused = run("--sandbox", "modal", "--limit", "1", "--out", "open")  # another arm
    assert refused.returncode == 2
    assert "sandbox.domains" in refused.stderr
    wrong = run("--sandbox", "modal", "--set", "modal.domain=1")
    assert wrong.returncode == 2
    assert "modal.domain" in wrong.stderr


def test_children_are_sessions_of_the_same_sandbox(lab: LoopbackModal) -> None:
    steps = ["part = rlm_query('which?', context[:9])\nSUBMIT(answer=part)", "SUBMIT(context)"]
    acts = [{"reasoning": "next", "code": f"```python\n{code}\n```"} for code in steps]
    with dspy.context(lm=DummyLM(acts)):
        rlm = RLM("context, question -> answer", max_depth=1, interpreter_factory=ModalInterpreter)
        assert rlm(context="some text " * 10, question="which?").answer == "some text"
    assert len(lab.sandboxes) == 1


FULL = GRPCError(Status.RESOURCE_EXHAUSTED, "Sandbox creation rate limit (5/s) exceeded")
TORN = GRPCError(Status.DATA_LOSS, "torn")


def test_throttled_creates_wait_and_every_sample_is_scored(
    lab: LoopbackModal, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than two live at a time, where six are asked for."""
    monkeypatch.setenv("MODAL_MAX_THROTTLE_WAIT", "0")
    lab.max_sandboxes = 2
    with lab.failing("SandboxCreateV2", None, FULL, TORN, FULL):
        # a pace at which samples wait for a place rather than for an answer, on any machine
        slow = ("--set", "modal.creates_per_s=20")
        done = run("--sandbox", "modal", *slow, "-j", "6", "--display", "json")
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert max(figures.get("queued", 0) for figures in told) > 0
    assert json.loads(done.stdout)["coverage"] == 1.0
    assert lab.peak <= 2


def test_an_outage_is_missing_data_and_a_resumption_completes(
    lab: LoopbackModal, run: Any, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service is gone from the third sandbox on; the same command goes on when it is back."""
    monkeypatch.setattr(modal_create, "LONGEST_PAUSE_S", 0.01)
    words = ("--sandbox", "modal", "-j", "2", "--out", "torn")
    gone = GRPCError(Status.NOT_FOUND, "worker is gone")
    with lab.failing("SandboxCreateV2", None, None, *[TORN] * 100):
        done = run(*words)
    assert done.returncode == 4, done.stderr
    records, _ = read(project / "torn")
    errors = [record for record in records if record["status"] == "error"]
    assert len(errors) == 4
    for record in errors:
        assert record["score"] is None
        assert record["error"]["boundary"] == "sandbox"
        assert "Modal made no sandbox" in record["error"]["message"]
    # and when it is back, starts fail once more: another sandbox serves
    with lab.failing("TaskExecStart", gone, None, gone):
        done = run(*words, "--retry-errors")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["coverage"] == 1.0
    assert summary["errors"] == 0
    local = json.loads(run("--out", "here").stdout)
    assert summary["tasks"] == local["tasks"]


def test_a_lost_sandbox_costs_no_sample(lab: LoopbackModal, run: Any) -> None:
    """While a session opens, in the first cell, and later; one sample loses two of them."""
    lab.losses.extend([1, 2, 3, 4, 0, 0, 2, 3])
    result = run("--sandbox", "modal", "-j", "3")
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["coverage"] == 1.0
    local = json.loads(run("--out", "here").stdout)
    assert summary["tasks"] == local["tasks"]
    lost = [s for s in lab.sandboxes.values() if s.lost_at and s.messages >= s.lost_at]
    assert len(lost) >= 4
    # one that is lost as its sample ends is not missed
    assert 6 + 3 <= len(lab.sandboxes) <= 6 + len(lost)


def test_the_dollars_of_sandboxes_count_for_caps(lab: LoopbackModal, run: Any) -> None:
    dear = ("--set", "modal.cpu=[1000000.0, 1000000.0]")  # about 39 dollars a second
    done = run("--sandbox", "modal", *dear, "-j", "1", "--max-usd", "1")
    assert done.returncode == 3
    summary = json.loads(done.stdout)
    assert summary["usage"]["by_role"]["sandbox"]["usd"] > 1
    assert summary["coverage"] < 1


def test_without_a_valid_token_nothing_is_run(
    lab: LoopbackModal, run: Any, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = GRPCError(Status.UNAUTHENTICATED, "Token ID is malformed")
    with lab.failing("SandboxCreateV2", refused, refused):
        done = run("--sandbox", "modal", "-j", "1", "--out", "none")
    assert done.returncode == 5
    assert "modal token new" in done.stderr or "fleet-rlm doctor" in done.stderr
    records, _ = read(project / "none")
    assert not records
    monkeypatch.delenv("MODAL_TOKEN_ID")
    done = run("--sandbox", "modal")
    assert done.returncode == 5
    assert "modal token new" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_shared_context_is_sent_once_and_mounted_alone(
    lab: LoopbackModal, run: Any, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contexts, "WORTH_TOKENS", 10_000)
    lab.volumes.clear()
    wide = ("--set", "lengths=[16000]", "--sandbox", "modal")
    done = run(*wide, "--out", "shared", "--workers", "2", "-j", "4", suite="needle")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["coverage"] == 1.0
    (volume,) = lab.volumes.values()
    texts = [path for path in volume.root.rglob("*") if path.is_file()]
    records, _ = read(project / "shared")
    assert len(texts) == len({record["cluster"] for record in records}) < len(records)
    for sandbox in lab.sandboxes.values():
        (mount,) = sandbox.wanted.volume_mounts
        assert mount.read_only
        assert mount.sub_path.strip("/") in {path.name for path in texts}
    assert lab.calls["TaskExecStdinWriteStream"] == 0
    sent = lab.uploaded
    assert sent < 2 * sum(path.stat().st_size for path in texts)
    local = json.loads(run("--set", "lengths=[16000]", "--out", "here", suite="needle").stdout)
    assert summary["tasks"] == local["tasks"]


def test_tokens_that_expire_and_a_cut_upload_cost_no_sample(lab: LoopbackModal, run: Any) -> None:
    lab.token_s = 1.0
    cut = GRPCError(Status.DATA_LOSS, "cut")
    with lab.failing("TaskExecStdinWriteStream", cut, None, cut):
        done = run("--set", "lengths=[16000]", "--sandbox", "modal", "-j", "2", suite="needle")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["coverage"] == 1.0
    assert lab.calls["TaskExecStdinWriteStream"] > 0


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_leaves_no_sandbox_and_the_run_resumes(
    lab: LoopbackModal, run: Any, project: Path, times: int
) -> None:
    words = ["--sandbox", "modal", "--out", "cut", "-j", "2", "--limit", "4"]
    command = [sys.executable, "-m", "fleet_rlm.cli.eval", "run", "quickstart", *SMALL, *words]
    process = subprocess.Popen(
        [*command, "--no-mlflow"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    with process:
        until = time.monotonic() + 60
        while not lab.live() and time.monotonic() < until:
            time.sleep(0.01)
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        assert process.wait(60) == 130
    assert not lab.live()
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["coverage"] == 1.0


def test_what_a_remote_session_prints_streams_while_it_runs(lab: LoopbackModal) -> None:
    code = "print('begun', flush=True)\ngo_on()\nSUBMIT(answer='done')"
    acts = [{"reasoning": "next", "code": f"```python\n{code}\n```"}]
    seen = threading.Event()

    def go_on() -> str:
        assert seen.wait(20), "nothing came before the cell had ended"
        return "on"

    rlm = RLM("question -> answer", tools=[go_on], interpreter_factory=ModalInterpreter)
    kinds = []
    with dspy.context(lm=DummyLM(acts)):
        for event in fleet_rlm.stream(rlm, question="?"):
            kinds.append(event.kind)
            if "begun" in str(event.text):
                seen.set()
    assert {"thought", "code", "stdout", "final"} <= set(kinds)
