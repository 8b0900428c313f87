"""Runs on a service that fails in every way: nothing lost, nothing twice, no outage a zero."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import fleet_rlm
from fleet_rlm.board import Column
from fleet_rlm.config import resolve
from fleet_rlm.ledger import Caps, Limits
from fleet_rlm.lm import throttle
from fleet_rlm.lm.simulated.launch import simulated_server
from fleet_rlm.runner.executor import StopFlag
from fleet_rlm.runner.run import Whole
from fleet_rlm.runner.store import repair_and_read
from fleet_rlm.search.candidates import as_it_is
from fleet_rlm.search.job import prepare
from fleet_rlm.search.lab import Lab
from fleet_rlm.search.recipe import make_recipe
from fleet_rlm.search.spending import JobPurse

ALL_FAULTS = {
    "429": 0.05, "503": 0.02, "500": 0.02, "hang": 0.005, "reset": 0.02, "malformed": 0.02,
    "truncate": 0.02, "empty": 0.01, "refuse": 0.01,
}  # fmt: skip


@pytest.fixture(scope="module")
def running():
    with simulated_server() as server:
        yield server


@pytest.fixture
def server(running):
    running.configure(faults={}, fail_first={}, latency_ms=0, rpm=0, hang_s=30)
    return running


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(throttle, "backoff", lambda tried: 0.01 * 2**tried)


def evaluate(server, monkeypatch, **more):
    monkeypatch.setenv("DSPY_LM_API_BASE", server.url)
    more.setdefault("overrides", {"lengths": [4000], "windows": 10})
    return fleet_rlm.evaluate("rlm", "needle", model="openai/sim", out="run", **more)


def by_sample(folder="run"):
    records = repair_and_read(Path(folder, "records.jsonl"))
    assert len({record.key for record in records}) == len(records)
    return {record.sample: record for record in records}


def test_a_storm_of_rate_limits_slows_a_run_and_costs_it_nothing(server, monkeypatch):
    calm = evaluate(server, monkeypatch, limits=Limits(working_s=5.0)).summary
    Path("run").rename("calm")
    server.configure(faults={"429": 0.5}, retry_after=0.02)
    stormy = evaluate(server, monkeypatch, limits=Limits(working_s=5.0)).summary
    assert server.stats()["faults"]["429"] > 50
    assert (stormy["score"], stormy["stops"]) == (calm["score"], calm["stops"])
    assert stormy["usage"]["calls"] == calm["usage"]["calls"]
    assert stormy["usage"]["usd"] == calm["usage"]["usd"]
    waited = [record for record in by_sample().values() if record.working_s < record.seconds]
    assert waited


def test_trials_side_by_side_share_one_limit_on_calls(server, monkeypatch, tmp_path):
    monkeypatch.setenv("DSPY_LM_API_BASE", server.url)
    recipe = make_recipe(
        {"name": "n", "optimizer": "settings-only", "suite": "needle", "validation": 8, "test": 2,
         "space": {"max_iters": [8]}, "overrides": {"lengths": [4000], "windows": 6}},
        "recipe",
    )  # fmt: skip
    flags = {"model": "openai/sim", "concurrency": 16}
    job = prepare(recipe, resolve(flags, os.environ, tmp_path), tmp_path, tmp_path / "job")
    purse = JobPurse(tmp_path / "spent", Caps())
    whole = Whole(purse=purse, stop=StopFlag())
    lab = Lab(
        folder=tmp_path, suite=job.suite, arm=job.arm, models={}, whole=whole, concurrency=16,
        candidates=as_it_is(job.arm.make_program()), epochs=1, patience_s=(),
    )  # fmt: skip
    server.configure(fail_first={"429": 1}, retry_after=0.01)
    lab.run_trials([{}, {"max_iters": 8}], job.split.validation)
    purse.close()
    seen, again = server.stats(), JobPurse(tmp_path / "spent", Caps())
    again.close()
    for spent in (purse.usage, again.usage):
        assert (spent.calls, spent.input_tokens) == (seen["ok"], seen["prompt_tokens"])
        assert spent.output_tokens == seen["completion_tokens"]
    assert seen["faults"] == {"429": 1}
    assert whole.gate.limit, "one trial was refused, and all of the job's calls heed it"
    assert whole.gate.board.total(Column.IN_FLIGHT) == 0


@pytest.mark.parametrize("fault", ["500", "503", "reset", "malformed", "truncate"])
def test_failures_of_a_moment_change_no_answer(server, monkeypatch, fault):
    evaluate(server, monkeypatch, limit=12)
    Path("run").rename("calm")
    server.configure(faults={fault: 0.2}, retry_after=0.01)
    run = evaluate(server, monkeypatch, limit=12)
    assert server.stats()["faults"][fault] > 3
    assert run.summary["errors"] == 0
    answers = [
        {name: r.answer for name, r in by_sample(place).items()} for place in ("calm", "run")
    ]
    assert answers[0] == answers[1]


def test_the_ledger_equals_what_the_server_answered(server, monkeypatch):
    # What a connection tore away the server had answered too, so only faults before the answer.
    server.configure(faults={"429": 0.1, "500": 0.1, "malformed": 0.05}, retry_after=0.01)
    run = evaluate(server, monkeypatch, concurrency=16)
    seen, spent = server.stats(), run.summary["usage"]
    assert spent["calls"] == seen["ok"] < seen["requests"]
    assert spent["input_tokens"] == seen["prompt_tokens"]
    assert spent["output_tokens"] == seen["completion_tokens"]


def test_a_call_that_hangs_ends_with_the_time_of_its_sample(server, monkeypatch):
    server.configure(fail_first={"hang": 1}, hang_s=60)
    began = time.monotonic()
    run = evaluate(
        server, monkeypatch, limit=1, concurrency=1, limits=Limits(working_s=None, wall_s=0.5)
    )
    assert time.monotonic() - began < 20
    (record,) = by_sample().values()
    assert (record.status, record.stop, record.limit) == ("limit", "wall", 0.5)
    assert run.summary["errors"] == 0


def test_an_outage_is_missing_data_and_can_be_tried_again(server, monkeypatch):
    server.configure(faults={"500": 1.0})
    down = evaluate(server, monkeypatch, limit=4).summary
    assert (down["score"], down["errors"], down["coverage"]) == (None, 4, 0.0)
    boundaries = {record.error.boundary for record in by_sample().values()}
    assert boundaries == {"provider"}


def test_a_model_that_refuses_or_says_nothing_is_a_result_of_its_own(server, monkeypatch):
    server.configure(faults={"refuse": 0.5, "empty": 0.5})
    run = evaluate(server, monkeypatch, limit=3, settings={"max_iters": 2})
    for record in by_sample().values():
        assert (record.status, record.stop, record.score) == ("limit", "iterations", 0.0)
    assert run.summary["errors"] == 0


def test_a_run_that_is_killed_at_any_moment_ends_whole(server, monkeypatch):
    """`kill -9` at 50 random moments, the command given again each time."""
    words = [
        "needle", "--program", "direct", "--model", "openai/sim", "--api-base", server.url,
        "--set", "lengths=[4000]", "--set", "windows=75", "-j", "16", "--out", "run",
        "--no-mlflow", "--display", "none",
    ]  # fmt: skip
    # The command as it runs, without the second that a fresh interpreter takes to import dspy.
    code = (
        "import os, random, signal, sys, threading, time\n"
        "from fleet_rlm.cli.eval import main\n"
        "import fleet_rlm.cli.run, fleet_rlm.lm.engines, dspy\n"
        "def child(seconds):\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        sys.argv = ['fleet-eval', 'run', *sys.argv[1:]]\n"
        "        if seconds:\n"
        "            kill = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        "            threading.Timer(seconds, kill).start()\n"
        "        main()\n"
        "    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "lucky = random.Random(7)\n"
        "ends = [child(lucky.uniform(0.01, 0.25)) for _ in range(50)]\n"
        "print(ends.count(-9), child(0))\n"
    )
    server.configure(latency_ms=30)
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=110
    )
    killed, last = done.stdout.split()[-2:]
    assert int(killed) >= 25, done.stderr
    assert last == "0"
    assert len(by_sample()) == 300


def test_two_thousand_samples_survive_everything_at_once(server):
    """All faults of the service, sandboxes shot, workers shot, `kill -9`, Ctrl-C; then whole."""
    server.configure(faults=ALL_FAULTS, retry_after=0.02, hang_s=2, latency_ms=20, jitter=0.5)
    command = [
        sys.executable, "-m", "fleet_rlm.cli.eval", "run", "needle", "--model", "openai/sim",
        "--api-base", server.url, "--set", "lengths=[4000]", "--set", "windows=500", "-j", "96",
        "--workers", "2", "--timeout", "1", "--out", "run", "--no-mlflow", "--json",
    ]  # fmt: skip
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    path = Path("run/records.jsonl")

    def finished():
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def run_until(count, end):
        """Shoot at it until it has so many records, then end it so."""
        process, before = subprocess.Popen(command, **how), finished()
        shooting = threading.Event()
        # Not before it works: what proves the sandbox at the start must be left alone.
        while finished() == before and process.poll() is None:
            time.sleep(0.05)
        shooter = threading.Thread(target=_shoot, args=(process.pid, shooting))
        shooter.start()
        while finished() < count and process.poll() is None:
            time.sleep(0.05)
        if end is not None:
            process.send_signal(end)
        shooting.set()
        shooter.join()
        return process.returncode, *process.communicate(timeout=100), process.returncode

    run_until(500, signal.SIGKILL)
    _, _, stderr, interrupted = run_until(1000, signal.SIGINT)
    assert interrupted == 130, stderr
    _, stdout, stderr, code = run_until(2000, None)
    assert code == 0, stderr
    summary = json.loads(stdout)
    records = by_sample()
    assert len(records) == summary["samples"] == 2000
    for record in records.values():
        assert (record.score is None) == (record.status == "error")
        if record.error:
            assert record.error.boundary in {"provider", "sandbox"}
    assert summary["coverage"] > 0.98
    assert summary["score"] > 0.4
    assert "Traceback" not in stderr
    leftovers = [
        pid for pid in Path("/proc").glob("[0-9]*") if _mentions(pid, b"fleet_rlm.runner.worker")
    ]
    assert not [pid for pid in leftovers if _parent(pid) == 1]


def _shoot(root, over):
    """End a random process below `root` now and then: sandboxes, supervisors, workers."""
    lucky = random.Random(5)
    while not over.wait(0.7):
        below = _descendants(root)
        if below:
            try:
                os.kill(lucky.choice(below), signal.SIGKILL)
            except ProcessLookupError:
                continue


def _descendants(root):
    children = {}
    for path in Path("/proc").glob("[0-9]*"):
        if parent := _parent(path):
            children.setdefault(parent, []).append(int(path.name))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _parent(path):
    try:
        return int((path / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def _mentions(path, text):
    try:
        return text in (path / "cmdline").read_bytes()
    except OSError:
        return False
