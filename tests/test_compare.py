"""`fleet-eval compare`: paired by sample, by task, refused where it would mislead."""

import json
import sys

import pytest

import fleet_rlm
from fleet_rlm.cli.eval import main as fleet_eval
from fleet_rlm.errors import UsageError
from fleet_rlm.lm.simulated import LABEL

SMALL = {"lengths": [4000], "windows": 2}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return {
        program: fleet_rlm.evaluate(program, "quickstart", overrides=SMALL, out=program)
        for program in ("direct", "rlm")
    }


def test_two_runs_are_paired_by_sample_and_task(runs):
    found = fleet_rlm.compare("direct", runs["rlm"])
    rows = {row.name: row for row in found.rows}
    assert set(rows) == {"aggregate", "needle", "variables", "all"}
    assert rows["all"].test.n == 12
    for name, run in (("baseline", runs["direct"]), ("candidate", runs["rlm"])):
        assert getattr(rows["all"], name) == pytest.approx(run.summary["score"])
    assert rows["all"].test.difference == pytest.approx(
        rows["all"].candidate - rows["all"].baseline
    )
    assert rows["needle"].p_holm >= rows["needle"].test.p
    assert found.label == LABEL


def test_a_run_compared_with_itself_differs_in_nothing(runs):
    total = fleet_rlm.compare("rlm", "rlm").rows[-1].test
    assert (total.difference, total.p, total.ties) == (0.0, 1.0, 12)


def test_other_data_and_mixed_models_are_refused(runs, tmp_path):
    other = fleet_rlm.evaluate("direct", "quickstart", overrides={**SMALL, "seed": 5}, out="other")
    with pytest.raises(UsageError, match="different data: suite digest"):
        fleet_rlm.compare("direct", other)
    lock = tmp_path / "rlm" / "run.json"
    lock.write_text(lock.read_text().replace('"model_kind": "simulated"', '"model_kind": "live"'))
    with pytest.raises(UsageError, match="simulated and the other live"):
        fleet_rlm.compare("direct", "rlm")
    assert fleet_rlm.compare("direct", "rlm", allow_mixed=True).rows


def test_the_command_prints_a_table_or_json(runs, capfd, monkeypatch):
    def command(*words):
        monkeypatch.setattr(sys, "argv", ["fleet-eval", "compare", *words])
        with pytest.raises(SystemExit) as ended:
            fleet_eval()
        return int(ended.value.code), *capfd.readouterr()

    code, out, _ = command("direct", "rlm")
    assert code == 0
    for part in (LABEL, "aggregate", "variables", "difference", "p Holm", "coverage 100%"):
        assert part in out
    code, out, _ = command("direct", "rlm", "--json")
    found = json.loads(out)
    assert found["rows"][-1]["test"]["n"] == 12
    assert found["baseline"]["usage"]["calls"] == 12
    code, out, err = command("direct", "nowhere")
    assert (code, out) == (2, "")
    assert "not the folder of a run" in err
