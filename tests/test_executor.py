"""How samples are run: once each, in threads and processes, within their time, and cut off."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import dspy
import pytest

import fleet_rlm
from fleet_rlm.errors import BudgetExhausted, UsageError
from fleet_rlm.ledger import Caps, Limits
from fleet_rlm.runner import executor
from fleet_rlm.runner.store import read_abandoned, repair_and_read

SMALL = {"lengths": [4000], "windows": 10, "questions": 2}
"""20 samples of `needle`."""


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(program, **more):
    more.setdefault("overrides", SMALL)
    return fleet_rlm.evaluate(program, "needle", sandbox="unsafe-process", out="run", **more)


class Watched(dspy.Module):
    """Answers at once, and counts who asked and how many were inside."""

    def __init__(self, pause_s=0.01):
        super().__init__()
        self.calls, self.inside, self.peak = Counter(), 0, 0
        self.pause_s = pause_s
        self.lock = threading.Lock()

    def __deepcopy__(self, _memo):
        return self

    def forward(self, context, query):
        with self.lock:
            self.calls[query, context[:200]] += 1
            self.inside += 1
            self.peak = max(self.peak, self.inside)
        time.sleep(self.pause_s)
        with self.lock:
            self.inside -= 1
        return dspy.Prediction(answer="nothing")


def test_every_sample_is_run_once_and_at_most_so_many_at_a_time():
    program = Watched()
    run = evaluate(program, concurrency=5)
    assert set(program.calls.values()) == {1}
    assert len(program.calls) == len(run.records()) == 20
    assert 1 < program.peak <= 5
    evaluate(program, concurrency=5)
    assert sum(program.calls.values()) == 20


def test_a_program_that_ignores_its_time_is_a_limit_and_frees_its_place(monkeypatch):
    monkeypatch.setattr(executor, "GRACE_S", 0.1)
    monkeypatch.setattr(executor, "STUCK_S", 0.1)
    over = threading.Event()
    asked = []

    class Deaf(dspy.Module):
        def forward(self, context, query):
            asked.append(query)
            if len(asked) == 1:
                over.wait(30)  # no model call, no code: nothing that can be cut off
            return dspy.Prediction(answer="late")

    run = evaluate(Deaf(), concurrency=1, limit=4, limits=Limits(working_s=0.2))
    over.set()
    frame = run.records()
    assert sorted(frame["stop"]) == ["answered", "answered", "answered", "working"]
    stuck = frame[frame["stop"] == "working"].iloc[0]
    assert (stuck["status"], stuck["answer"], stuck["limit"]) == ("limit", "", 0.2)
    assert len(repair_and_read(Path("run/records.jsonl"))) == 4  # the late answer came to nothing


def test_a_full_disk_ends_the_run_in_one_line_and_keeps_what_is_stored():
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, resource.RLIM_INFINITY));"
        "from fleet_rlm.cli.eval import main; main()"
    )
    words = ["run", "needle", "--set", "lengths=[4000]", "--set", "windows=10", "--no-mlflow"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--out", "full", "--program", "direct"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "Cannot write to run folder full: File too large" in done.stderr
    kept = repair_and_read(Path("full/records.jsonl"))
    assert 0 < len(kept) < 20
    assert len({record.key for record in kept}) == len(kept)


def test_a_read_only_folder_is_one_line():
    evaluate(Watched(), limit=1)
    Path("run/records.jsonl").chmod(0o400)
    if os.geteuid() == 0:
        # Root may write anything: an immutable place is a file where a folder is wanted.
        Path("run/trajectories").rename("elsewhere")
        Path("run/trajectories").write_text("")
    with pytest.raises(UsageError, match="Cannot write to run folder run"):
        evaluate(Watched(), limit=2)


# ---- processes ----------------------------------------------------------------------------------


def start(*words):
    command = [sys.executable, "-m", "fleet_rlm.cli.eval", "run", *words, "--no-mlflow"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def scores(folder):
    return {record.sample: record.score for record in repair_and_read(folder / "records.jsonl")}


def test_two_processes_give_what_one_gives():
    one = fleet_rlm.evaluate("rlm", "needle", overrides=SMALL, out="one", workers=1)
    two = fleet_rlm.evaluate("rlm", "needle", overrides=SMALL, out="two", workers=2)
    assert scores(Path("one")) == scores(Path("two"))
    spent = [
        [run.summary["usage"][name] for name in ("calls", "input_tokens", "usd")]
        for run in (one, two)
    ]
    assert spent[0] == spent[1]


def test_a_users_own_program_runs_in_workers_and_an_object_that_cannot_travel_is_one_line():
    Path("own.py").write_text(
        "import os, dspy\n"
        "class Mine(dspy.Module):\n"
        "    def forward(self, context, query):\n"
        "        import time; time.sleep(0.2)\n"
        "        return dspy.Prediction(answer=str(os.getpid()))\n"
        "def make():\n    return Mine()\n"
    )
    more = {"windows": 40, "lengths": [4000]}
    run = fleet_rlm.evaluate(
        "own.py:make", "needle", overrides=more, out="own", workers=2, concurrency=8
    )
    by_process = Counter(run.records()["answer"])
    assert sum(by_process.values()) == 160
    assert len(by_process) == 2
    assert str(os.getpid()) in by_process
    with pytest.raises(UsageError, match=r"cannot be sent to another process.*--workers 1"):
        evaluate(Watched(), workers=2)


def test_samples_of_a_killed_worker_are_run_elsewhere_and_recorded_once():
    Path("pids").mkdir()
    Path("own.py").write_text(
        "import os, time, pathlib, dspy\n"
        "class Mine(dspy.Module):\n"
        "    def forward(self, context, query):\n"
        "        pathlib.Path('pids', str(os.getpid())).touch()\n"
        "        time.sleep(0.3)\n"
        "        return dspy.Prediction(answer='x')\n"
        "def make():\n    return Mine()\n"
    )
    process = start(
        "needle", "--program", "own.py:make", "--set", "lengths=[4000]", "--set", "windows=40",
        "-j", "8", "--workers", "2", "--out", "run", "--json",
    )  # fmt: skip
    with process:
        wait_until(lambda: len(list(Path("pids").iterdir())) == 2)
        (worker,) = {int(path.name) for path in Path("pids").iterdir()} - {process.pid}
        os.kill(worker, signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    summary = json.loads(stdout)
    assert (summary["coverage"], summary["errors"]) == (1.0, 0)
    records = repair_and_read(Path("run/records.jsonl"))
    assert len(records) == len({record.key for record in records}) == 160


def test_a_second_interrupt_cuts_off_what_is_in_flight_and_nothing_is_lost():
    Path("slow.py").write_text(
        "import dspy\n"
        "class Slow(dspy.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.code = fleet_rlm.LocalInterpreter\n"
        "    def forward(self, context, query):\n"
        "        from fleet_rlm.lm.cancel import pause\n"
        "        pause(60)\n"
        "def make():\n    return Slow()\n".replace("import dspy", "import dspy, fleet_rlm")
    )
    process = start("needle", "--program", "slow.py:make", "--out", "run", "--display", "plain")
    wait_until(lambda: Path("run/records.jsonl").exists())
    time.sleep(1)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 130, stderr
    assert time.monotonic() - began < 10
    assert "stays owed" in stderr
    assert "fleet-eval resume run" in stdout
    assert repair_and_read(Path("run/records.jsonl")) == []
    assert read_abandoned(Path("run")).attempts == 8


# ---- caps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_a_cap_in_dollars_is_hard_and_a_higher_one_goes_on(workers):
    more = {"overrides": SMALL, "out": "run", "workers": workers, "concurrency": 4}
    free = fleet_rlm.evaluate("rlm", "needle", **more | {"out": "free"})
    whole = free.summary["usage"]["usd"]
    dearest = free.records()["usd"].max()
    with pytest.raises(BudgetExhausted, match="higher --max-usd"):
        fleet_rlm.evaluate("rlm", "needle", **more, caps=Caps(usd=whole / 2))
    half = fleet_rlm.open_run("run")
    # At most the calls in flight are over it; a call costs less than a sample.
    assert half.summary["usage"]["usd"] <= whole / 2 + 4 * dearest
    assert 0 < half.summary["scored"] < 20
    done = fleet_rlm.evaluate("rlm", "needle", **more, caps=Caps(usd=3 * whole))
    assert done.summary["coverage"] == 1.0
    assert scores(Path("run")) == scores(Path("free"))
    lost = done.summary["usage"]["abandoned"]["usd"]
    assert done.summary["usage"]["usd"] == pytest.approx(whole + lost)


def test_few_samples_are_begun_and_not_finished_under_a_cap():
    with pytest.raises(BudgetExhausted):
        fleet_rlm.evaluate(
            "direct", "needle", overrides=SMALL, out="run", concurrency=2, caps=Caps(tokens=40_000)
        )
    run = fleet_rlm.open_run("run")
    used = run.summary["usage"]
    assert used["input_tokens"] + used["output_tokens"] <= 40_000
    assert used["abandoned"]["attempts"] == 0
    assert run.summary["scored"] >= 5


def test_a_cap_in_seconds_counts_all_sessions():
    with pytest.raises(BudgetExhausted, match="seconds"):
        evaluate(Watched(pause_s=0.1), concurrency=1, caps=Caps(seconds=0.5))
    with pytest.raises(BudgetExhausted, match="seconds"):
        evaluate(Watched(pause_s=0.1), concurrency=1, caps=Caps(seconds=0.5))
    assert 3 <= fleet_rlm.open_run("run").summary["scored"] <= 6

    class Late(dspy.Module):
        def forward(self, context, query):
            time.sleep(0.1)
            return dspy.Predict("query -> answer")(query=query)

    with pytest.raises(BudgetExhausted):
        fleet_rlm.evaluate(Late(), "needle", overrides=SMALL, out="late", caps=Caps(seconds=0.1))
    late = fleet_rlm.open_run("late").summary
    assert (late["scored"], late["usage"]["abandoned"]["attempts"]) == (0, 8)
    assert late["wall_s"] >= 0.1, "time of a session without a record is gone all the same"


def test_a_raised_limit_runs_only_the_samples_that_met_the_lower_one():
    tight = fleet_rlm.evaluate(
        "rlm", "needle", overrides=SMALL, out="run", limits=Limits(tokens=4_000)
    )
    met = tight.records().query("status == 'limit'")
    assert 0 < len(met) < 20
    more = fleet_rlm.evaluate("rlm", "needle", overrides=SMALL, out="run", limits=Limits())
    records = repair_and_read(Path("run/records.jsonl"))
    assert len(records) == 20 + len(met)
    assert set(more.records()["status"]) == {"scored"}
    again = fleet_rlm.evaluate("rlm", "needle", overrides=SMALL, out="run", limits=Limits())
    assert again.summary == more.summary


def test_open_files_of_a_large_run_stay_few():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(list(Path("/proc/self/fd").iterdir())) + 60
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, few), hard))
    try:
        run = evaluate(Watched(), concurrency=200, overrides=SMALL | {"windows": 100})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert run.summary["coverage"] == 1.0
