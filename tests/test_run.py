"""`fleet-eval run`, as a user types it: results, resume, kills, real models, bad input."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from openai_server import error_body, openai_server

import fleet_rlm
from fleet_rlm.errors import FleetWarning
from fleet_rlm.report.comparison import render
from fleet_rlm.runner.compare import compare

LABEL = "simulated model: these numbers show the harness, not any model"
SUMMARY_KEYS = [
    *("run", "suite", "program", "model", "sandbox", "settings", "samples", "scored", "errors"),
    *(
        "coverage",
        "score",
        "stderr",
        "ci",
        "with_errors_as_zero",
        "tasks",
        "usage",
        "wall_s",
        "stops",
        "mde",
    ),
]
SMALL = ["--set", "lengths=[4000]", "--set", "windows=1"]


@pytest.fixture
def run(command):
    """`fleet-eval run`, without MLflow unless asked for."""

    def run_here(*words, mlflow=False, env=None):
        return command("run", *words, *([] if mlflow else ["--no-mlflow"]), env=env)

    return run_here


def start(*words, **more):
    """`fleet-eval run` as a process of its own, to be stopped with real signals."""
    return subprocess.Popen(
        [sys.executable, "-m", "fleet_rlm.cli.eval", "run", *words, "--no-mlflow"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def wait_for_records(project, count):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = list((project / "runs").glob("needle*/records.jsonl"))
        if found and found[0].read_bytes().count(b"\n") >= count:
            return found[0]
        time.sleep(0.01)
    raise AssertionError("no records within a minute")


def records(folder: Path):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def only_run(project: Path) -> Path:
    (found,) = [path for path in (project / "runs").iterdir() if path.name != "latest"]
    return found


def one_error_line(done, code, *parts):
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line != LABEL]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]
    assert done.stdout == ""


def test_a_run_prints_its_table_label_folder_and_next_commands(project, run):
    done = run("quickstart", *SMALL)
    assert done.returncode == 0, done.stderr
    assert LABEL in done.stdout
    for part in ("needle", "aggregate", "variables", "floor", "95% CI", "coverage", "stops"):
        assert part in done.stdout
    folder = only_run(project)
    assert f"runs/{folder.name}" in done.stdout
    assert "fleet-eval run quickstart --program direct" in done.stdout
    assert "fleet-eval view" in done.stdout
    assert re.search(r"quickstart +\d+/6", done.stderr)
    assert (project / "runs" / "latest").resolve() == folder


def test_json_holds_exactly_one_object_with_the_documented_keys(project, run):
    done = run("quickstart", *SMALL, "--json")
    summary = json.loads(done.stdout)
    assert list(summary) == SUMMARY_KEYS
    assert summary["samples"] == summary["scored"] == 6
    assert summary["coverage"] == 1.0
    assert summary["sandbox"]["backend"] == "local"
    assert summary["sandbox"]["level"] in {"landlock", "bwrap"}
    assert set(summary["tasks"]) == {"needle", "aggregate", "variables"}
    for task in summary["tasks"].values():
        assert {"score", "official", "robust", "floor", "n"} <= set(task)
    usage = summary["usage"]
    assert usage["calls"] == sum(role["calls"] for role in usage["by_role"].values())
    assert usage["usd"] > 0
    assert LABEL in done.stderr
    assert json.loads((only_run(project) / "summary.json").read_text()) == summary


def test_each_sample_has_one_record_and_a_trajectory_of_real_code(project, run):
    import gzip

    run("needle", *SMALL)
    folder = only_run(project)
    found = records(folder)
    assert len({record["sample"] for record in found}) == len(found)
    for record in found:
        assert record["turns"] >= 1
        path = folder / record["trajectory"]
        trajectory = json.loads(gzip.decompress(path.read_bytes()))
        assert all(step["code"] for step in trajectory["steps"])
        assert trajectory["query"].startswith("What is the current access code")
    lock = json.loads((folder / "run.json").read_text())
    assert lock["arm"]["model_kind"] == "simulated"
    assert lock["lock"]["versions"]["dspy"].startswith("3.4")


def test_the_direct_baseline_runs_no_sandbox_and_its_summary_has_the_same_shape(project, run):
    rlm = json.loads(run("quickstart", *SMALL, "--json").stdout)
    direct = json.loads(run("quickstart", *SMALL, "--json", "--program", "direct").stdout)
    assert list(rlm) == list(direct)
    assert direct["sandbox"] == {"backend": "none", "level": "none", "label": "runs no code"}
    assert direct["usage"]["calls"] == 6
    assert direct["stops"] == {"answered": 6}


def test_the_same_command_again_runs_nothing_and_gives_the_same(project, run):
    first = json.loads(run("needle", *SMALL, "--json").stdout)
    before = (only_run(project) / "records.jsonl").read_bytes()
    again = json.loads(run("needle", *SMALL, "--json").stdout)
    assert (only_run(project) / "records.jsonl").read_bytes() == before
    for volatile in ("wall_s",):
        first.pop(volatile)
        again.pop(volatile)
    assert first == again


def test_two_runs_of_one_arm_give_equal_scores(project, run):
    scores = [
        json.loads(run("quickstart", *SMALL, "--json", "--out", name, "-j", width).stdout)
        for name, width in (("one", "1"), ("two", "6"))
    ]
    assert scores[0]["tasks"] == scores[1]["tasks"]
    spent = [(s["usage"]["calls"], s["usage"]["input_tokens"], s["usage"]["usd"]) for s in scores]
    assert spent[0] == spent[1]


def test_kill_9_in_mid_run_loses_nothing_and_repeats_nothing(project, run):
    words = ["needle", "--set", "lengths=[4000]", "--set", "windows=12", "-j", "1"]
    process = start(*words)
    path = wait_for_records(project, 3)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = path.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    summary = json.loads(run(*words, "--json").stdout)
    assert path.read_bytes().startswith(kept)
    found = records(path.parent)
    assert len(found) == summary["samples"] == summary["scored"]
    assert len({record["sample"] for record in found}) == len(found)
    assert kept.count(b"\n") < len(found)


def test_an_interrupted_run_exits_130_and_resumes(project, run):
    words = ["needle", "--set", "lengths=[4000]", "--set", "windows=20", "-j", "2"]
    process = start(*words)
    wait_for_records(project, 3)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "fleet-eval resume" in stdout
    folder = only_run(project)
    before = (folder / "records.jsonl").read_bytes()
    done = run(*words, "--json")
    assert done.returncode == 0
    assert (folder / "records.jsonl").read_bytes().startswith(before)
    assert json.loads(done.stdout)["coverage"] == 1.0


def test_more_epochs_extend_a_run(project, run):
    run("needle", *SMALL)
    before = records(only_run(project))
    assert "2 tries" in run("needle", *SMALL, "--epochs", "2").stdout
    after = records(only_run(project))
    assert after[: len(before)] == before
    assert len(after) == 2 * len(before)
    summary = json.loads((only_run(project) / "summary.json").read_text())
    twice = summary["repeated"]["2"]
    right = {record["sample"]: [] for record in after}
    for record in after:
        right[record["sample"]].append(record["score"] == 1)
    assert twice["any_right"]["score"] == pytest.approx(np.mean([any(r) for r in right.values()]))
    assert twice["all_right"]["score"] == pytest.approx(np.mean([all(r) for r in right.values()]))
    found = compare(only_run(project), only_run(project))
    assert found.arms[0]["repeated"][0]["any_right"] == twice["any_right"]["score"]
    for form in ("text", "markdown"):
        assert "all right (pass^k)" in render(found, form)


def test_another_arm_does_not_go_into_the_same_folder(project, run):
    run("needle", *SMALL, "--out", "here")
    done = run("needle", *SMALL, "--out", "here", "--iterations", "3")
    one_error_line(done, 2, "here holds another run", "settings", "--out DIR")
    done = run("needle", *SMALL, "--set", "windows=2", "--out", "here")
    one_error_line(done, 2, "here holds another run, with needle.windows 1, not 2. Try")


def test_guidance_lifts_the_score_of_the_simulated_model(project, run):
    from fleet_rlm.lm.simulated import ORACLE_GUIDANCE

    wide = ["--set", "lengths=[8000]", "--set", "windows=3", "--json"]
    plain = json.loads(run("quickstart", *wide).stdout)["score"]
    guidance = f"program.guidance={ORACLE_GUIDANCE}"
    guided = json.loads(run("quickstart", *wide, "--set", guidance).stdout)["score"]
    assert guided > 0.85 > plain


def test_needles_are_planted_in_a_corpus(project, run):
    text = "\n\n".join(f"Paragraph {n} tells of a quiet harbour. " * 6 for n in range(400))
    (project / "book.txt").write_text(text)
    words = ["needle", "--corpus", "*.txt", "--set", "lengths=[6000, 12000]", "--set", "windows=1"]
    done = run(*words, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["coverage"] == 1.0
    assert all(record["tokens"] >= 5700 for record in records(only_run(project)))


NOVELS = Path(__file__).parents[2] / "shared" / "data" / "books"


@pytest.mark.skipif(not NOVELS.is_dir(), reason="no novels beside the checkout")
def test_a_million_tokens_of_real_novels(project, run):
    words = ["needle", "--corpus", f"{NOVELS}/*.txt", "--set", "lengths=[1000000]"]
    done = run(*words, "--set", "windows=1", "--set", "questions=2", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["samples"], summary["coverage"]) == (2, 1.0)
    assert all(record["tokens"] >= 950_000 for record in records(only_run(project)))


# ---- real models over the wire ------------------------------------------------------------------


def test_a_real_model_is_reached_with_key_base_and_prices(project, run):
    with openai_server() as server:
        env = {"DSPY_LLM_API_KEY": "sk-secret-of-mine-12345678"}
        done = run(
            *("quickstart", *SMALL, "--json"),
            *("--model", "openai/gpt-5-mini", "--sub-model", "openai/gpt-5-nano"),
            *("--api-base", server.url),
            env=env,
        )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["model"] == "openai/gpt-5-mini"
    assert server.models == {"gpt-5-mini", "gpt-5-nano"}
    assert server.keys == {"Bearer sk-secret-of-mine-12345678"}
    assert summary["usage"]["calls"] == len(server.requests)
    assert summary["usage"]["by_role"]["sub"]["calls"] > 0
    assert LABEL not in done.stderr
    folder = only_run(project)
    for path in folder.rglob("*"):
        if path.is_file():
            assert b"sk-secret-of-mine" not in path.read_bytes()
    assert json.loads((folder / "run.json").read_text())["arm"]["model_kind"] == "live"


def test_answers_of_the_cache_are_shown_apart_with_what_they_would_have_cost(project, run):
    words = ["needle", *SMALL, "--limit", "2", "--program", "direct", "--cache", "--out"]
    paid = json.loads(run(*words, "paid", "--json").stdout)["usage"]["usd"]
    shown = run(*words, "free").stdout
    assert f"2 calls answered by the cache, ${paid:.4f} saved" in shown
    assert "$0.0000" in shown


def test_the_environment_names_a_model(project, run):
    with openai_server() as server:
        env = {
            "DSPY_LM_MODEL": "openai/gpt-4o-mini",
            "DSPY_LM_API_BASE": server.url,
            "DSPY_LM_API_KEY": "k-of-the-environment",
            "DSPY_LM_MAX_TOKENS": "4000",
        }
        done = run("needle", *SMALL, "--json", env=env)
    assert done.returncode == 0, done.stderr
    assert server.models == {"gpt-4o-mini"}
    assert server.keys == {"Bearer k-of-the-environment"}
    limits = [r.get("max_tokens") or r.get("max_completion_tokens") for r in server.requests]
    assert set(limits) == {4000}


def test_an_outage_is_a_typed_error_and_exit_4_never_a_zero_and_can_be_retried(project, run):
    outage = [True]

    def fault(number):
        return (500, error_body("boom", "server_error")) if outage else None

    with openai_server(fault) as server:
        words = ("needle", *SMALL, "--json", "--api-base", server.url, "--set", "questions=1")
        words = (*words, "--model", "openai/gpt-4o-mini")
        done = run(*words)
        outage.clear()
        asked = len(server.requests)
        settled = run(*words)
        assert len(server.requests) == asked
        again = run(*words, "--retry-errors")
    summary = json.loads(done.stdout)
    assert done.returncode == 4
    assert "coverage 0% is below 80%" in done.stderr
    assert "Traceback" not in done.stderr
    assert (summary["score"], summary["coverage"], summary["errors"]) == (None, 0.0, 1)
    failed, retried = records(only_run(project))
    assert failed["error"]["boundary"] == "provider"
    assert failed["score"] is None
    assert settled.returncode == 4
    assert again.returncode == 0, again.stderr
    assert retried["error"] is None
    assert retried["sample"] == failed["sample"]
    assert json.loads(again.stdout)["coverage"] == 1.0


def test_a_refused_key_stops_the_run_and_leaves_everything_owed(project, run):
    def fault(number):
        return 401, error_body("Incorrect API key provided", "invalid_api_key")

    with openai_server(fault) as server:
        words = ("needle", *SMALL, "--model", "openai/gpt-4o-mini", "--display", "none")
        done = run(*words, "--api-base", server.url)
    one_error_line(done, 2, "openai/gpt-4o-mini", "refused")
    assert records(only_run(project)) == []


def test_a_transient_failure_is_retried(project, run):
    def fault(number):
        return (503, error_body("later", "overloaded")) if number == 2 else None

    with openai_server(fault) as server:
        words = ("needle", *SMALL, "--json", "--api-base", server.url)
        done = run(*words, "--model", "openai/gpt-4o-mini", "--set", "questions=1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["errors"] == 0


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["quickstrat"], ["No suite 'quickstrat'", "'quickstart'", "fleet-eval list"]),
        (["quickstart", "--modle", "sim"], ["--modle", "--model"]),
        (["quickstart", "--model", "gpt-5"], ["Unknown model 'gpt-5'", "provider/name"]),
        (["quickstart", "--model", "openai/gpt-5"], ["No key", "DSPY_LLM_API_KEY"]),
        (["quickstart", "--model", "local/x"], ["No price is known", "--price"]),
        (["quickstart", "--program", "rml"], ["No program 'rml'", "'rlm'"]),
        (["quickstart", "--sandbox", "landlok"], ["'landlok'", "'landlock'"]),
        (["quickstart", "--set", "lenghts=[8000]"], ["lenghts", "'lengths'"]),
        (["quickstart", "--set", "lengths=[10]"], ["lengths", "10 tokens is impossible"]),
        (["quickstart", "--set", "lengths=[99000000]"], ["impossible"]),
        (["quickstart", "--set", "lengths"], ["not key=value"]),
        (["quickstart", "--set", "settings.max_iter=3"], ["max_iter", "'max_iters'"]),
        (["quickstart", "--set", "limits.wall=3"], ["'wall'", "'wall_s'"]),
        (["quickstart", "--set", "program.guide=x"], ["program.guide"]),
        (["quickstart", "--iterations", "0"], ["max_iters", "from 1 to 200"]),
        (["quickstart", "--iterations", "many"], ["--iterations", "integer"]),
        (["quickstart", "-p", "direct", "--iterations", "3"], ["'direct'", "max_iters"]),
        (["quickstart", "--wall", "0"], ["wall_s", "above 0"]),
        (["quickstart", "--limit", "0"], ["--limit"]),
        (["quickstart", "--concurrency", "0"], ["concurrency"]),
        (["quickstart", "--display", "loud"], ["'loud'"]),
        (["quickstart", "--price", "cheap"], []),
        (["needle", "--corpus", "absent/*.txt"], ["absent/*.txt"]),
        (["aggregate", "--corpus", "*.toml"], []),
        (["quickstart", "--out", "/proc/nowhere/run"], ["Cannot write"]),
        ([], ["suite"]),
    ],
)
def test_bad_input_is_one_line_and_exit_2(project, words, parts, run):
    one_error_line(run(*words), 2, *parts)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[suite", "not valid TOML"),
        ('[suite]\nname = "x"\n[[taks]]\n', "taks"),
        (
            '[suite]\nname = "x"\n[[tasks]]\nname = "n"\ngenerator = "nedle"\nlengths = [8000]\n',
            "nedle",
        ),
        ("", "missing"),
    ],
)
def test_a_bad_suite_file_is_one_line(project, text, part, run):
    (project / "mine.toml").write_text(text)
    one_error_line(run("mine.toml"), 2, "mine.toml", part)


def test_an_empty_corpus_is_one_line(project, run):
    (project / "empty.txt").write_text("")
    one_error_line(run("needle", "--corpus", "empty.txt"), 2, "empty.txt")


def test_no_isolation_means_no_run_exit_5_and_what_was_tried(project, run):
    env = dict(os.environ, FLEET_RLM_LANDLOCK_ABI="0", PATH="/nonexistent")
    process = start("quickstart", *SMALL, env=env)
    stdout, stderr = process.communicate(timeout=60)
    one_error_line(
        subprocess.CompletedProcess([], process.returncode, stdout, stderr), 5, "landlock", "Try:"
    )
    direct = start("needle", *SMALL, "--program", "direct", env=env)
    _, stderr = direct.communicate(timeout=60)
    assert direct.returncode == 0, stderr


def test_the_unsafe_level_runs_only_by_name_and_says_so(project, run):
    done = run("needle", *SMALL, "--sandbox", "unsafe-process")
    assert done.returncode == 0, done.stderr
    assert "NOT ISOLATED" in done.stderr
    assert "NOT ISOLATED" in done.stdout
    lock = json.loads((only_run(project) / "run.json").read_text())
    assert lock["arm"]["sandbox"]["level"] == "unsafe-process"


def test_print_config_shows_values_with_their_origin_and_runs_nothing(project, run):
    (project / "fleet.toml").write_text("concurrency = 3\n")
    done = run("quickstart", "--print-config", "--model", "sim-mini")
    shown = json.loads(done.stdout)
    assert shown["config"]["concurrency"] == {"value": 3, "from": "fleet.toml"}
    assert shown["config"]["model"] == {"value": "sim-mini", "from": "flag"}
    assert shown["samples"] >= 24
    assert not (project / "runs").exists()


def test_list_and_show(project, command):
    listed = json.loads(command("list", "--json").stdout)
    rows = {row["name"]: row for row in listed}
    assert rows["quickstart"]["samples"] >= 24
    assert rows["quickstart"]["lengths"][0] >= 4000
    assert rows["quickstart"]["lengths"][-1] >= 128_000
    assert "quickstart" in command("list").stdout
    shown = command("show", "needle", "-n", "1").stdout
    assert "What is the current access code" in shown
    streamed = command("show", "needle", "-n", "1", "--out", "contexts").stdout
    (context,) = (project / "contexts").iterdir()
    assert f"{context.stat().st_size:,} bytes" in streamed
    assert shown.rpartition("query")[2] == streamed.rpartition("query")[2]
    assert streamed.rpartition("gold")[2].split()[0] in context.read_text()
    one_error_line(command("show", "neddle"), 2, "'needle'")


def test_a_run_is_mirrored_to_mlflow(project, run, mlflow_template):
    import sqlite3

    shutil.copy(mlflow_template, project / "mlflow.db")
    done = run("needle", *SMALL, "--json", mlflow=True)
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(project / "mlflow.db") as store:
        metrics = dict(store.execute("select key, value from metrics").fetchall())
        params = dict(store.execute("select key, value from params").fetchall())
    store.close()
    assert metrics["score"] == pytest.approx(json.loads(done.stdout)["score"])
    assert "sim" in params.values()


def test_a_store_that_cannot_be_reached_is_said_once_and_the_run_goes_on(project, run):
    env = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = run("needle", *SMALL, mlflow=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("127.0.0.1:9") == 1


def test_runs_and_jobs_from_python_are_mirrored_when_asked(project, mlflow_template, monkeypatch):
    small = {"overrides": {"lengths": [4000], "windows": 2}, "model": "sim"}
    fleet_rlm.evaluate("blind", "needle", **small, limit=2, out="kept")
    assert not (project / "mlflow.db").exists()
    shutil.copy(mlflow_template, project / "mlflow.db")
    fleet_rlm.evaluate("blind", "needle", **small, limit=2, out="mirrored", mlflow=True)
    assert "run_id" in json.loads((project / "mirrored" / "mlflow.json").read_text())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/nowhere/mlflow.db")
    with pytest.warns(FleetWarning, match=r"nowhere.*Later: fleet-eval sync runs/jobs/"):
        fleet_rlm.optimize(
            "rlm", "needle", **small, test=2, validation=2, trials=2, mlflow=True,
            optimizer="settings-only", space={"max_iters": [5]},
        )  # fmt: skip


def test_steps_that_were_paid_for_stay_with_a_sample_that_failed(project, run):
    import gzip

    def fault(number):
        return (500, error_body("boom", "server_error")) if number > 2 else None

    with openai_server(fault) as server:
        words = ("needle", *SMALL, "--json", "--api-base", server.url, "--limit", "1")
        run(*words, "--model", "openai/gpt-4o-mini")
    (record,) = records(only_run(project))
    assert record["error"]["boundary"] == "provider"
    assert record["turns"] == 2
    assert record["usage"]["root"]["calls"] == 2
    data = (only_run(project) / record["trajectory"]).read_bytes()
    assert len(json.loads(gzip.decompress(data))["steps"]) == 2


def test_the_next_command_runs_the_baseline_on_the_same_samples_and_then_compares(project, run):
    done = run("needle", *SMALL, "--limit", "2", "--set", "settings.max_iters=9")
    (shown,) = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if "next " in line]
    words = shlex.split(shown)
    assert words[:3] == ["fleet-eval", "run", "needle"]
    assert "settings.max_iters=9" not in words
    ids = [{record["sample"] for record in records(only_run(project))}]
    first = only_run(project).name
    done = run(*words[2:], "--out", "runs/baseline")
    ids.append({record["sample"] for record in records(project / "runs" / "baseline")})
    assert ids[0] == ids[1]
    assert f"next      fleet-eval compare runs/baseline runs/{first}" in done.stdout
    (project / "runs" / first / "summary.json").write_text('{"half')
    done = run(*words[2:], "--out", "runs/baseline")
    assert "next      fleet-eval run needle" in done.stdout, "whatever lies beside it"


def test_a_run_of_routing_says_which_tools_were_right(command):
    words = ["--set", "lengths=[16000]", "--set", "windows=2", "--no-mlflow"]
    done = command("run", "routing", *words, "--json")
    tools = {name: task["tools"] for name, task in json.loads(done.stdout)["tasks"].items()}
    assert {sum(counts.values()) for counts in tools.values()} == {2}
    assert tools["child"]["under"] == 2, "the simulated model opens no child on these"
    shown = command("run", "routing", *words).stdout
    assert "child 2 under" in next(line for line in shown.splitlines() if line.startswith("tools"))
