"""`fleet-eval compare`: paired by sample, by task and length, refused where it would mislead."""

import json
import re
import shutil
import sys

import numpy as np
import orjson
import pytest

import fleet_rlm
from fleet_rlm.cli.eval import main as fleet_eval
from fleet_rlm.errors import UsageError
from fleet_rlm.lm.simulated import LABEL
from fleet_rlm.report.comparison import render
from fleet_rlm.statistics.paired import compare as compare_scores
from fleet_rlm.statistics.paired import holm

SMALL = {"lengths": [4000, 8000], "windows": 2}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Three arms on 24 samples; copied for each test, which may change them."""
    folder = tmp_path_factory.mktemp("runs")
    for name, program, settings in (
        ("direct", "direct", {}),
        ("rlm", "rlm", {}),
        ("short", "rlm", {"max_iters": 1}),
    ):
        fleet_rlm.evaluate(
            program, "quickstart", settings=settings, overrides=SMALL, out=folder / name
        )
    return folder


@pytest.fixture
def runs(stored, tmp_path, monkeypatch):
    shutil.copytree(stored, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    return tmp_path / "runs"


def edit(folder, change):
    """Rewrite a run's records, and let its summary be made anew."""
    path = folder / "records.jsonl"
    rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    path.write_bytes(b"".join(orjson.dumps(change(row)) + b"\n" for row in rows))
    (folder / "summary.json").unlink()


def lock(folder, was, now):
    path = folder / "run.json"
    text = path.read_text()
    assert was in text
    path.write_text(text.replace(was, now))


def test_runs_are_paired_by_sample_task_and_length(runs):
    found = fleet_rlm.compare("direct", "rlm", "short")
    assert found.names == ("direct", "rlm max_iters=20", "rlm max_iters=1")
    frames = [fleet_rlm.open_run(name).records() for name in ("direct", "rlm")]
    both = frames[0].merge(frames[1], on="sample")
    row = found.row("needle", length=8000)
    part = both[(both["task_x"] == "needle") & (both["length_x"] == 8000)]
    assert (row.test.n, row.test.clusters) == (4, 2)
    assert row.baseline.score == pytest.approx(part["score_x"].mean())
    assert row.candidate.cost.usd == pytest.approx(part["usd_y"].mean())
    assert row.candidate.cost.p95_s == pytest.approx(np.quantile(part["working_s_y"], 0.95))
    assert row.candidate.cost.stops == part["stop_y"].value_counts().to_dict()
    total = found.row()
    expected = compare_scores(
        *(dict(zip(both["sample"], both[f"score_{side}"], strict=True)) for side in "xy"),
        dict(zip(both["sample"], both["cluster_x"], strict=True)),
    )
    assert total.test == expected
    tasks = [r for r in found.rows if r.task != "all" and r.length is None]
    assert {r.arm for r in tasks} == set(found.names[1:])
    assert {r.metric for r in tasks} == {"score", "official"}
    assert [r.p_holm for r in tasks] == holm([r.test.p for r in tasks])
    assert found.label == LABEL


def test_a_run_compared_with_itself_shows_no_certainty(runs):
    found = fleet_rlm.compare("rlm", "rlm")
    test = found.row().test
    assert (test.difference, test.p, test.ties) == (0.0, 1.0, 24)
    assert (test.degenerate, test.detectable) == (True, None)
    shown = render(found, "text")
    assert "all equal" in shown
    assert "+0.000 to" not in shown


def test_errors_are_missing_and_shown_as_zero_beside(runs):
    def fail(row):
        if row["task"] == "needle" and row["length"] == 8000:
            row |= {
                "status": "error",
                "stop": "error",
                "score": None,
                "official": None,
                "robust": None,
                "error": {"boundary": "provider", "type": "T", "message": "m"},
            }
        return row  # fmt: skip

    edit(runs / "rlm", fail)
    found = fleet_rlm.compare("direct", "rlm")
    with pytest.raises(KeyError):
        found.row("needle", length=8000)
    row = found.row("needle")
    assert row.test.n == 4
    assert row.candidate.with_errors_as_zero == pytest.approx(row.candidate.score / 2)
    assert row.candidate.cost.stops["error"] == 4
    assert found.arms[1]["coverage"] == pytest.approx(20 / 24)


def test_reading_runs_changes_no_file(runs):
    path = runs / "rlm" / "records.jsonl"
    with path.open("ab") as file:
        file.write(b'{"torn')
    (runs / "rlm" / "summary.json").unlink()
    before = {p: p.read_bytes() for p in runs.rglob("*") if p.is_file()}
    assert fleet_rlm.compare("direct", "rlm").row().test.n == 24
    fleet_rlm.open_run("rlm").trajectory(fleet_rlm.open_run("rlm").records()["sample"][0])
    assert {p: p.read_bytes() for p in runs.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ('"seed": 0,\n    "tasks"', '"seed": 5,\n    "tasks"', "suite seed 0 and 5"),
        ('"headline": "robust"', '"headline": "official"', "headline robust and official"),
        ('"source": "prose-1"', '"source": "abc"', "digest of the text that is planted in"),
        ('"models": {', '"models": {"judge": {"name": "j"},', "judge None and j"),
        ('"model_kind": "simulated"', '"model_kind": "live"', "simulated and the other live"),
    ],
)
def test_other_data_scorers_and_kinds_are_refused_by_name(runs, was, now, said):
    lock(runs / "rlm", was, now)
    if "models" not in was and "kind" not in was:
        digest = fleet_rlm.open_run("rlm").lock["suite"]["digest"]
        lock(runs / "rlm", digest, "f" * 64)
        said = re.escape(said) + r".*suite digest \w{12} and f{12}"
    with pytest.raises(UsageError, match=said):
        fleet_rlm.compare("direct", "rlm")
    if "kind" in was:
        assert fleet_rlm.compare("direct", "rlm", allow_mixed=True).rows


def test_what_differs_beside_the_program_is_said(runs):
    lock(runs / "rlm", '"working_s": 600', '"working_s": 60')
    lock(runs / "rlm", '"name": "sim"', '"name": "other"')
    found = fleet_rlm.compare("direct", "rlm")
    assert found.names == ("direct sim", "rlm other")
    notes = "\n".join(found.notes)
    assert "models sim (direct sim), other (rlm other)" in notes
    assert "working_s 60 (rlm other)" in notes


def test_the_command_prints_tables_markdown_or_json(runs, capfd, monkeypatch):
    def command(*words):
        monkeypatch.setattr(sys, "argv", ["fleet-eval", "compare", *words])
        with pytest.raises(SystemExit) as ended:
            fleet_eval()
        return int(ended.value.code), *capfd.readouterr()

    code, out, _ = command("direct", "rlm", "short")
    assert code == 0
    for part in (LABEL, "aggregate", "difference", "p Holm", "errors=0", "p95 s", "fewer than 6"):
        assert part in out
    assert "…" not in out
    code, out, _ = command("direct", "rlm", "--md")
    lines = [line for line in out.splitlines() if line.startswith("| all ")]
    assert any(line.count("|") == 14 for line in lines)
    code, out, _ = command("direct", "rlm", "--json")
    found = json.loads(out)
    assert found["rows"][-1]["test"]["n"] == 24
    assert found["baseline"]["usage"]["calls"] == 24
    assert "degenerate" in found["rows"][0]["test"]
    for words, said in (
        (["direct", "nowhere"], "not the folder of a run"),
        (["direct", "rlm", "--json", "--md"], "two forms of one output"),
    ):
        code, out, err = command(*words)
        assert (code, out) == (2, "")
        assert said in err
