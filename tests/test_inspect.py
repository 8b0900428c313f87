"""Looking at a stored run: its samples, an answer as a tree, scores anew, what a run will take."""

import json
from pathlib import Path

import pytest

import fleet_rlm
from fleet_rlm.runner.record import last_records
from fleet_rlm.runner.store import RunStore, repair_and_read

SMALL = ["--set", "lengths=[4000]", "--set", "windows=3"]


@pytest.fixture
def stored(project, command):
    """A run of 12 needle samples in the folder `run`, and its records."""
    words = ["run", "needle", *SMALL, "--no-mlflow", "--display", "none", "--out", "run"]
    assert command(*words).returncode == 0
    return list(last_records(repair_and_read(Path("run/records.jsonl"))).values())


def rows(command, *words):
    done = command("samples", "run", "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_samples_are_listed_by_what_became_of_them(stored, command):
    assert len(rows(command)) == 12
    failed = rows(command, "--failed")
    assert {row["sample"] for row in failed} == {r.sample for r in stored if r.score < 1}
    assert 0 < len(failed) < 12
    assert rows(command, "--errored") == []
    shown = command("samples", "run", "--failed").stdout
    for row in failed:
        assert row["sample"] in shown
    assert f"{len(failed)} samples" in shown
    gone = command("samples", "run", "--task", "needel")
    assert (gone.returncode, len(gone.stderr.splitlines())) == (2, 1)
    assert "Did you mean 'needle'" in gone.stderr


def test_samples_that_got_worse_are_shown_with_both_scores(stored, command):
    words = ["run", "needle", *SMALL, "--no-mlflow", "--display", "none", "--out", "base"]
    command(*words, "--set", "program.guidance=Explore first. Use the exact name; drop revoked.")
    worse = rows(command, "--regressed", "base")
    assert worse
    for row in worse:
        assert row["now"] < row["before"]
    assert "before" in command("samples", "run", "--regressed", "base").stdout


def test_escapes_of_a_model_do_not_reach_the_terminal(project, command):
    with RunStore(Path("run")) as store:
        store.write_json("run.json", _lock())
        store.append(_record(answer="\x1b[2J\x1b]0;owned\x07[bold]hello\r\n\x9b31m"))
    shown = command("samples", "run").stdout
    assert "[bold]hello" in shown
    assert not {"\x1b", "\x07", "\x9b", "\r"} & set(shown)


def test_a_trace_is_a_tree_with_code_output_queries_and_costs(stored, command):
    sample = stored[0].sample
    shown = command("trace", "run", sample).stdout
    trajectory = fleet_rlm.open_run("run").trajectory(sample)
    for step in trajectory["steps"]:
        assert f"> {step['code'].splitlines()[0]}" in shown
        for query in step["queries"]:
            assert f"ask    {query['prompt_chars']:,} characters" in shown
    assert f"answer {trajectory['answer']}" in shown
    assert "total" in shown
    told = json.loads(command("trace", "run", sample, "--json").stdout)
    assert told["steps"] == trajectory["steps"]
    assert told["record"]["sample"] == sample
    assert command("trace", "run", sample[:-3]).stdout == shown


def test_a_trace_shows_children_indented_and_steps_of_older_runs(project, command):
    below = {"reasoning": "deep", "code": "SUBMIT('x')", "output": "FINAL"}
    child = {
        "kind": "rlm", "query": "deeper?", "context_chars": 100, "answer": "x", "stop": "submitted",
        "steps": [below], "seconds": 1.0, "usage": {"calls": 1, "usd": 0.5},
    }  # fmt: skip
    step = {"reasoning": "top", "code": "rlm_query('deeper?')", "output": "x", "queries": [child]}
    with RunStore(Path("run")) as store:
        store.write_json("run.json", _lock())
        path = "trajectories/s.0.json.gz"
        import gzip

        content = {"query": "q", "answer": "x", "steps": [step, {"thought": "of another program"}]}
        (Path("run") / path).write_bytes(gzip.compress(json.dumps(content).encode()))
        store.append(_record(trajectory=path))
    lines = command("trace", "run", "s").stdout.splitlines()
    assert "  child  100 characters   1.0 s · 1 call · 0 tokens · $0.5000" in lines
    assert "      > SUBMIT('x')" in lines
    assert "  thought  of another program" in lines


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trace", "run", "nothing"], "has no sample 'nothing'"),
        (["trace", "run", "needle-4k"], "samples begin with 'needle-4k'"),
        (["trace", "run", "needle-4k-0.0", "--epoch", "3"], "in epoch 3"),
        (["samples", "nowhere"], "nowhere is not the folder of a run"),
        (["rescore", "nowhere"], "nowhere is not the folder of a run"),
        (["resume", "nowhere"], "nowhere is not the folder of a run"),
    ],
)
def test_what_is_not_there_is_one_line(stored, command, words, told):
    done = command(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_run_goes_on_by_its_folder_with_what_is_new(stored, command):
    more = command("resume", "run", "--epochs", "2", "--no-mlflow", "--json")
    assert more.returncode == 0, more.stderr
    records = repair_and_read(Path("run/records.jsonl"))
    assert len(records) == 24
    assert records[:12] == stored
    again = command("resume", "run", "--no-mlflow", "--json")
    assert json.loads(again.stdout) == json.loads(more.stdout)
    assert len(repair_and_read(Path("run/records.jsonl"))) == 24


def test_rescoring_finds_what_changed_books_nothing_twice_and_asks_no_model(
    stored, command, monkeypatch
):
    before = fleet_rlm.open_run("run").summary
    monkeypatch.setattr("fleet_rlm.lm.connect.connect", None)
    same = command("rescore", "run")
    assert "12 answers, 0 of them changed" in same.stdout
    assert fleet_rlm.open_run("run").summary == before
    # A scorer that was wrong: its scores are put right, and a failed one gets a score.
    wrong = [
        line | {"score": 0.25} if number else line | _scorer_failed()
        for number, line in enumerate(map(_line, stored))
    ]
    Path("run/records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in wrong))
    done = command("rescore", "run", "--json")
    after = json.loads(done.stdout)
    assert after["score"] == before["score"]
    assert (after["errors"], after["coverage"]) == (0, 1.0)
    assert after["usage"] == before["usage"]
    records = repair_and_read(Path("run/records.jsonl"))
    assert sum(record.rescored for record in records) == 12
    frame = fleet_rlm.open_run("run").records()
    assert frame["usd"].sum() == pytest.approx(before["usage"]["usd"])


def test_rescoring_refuses_a_suite_that_changed(stored, command):
    lock = json.loads(Path("run/run.json").read_text())
    lock["suite"]["digest"] = "0" * 64
    Path("run/run.json").write_text(json.dumps(lock))
    done = command("rescore", "run")
    assert done.returncode == 2
    assert "is not what run ran" in done.stderr


def test_an_estimate_without_history_is_wide_and_says_what_it_stands_on(project, command):
    first = json.loads(command("estimate", "needle", "-m", "openai/gpt-5-mini", "--json").stdout)
    low, expected, high = first["usd"]
    assert 0 < low < expected < high
    assert first["wall_s"] is None
    assert "assumptions" in first["basis"]
    few = command("estimate", "needle", "--set", "settings.max_iters=1",
                  "--set", "settings.max_llm_calls=0", "--json")  # fmt: skip
    assert json.loads(few.stdout)["calls"][1] == first["samples"]
    paid = ("--sandbox", "modal")
    there = json.loads(command("estimate", "needle", "-m", "openai/gpt-5-mini", *paid,
                               "--set", "modal.cpu=[1.0, 2.0]", "--json").stdout)  # fmt: skip
    assert there["sandbox_usd"][1] == pytest.approx(
        first["samples"] * 120 * (3.942e-5 + 0.5 * 6.72e-6)
    )
    assert there["usd"][1] == pytest.approx(expected + there["sandbox_usd"][1])
    assert first["sandbox_usd"] is None
    shown = command("estimate", "needle", "--program", "direct", *paid).stdout
    assert "sandboxes" not in shown  # it runs no code
    assert "simulated model" in shown
    assert "assumptions" in shown


def test_an_estimate_is_calibrated_by_earlier_runs_and_priced_for_the_models_asked_for(
    project, command
):
    words = ["run", "needle", "--set", "lengths=[4000]", "--no-mlflow", "--display", "none"]
    command(*words, "--set", "windows=3")
    ask = ["estimate", "needle", "--set", "lengths=[4000]", "--set", "windows=20", "--json"]
    found = json.loads(command(*ask).stdout)
    assert found["samples"] == 80
    assert found["basis"] == "12 samples of 1 earlier run"
    live = json.loads(command(*ask, "-m", "openai/gpt-5-mini").stdout)
    assert "12 samples of 1 earlier run of simulated models" in live["basis"]
    assert live["wall_s"] is None
    assert live["calls"] == found["calls"]
    there = json.loads(command(*ask, "--sandbox", "modal").stdout)
    assert 0 < there["sandbox_usd"][0] < there["sandbox_usd"][2]
    assert there["usd"][1] == pytest.approx(found["usd"][1] + there["sandbox_usd"][1])
    actual = json.loads(command(*words, "--set", "windows=20", "--json").stdout)["usage"]
    for name, used in (("calls", actual["calls"]), ("usd", actual["usd"])):
        low, expected, high = found[name]
        assert low <= expected <= high
        assert expected == pytest.approx(used, rel=0.35)
    dear = json.loads(command(*ask, "--price", "10/40").stdout)
    assert dear["usd"][1] > 5 * found["usd"][1]
    assert dear["detects"] == found["detects"] > 0


def _line(record):
    return json.loads(json.dumps(record.to_json()))


def _scorer_failed():
    error = {"boundary": "scorer", "type": "ScorerError", "message": "m"}
    scores = dict.fromkeys(("score", "official", "robust"))
    return {"status": "error", "stop": "error", "error": error, **scores}


def _lock():
    arm = {"program": "rlm", "model_kind": "live", "models": {"root": {"name": "m"}},
           "sandbox": {"level": "landlock"}, "settings": {}}  # fmt: skip
    return {"run": "run", "suite": {"name": "s", "digest": "d"}, "arm": arm, "planned": 1}


def _record(**more):
    from fleet_rlm.runner.record import Record

    return Record(
        sample="s", epoch=0, task="t", cluster="c", length=1000, status="scored", stop="submitted",
        score=0.5, official=0.5, robust=0.5, **more,
    )  # fmt: skip
