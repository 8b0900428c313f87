"""What MLflow will show of a run folder: names, numbers and the table, without MLflow."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_rlm.errors import UsageError
from fleet_rlm.tracking.content import (
    MAX_CELL_CHARS,
    MAX_DIGEST_CHARS,
    MAX_PARAM_CHARS,
    SIMULATED_NOTE,
    length_metrics,
    parse_records,
    read_content,
    records_table,
    run_datasets,
    run_params,
    run_tags,
    summary_metrics,
)

HEADER = {
    "schema": 1,
    "run": "quick--rlm--sim--1",
    "created": "2026-01-02T03:04:05+00:00",
    "suite": {"name": "quick", "version": "2", "digest": "d1", "overrides": {"lengths": [8, 16]}},
    "arm": {
        "program": "rlm",
        "guidance": None,
        "settings": {"max_iters": 20, "batch": True},
        "models": {"root": {"name": "sim", "kind": "simulated"}, "sub": {"name": "sim"}},
        "model_kind": "simulated",
        "sandbox": {"backend": "local", "level": "landlock"},
    },
    "lock": {
        "versions": {"dspy": "3.4.1"},
        "git": {"revision": "abc", "dirty": True},
        "prices": {"sim": {"input": 0.5}},
    },
    "later": {"anything": "goes"},
}


def record(sample, **fields):
    return {"sample": sample, "epoch": 0, "task": "needle", "length": 8000, "score": 1.0} | fields


def test_params_have_the_names_people_look_for():
    assert run_params(HEADER) == {
        "suite": "quick",
        "suite.version": "2",
        "suite.digest": "d1",
        "suite.overrides.lengths": "[8, 16]",
        "program": "rlm",
        "settings.max_iters": "20",
        "settings.batch": "true",
        "model.root": "sim",
        "model.root.kind": "simulated",
        "model.sub": "sim",
        "model_kind": "simulated",
        "sandbox.backend": "local",
        "sandbox.level": "landlock",
        "version.dspy": "3.4.1",
        "git.revision": "abc",
        "git.dirty": "true",
        "later.anything": "goes",
    }


def test_params_keep_to_what_mlflow_accepts():
    params = run_params({"arm": {"guidance": "x" * 10_000, "settings": {"a/b:c%": 1}}})
    assert len(params["guidance"]) == MAX_PARAM_CHARS
    assert params["guidance"].endswith("… (10000 characters)")
    assert params["settings.a_b_c_"] == "1"


def test_summary_becomes_metrics_with_interval_names():
    summary = {
        "samples": 24,
        "score": 0.5,
        "stderr": 0.1,
        "ci": [0.3, 0.7],
        "mde": None,
        "settings": {"max_iters": 20},
        "tasks": {
            "needle": {
                "score": 0.25,
                "ci": None,
                "lengths": {"8000": {"score": 1.0, "stderr": 0.2, "ci": [0.5, 1.0]}},
            }
        },
        "usage": {"usd": 2.0, "by_role": {"root": {"usd": 1.5, "calls": 3}}},
        "stops": {"submitted": 20, "wall": 4},
        "wall_s": math.inf,
        "later": {"depth": 2},
    }
    assert {(m.name, m.value) for m in summary_metrics(summary)} == {
        ("samples", 24),
        ("score", 0.5),
        ("score_se", 0.1),
        ("score_lo", 0.3),
        ("score_hi", 0.7),
        ("task/needle.score", 0.25),
        ("task_by_length/needle.8000.score", 1.0),
        ("task_by_length/needle.8000.score_se", 0.2),
        ("task_by_length/needle.8000.score_lo", 0.5),
        ("task_by_length/needle.8000.score_hi", 1.0),
        ("usd", 2.0),
        ("role/root.usd", 1.5),
        ("role/root.calls", 3),
        ("stop/submitted", 20),
        ("stop/wall", 4),
        ("later.depth", 2),
    }


def test_scores_by_length_average_epochs_first_and_leave_errors_out():
    records = [
        record("a", score=1.0),
        record("a", epoch=1, score=0.0),
        record("b", score=1.0),
        record("c", score=None, status="error"),
        record("d", task="hops", length=16000, score=0.0, usage={"root": {"usd": 0.5}}),
    ]
    assert {tuple(metric) for metric in length_metrics(records)} == {
        ("length/8000.score", 0.75, None),
        ("length/16000.score", 0.0, None),
        ("score_by_length", 0.75, 8000),
        ("score_by_length", 0.0, 16000),
        ("task/needle.score_by_length", 0.75, 8000),
        ("task/hops.score_by_length", 0.0, 16000),
        ("usd_by_length", 0.0, 8000),
        ("usd_by_length", 0.5, 16000),
    }


def test_a_length_has_the_interval_of_its_contexts_within_the_scale():
    records = [record(str(i), cluster=str(i), score=score) for i, score in enumerate((1, 1, 0.5))]
    found = {m.name: m.value for m in length_metrics(records)}
    assert found["length/8000.score_se"] == pytest.approx(1 / 6)
    assert found["length/8000.score_lo"] == pytest.approx(5 / 6 - 4.302653 / 6)  # t, 2 degrees
    assert found["length/8000.score_hi"] == 1.0


def test_arms_with_and_without_a_role_have_the_same_metrics():
    usage = {"usd": 2.0, "by_role": {"root": {"usd": 2.0, "calls": 1}}}
    found = summary_metrics({"scored": 4, "usage": usage}, roles=("root", "sub"))
    values = {m.name: m.value for m in found}
    assert (values["role/root.usd"], values["role/sub.usd"], values["role/sub.calls"]) == (
        2.0,
        0.0,
        0.0,
    )
    assert values["usd_per_sample"] == 0.5
    assert not summary_metrics({}, roles=("root",))


def test_a_run_names_its_suite_and_each_dataset_that_it_reads():
    task = {"dataset": "books", "data": "d" * 64, "revision": "r1"}
    suite = HEADER["suite"] | {"tasks": [task, task, {"name": "needle", "generator": "needle"}]}
    quick, books = run_datasets(suite)
    assert (quick.name, quick.digest, quick.source["version"]) == ("quick", "d1", "2")
    assert (books.name, books.digest) == ("books", "d" * MAX_DIGEST_CHARS)
    assert books.source["fetch"] == "fleet-eval fetch books"
    assert run_datasets({}) == []


def test_the_table_sums_roles_and_never_shows_feedback_or_whole_answers():
    usage = {"root": {"calls": 2, "usd": 0.5}, "sub": {"calls": 3, "usd": 0.25}}
    error = {"boundary": "provider", "type": "Timeout", "message": "no answer"}
    table = records_table(
        [
            record("a", usage=usage, answer="x" * 9_000, feedback="gold is 7", degenerate={"x": 1}),
            record("b", usage={}, error=error, score=None, turns=4),
        ]
    )
    assert table["calls"] == [5, 0]
    assert table["usd"] == [0.75, 0]
    assert len(table["answer"][0]) == MAX_CELL_CHARS
    assert table["error"] == [None, "provider: Timeout: no answer"]
    assert table["turns"] == [None, 4]
    assert "gold is 7" not in json.dumps(table)
    assert {len(column) for column in table.values()} == {2}


def test_a_simulated_run_says_so_on_its_page():
    params = run_params(HEADER)
    tags = run_tags("r", params)
    assert tags["mlflow.note.content"] == SIMULATED_NOTE
    assert tags["fleet.model_kind"] == "simulated"
    assert tags["mlflow.source.git.commit"] == "abc"
    assert "mlflow.note.content" not in run_tags("r", params | {"model_kind": "live"})


def test_the_last_record_of_a_key_counts():
    lines = [json.dumps(record("a", score=0.0)), json.dumps(record("b")), json.dumps(record("a"))]
    assert [(r["sample"], r["score"]) for r in parse_records(lines)] == [("a", 1.0), ("b", 1.0)]


@given(st.lists(st.text(max_size=20), unique=True, max_size=5), st.data())
def test_a_kill_at_any_byte_loses_only_the_line_being_written(samples, data):
    whole = "".join(json.dumps(record(sample)) + "\n" for sample in samples)
    cut = data.draw(st.integers(min_value=0, max_value=len(whole)))
    found = [r["sample"] for r in parse_records(whole[:cut].split("\n"))]
    assert found == samples[: len(found)]
    assert len(found) >= whole[:cut].count("\n")


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(HEADER))
    (tmp_path / "records.jsonl").write_text('{"sample": "a"}\n{oops\n{"sample": "b"}\n')
    with pytest.raises(UsageError, match=r"records\.jsonl line 2"):
        read_content(tmp_path)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(UsageError, match=str(tmp_path)):
        read_content(tmp_path / "nowhere")


def test_a_run_is_finished_when_all_that_was_planned_is_recorded(tmp_path):
    def is_finished(planned, recorded):
        (tmp_path / "run.json").write_text(json.dumps(HEADER | {"planned": planned}))
        lines = [json.dumps(record(str(i))) + "\n" for i in range(recorded)]
        (tmp_path / "records.jsonl").write_text("".join(lines))
        return read_content(tmp_path).finished

    assert not is_finished(2, 2)  # no summary yet
    (tmp_path / "summary.json").write_text("{}")
    assert is_finished(2, 2)
    assert not is_finished(2, 1)
