"""`fleet-eval gate`: what passes, what fails, and what cannot be told."""

import json

import pytest

import fleet_rlm
from fleet_rlm.runner.gate import judge
from fleet_rlm.statistics.clustered import Interval

SMALL = {"lengths": [4000], "windows": 2}


@pytest.mark.parametrize(
    ("low", "high", "bound", "strict", "lenient"),
    [
        (-0.01, 0.05, -0.02, "passed", "passed"),
        (-0.05, 0.05, -0.02, "failed", "passed"),
        (-0.09, -0.03, -0.02, "failed", "failed"),
        (0.78 - 0.8, 0.0, -0.02, "passed", "passed"),
    ],
)
def test_the_interval_decides(low, high, bound, strict, lenient):
    ci = Interval(low, high)
    assert judge(ci, bound, only_proven=False) == strict
    assert judge(ci, bound, only_proven=True) == lenient


def test_without_an_interval_nothing_is_decided():
    assert judge(None, 0.0, only_proven=True) == "indecisive"


@pytest.fixture
def runs(project):
    for program in ("direct", "rlm"):
        fleet_rlm.evaluate(program, "quickstart", overrides=SMALL, out=program)
    return project


def test_a_run_holds_up_to_itself_and_not_to_a_better_one(runs, command):
    same = command("gate", "rlm", "--baseline", "rlm", "--max-drop", "0")
    assert (same.returncode, same.stdout[:7]) == (0, "passed:")
    assert "the interval has no width; up to 39% of such contexts may still differ" in same.stdout
    assert "no proof: no context differed from another" in same.stdout
    found = {name: fleet_rlm.open_run(name).summary["score"] for name in ("direct", "rlm")}
    worse, better = sorted(found, key=found.get)
    assert found[worse] < found[better]
    lost = command("gate", worse, "--baseline", better, "--max-drop", "0.02", "--json")
    verdict = json.loads(lost.stdout)
    assert (lost.returncode, verdict["verdict"], verdict["n"]) == (1, "failed", 12)
    assert verdict["value"] == pytest.approx(found[worse] - found[better])
    assert verdict["ci"][0] < -0.02


def test_a_score_is_held_to_a_minimum(runs, command):
    assert command("gate", "rlm", "--min", "0").returncode == 0
    worse = min(("direct", "rlm"), key=lambda name: fleet_rlm.open_run(name).summary["score"])
    low = command("gate", worse, "--min", "1")
    assert low.returncode == 1
    assert "12 samples" in low.stdout


def test_missing_samples_make_a_gate_indecisive(runs, command):
    lines = (runs / "rlm" / "records.jsonl").read_text().splitlines(keepends=True)
    (runs / "rlm" / "records.jsonl").write_text("".join(lines[:3]))
    (runs / "rlm" / "summary.json").unlink()
    done = command("gate", "rlm", "--min", "0")
    assert done.returncode == 4
    assert "coverage of rlm is 25%, below 80%" in done.stdout
    done = command("gate", "rlm", "--baseline", "direct", "--max-drop", "1")
    assert (done.returncode, done.stdout[:10]) == (4, "indecisive")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "takes --min, or --baseline with --max-drop"),
        (["--min", "0.5", "--baseline", "x", "--max-drop", "0"], "takes --min, or"),
        (["--baseline", "x"], "takes --min, or"),
        (["--min", "80"], "between 0 and 1"),
        (["--baseline", "x", "--max-drop", "-0.1"], "between 0 and 1"),
        (["--min", "0.5"], "not the folder of a run"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(command, words, said):
    done = command("gate", "nowhere", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
