"""`fleet-eval run --sandbox modal` over the loopback: the same scores, faults as missing data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils import DummyLM
from grpclib import GRPCError, Status

from fleet_rlm import RLM, ModalInterpreter
from fleet_rlm.sandbox import modal_create
from tests.modal_loopback import LoopbackModal

SMALL = ("--set", "lengths=[4000]", "--set", "windows=1", "--set", "modal.creates_per_s=100")


def read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    lines = (folder / "records.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], json.loads((folder / "run.json").read_text())


@pytest.fixture
def run(command: Any) -> Any:
    def run_here(*words: str) -> Any:
        return command("run", "quickstart", *SMALL, "--no-mlflow", "--json", *words)

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
        done = run("--sandbox", "modal", "-j", "6")
    assert done.returncode == 0, done.stderr
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
