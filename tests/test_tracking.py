"""Mirroring run folders into real MLflow stores: embedded, served, shared, locked and broken."""

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fleet_rlm.errors import UsageError
from fleet_rlm.tracking import Mirror
from fleet_rlm.tracking.lookup import find_run
from fleet_rlm.tracking.store import resolve_uri, shown, unusable
from fleet_rlm.tracking.view import serve

TASKS = ("needle", "aggregate")


def write_run(folder, *, samples=4, planned=None, name=None, git="abc", settings=None):
    """A run folder as the runner leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    header = {
        "schema": 1,
        "run": name or folder.name,
        "created": "2026-01-02T03:04:05+00:00",
        "suite": {"name": "quick", "version": "1", "digest": "d1"},
        "arm": {
            "program": "rlm",
            "settings": settings or {"max_iters": 20},
            "models": {"root": {"name": "sim", "kind": "simulated"}},
            "model_kind": "simulated",
            "sandbox": {"backend": "local", "level": "landlock"},
        },
        "planned": planned or samples,
        "lock": {"git": {"revision": git}},
    }
    records = [
        {
            "sample": f"s{i}",
            "epoch": 0,
            "task": TASKS[i % 2],
            "length": 8000 * (1 + i % 2),
            "status": "scored",
            "score": float(i % 2),
            "usage": {"root": {"calls": 2, "usd": 0.5}},
            "answer": "42",
        }
        for i in range(samples)
    ]
    summary = {"run": header["run"], "samples": samples, "score": 0.5, "ci": [0.4, 0.6]}
    (folder / "run.json").write_text(json.dumps(header))
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def is_running(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    return False


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@pytest.fixture
def project(tmp_path, mlflow_template):
    """A project folder whose store is ready."""
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def store(project):
    """(client, experiment id) of the project's store, in this process."""
    from mlflow import MlflowClient

    from fleet_rlm.tracking.writer import find_experiment

    client = MlflowClient(tracking_uri=f"sqlite:///{project / 'mlflow.db'}")
    return client, find_experiment(client, "fleet-rlm", str(project / "mlartifacts"))


def table_of(client, run):
    path = client.download_artifacts(run.info.run_id, "records.json")
    return json.loads(Path(path).read_text())


def test_a_run_folder_becomes_one_mlflow_run(project, store):
    from fleet_rlm.tracking import writer

    client, experiment = store
    folder = write_run(project / "runs" / "a", samples=4)
    for name in ("report.html", "plots/score.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("made by fleet-eval report")
    run = client.get_run(writer.write_run(client, experiment, folder).info.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a"
    assert run.data.params["settings.max_iters"] == "20"
    assert run.data.tags["fleet.sandbox.level"] == "landlock"
    assert run.data.metrics["score_lo"] == 0.4
    history = client.get_metric_history(run.info.run_id, "score_by_length")
    assert [(point.step, point.value) for point in history] == [(8000, 0.0), (16000, 1.0)]
    files = {item.path for item in client.list_artifacts(run.info.run_id)}
    data = {"run.json", "summary.json", "records.json", "records.jsonl.gz"}
    assert files == data | {"report.html", "plots"}
    (plot,) = client.list_artifacts(run.info.run_id, "plots")
    assert plot.path == "plots/score.png"
    assert len(table_of(client, run)["data"]) == 4


def test_mlflow_reads_the_records_table_as_its_own(project, store, monkeypatch):
    from fleet_rlm.tracking import writer

    client, experiment = store
    writer.write_run(client, experiment, write_run(project / "runs" / "a"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    table = client.load_table(experiment, "records.json")
    assert list(table["sample"]) == ["s0", "s1", "s2", "s3"]
    assert table["usd"].sum() == 2.0


def test_a_resumed_run_continues_its_mlflow_run(project, store):
    from mlflow.data import get_source

    from fleet_rlm.tracking import writer

    client, experiment = store
    folder = write_run(project / "runs" / "a", samples=2, planned=6, git="old")
    first = writer.write_run(client, experiment, folder)
    assert client.get_run(first.info.run_id).info.status == "KILLED"
    write_run(folder, samples=6, git="new")
    for _ in range(2):
        again = writer.write_run(client, experiment, folder)
        assert again.info.run_id == first.info.run_id
    run = client.get_run(first.info.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["samples"] == 6
    assert len(client.get_metric_history(first.info.run_id, "score_by_length")) == 2
    assert run.data.params["git.revision"] == "old"
    assert run.data.tags["resumed.git.revision"] == "new"
    assert len(table_of(client, run)["data"]) == 6
    assert len(client.search_runs([experiment])) == 1
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("quick", "d1")
    assert get_source(dataset).to_dict()["tags"]["version"] == "1"


def test_a_mirror_killed_after_it_made_its_run_finds_it_again(project, store):
    from fleet_rlm.tracking import writer

    client, experiment = store
    folder = write_run(project / "runs" / "a")
    first = writer.write_run(client, experiment, folder).info.run_id
    link = json.loads((folder / "mlflow.json").read_text())
    for lost in ("run_id", "experiment_id"):  # as before the run's id was noted
        del link[lost]
    (folder / "mlflow.json").write_text(json.dumps(link))
    assert writer.write_run(client, experiment, folder).info.run_id == first
    # As after a mirror to another store.
    (folder / "mlflow.json").write_text(json.dumps(link | {"run_id": "0" * 32}))
    assert writer.write_run(client, experiment, folder).info.run_id == first


def test_a_copied_folder_or_a_deleted_run_gets_its_own_mlflow_run(project, store):
    from fleet_rlm.tracking import writer

    client, experiment = store
    folder = write_run(project / "runs" / "a")
    first = writer.write_run(client, experiment, folder).info.run_id
    copy = shutil.copytree(folder, project / "runs" / "b")
    write_run(copy, name="b")
    assert writer.write_run(client, experiment, copy).info.run_id != first
    client.delete_run(first)
    assert writer.write_run(client, experiment, folder).info.run_id != first


def test_a_job_is_one_run_with_a_run_inside_for_each_trial(project, store):
    from fleet_rlm.tracking import writer

    client, experiment = store
    job = project / "runs" / "jobs" / "j"
    run = json.loads((write_run(job / "trials" / "x") / "run.json").read_text())
    recipe = {"name": "quick", "suite": "quick", "trials": 3, "space": {"max_iters": [20, 8]}}
    (job / "job.json").write_text(json.dumps({"recipe": recipe, "arm": run["arm"], "suite": "d1"}))
    rows = [
        {"trial": n, "outcome": "complete", "score": n / 4, "usd": 0.5, "params": {"max_iters": 8},
         "run": f"trials/{name}"}
        for n, name in enumerate(("x", "y", "x"))
    ]  # fmt: skip
    (job / "trials.json").write_text(json.dumps({"trials": rows, "winner": 1}))
    write_run(job / "trials" / "y")
    first = writer.write_folder(client, experiment, job).info.run_id
    assert client.get_run(first).info.status == "KILLED"  # it goes on
    for name in ("baseline", "winner"):
        write_run(job / name)
    result = {
        "winner": {"score": 0.75, "ci": [0.5, 0.9]}, "usage": {"usd": 7.0},
        "test": {"difference": 0.25, "ci": [-0.5, 0.5], "p": 0.04},
    }  # fmt: skip
    (job / "result.json").write_text(json.dumps(result))
    for _ in range(2):
        assert writer.write_folder(client, experiment, job).info.run_id == first
    parent = client.get_run(first)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["recipe.space.max_iters"] == "[20, 8]"
    wanted = {
        "score": 0.75,
        "score_lo": 0.5,
        "usd": 7.0,
        "test/difference_lo": -0.5,
        "test/p": 0.04,
    }
    assert wanted.items() <= parent.data.metrics.items()
    history = client.get_metric_history(first, "trials/score")
    assert [(point.step, point.value) for point in history] == [(0, 0.0), (1, 0.25), (2, 0.5)]
    inside = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{first}'")
    assert {(run.info.run_name, run.data.params.get("trial")) for run in inside} == {
        ("j trial 0", "0"), ("j trial 1", "1"), ("j test baseline", None), ("j test winner", None),
    }  # fmt: skip
    (trial,) = [run for run in inside if run.data.params.get("trial") == "1"]
    assert trial.data.params["space.max_iters"] == "8"
    assert trial.data.metrics["trial/score"] == 0.25
    (job / "job.json").write_text("{}")
    with pytest.raises(UsageError, match="The job folder"):
        writer.write_folder(client, experiment, job)


def test_a_run_is_found_by_the_id_of_its_mlflow_run_here_and_elsewhere(project, store, tmp_path):
    from fleet_rlm.tracking import writer

    client, experiment = store
    uri, runs = client.tracking_uri, project / "runs"
    folder = write_run(runs / "jobs" / "a")
    run_id = writer.write_run(client, experiment, folder).info.run_id
    assert find_run(Path(run_id), runs_dir=runs, tracking_uri=uri) == folder
    assert find_run(folder, runs_dir=runs, tracking_uri=uri) == folder
    elsewhere = tmp_path / "elsewhere"
    found = find_run(Path(run_id), runs_dir=elsewhere, tracking_uri=uri)
    assert found == elsewhere / "mlflow" / run_id
    told = (folder / "records.jsonl").read_text().splitlines()
    read = (found / "records.jsonl").read_text().splitlines()
    assert list(map(json.loads, read)) == list(map(json.loads, told))
    assert (found / "summary.json").read_bytes() == (folder / "summary.json").read_bytes()
    for where in (uri, f"sqlite:///{tmp_path}/none.db"):
        with pytest.raises(UsageError, match="No run folder here"):
            find_run(Path("0" * 32), runs_dir=runs, tracking_uri=where)
    assert not (tmp_path / "none.db").exists()


def test_a_deleted_experiment_is_not_written_to(store):
    from fleet_rlm.tracking.writer import find_experiment

    client, experiment = store
    client.delete_experiment(experiment)
    with pytest.raises(UsageError, match=f"restore --experiment-id {experiment}"):
        find_experiment(client, "fleet-rlm", None)


def test_more_params_and_metrics_than_one_request_takes(project, store):
    from fleet_rlm.tracking import writer

    client, experiment = store
    folder = write_run(project / "runs" / "a", settings={f"s{i}": i for i in range(150)})
    (folder / "summary.json").write_text(json.dumps({"tasks": {f"t{i}": i for i in range(1100)}}))
    run = client.get_run(writer.write_run(client, experiment, folder).info.run_id)
    assert run.data.params["settings.s149"] == "149"
    assert run.data.metrics["task/t1099"] == 1099


def test_a_mirror_makes_the_store_of_a_fresh_project_and_is_silent(tmp_path, capfd):
    for left_by_a_kill in ("mlflow.db.new", "mlflow.db.new-journal"):
        (tmp_path / left_by_a_kill).write_text("half")
    folder = write_run(tmp_path / "runs" / "a")
    with Mirror.start(folder, tracking_uri=None, project_dir=tmp_path) as mirror:
        result = mirror.finish()
    assert result.problem is None
    link = json.loads((folder / "mlflow.json").read_text())
    assert (link["run_id"], link["experiment_id"]) == (result.run_id, result.experiment_id)
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "mlflow.db", "mlartifacts"}
    assert (tmp_path / "mlartifacts" / result.run_id / "artifacts" / "records.json").exists()
    assert capfd.readouterr() == ("", "")


def test_parallel_runs_share_a_store_that_none_of_them_found(tmp_path):
    folders = [write_run(tmp_path / "runs" / str(i), samples=50) for i in range(2)]
    mirrors = [Mirror.start(f, tracking_uri=None, project_dir=tmp_path) for f in folders]
    results = [mirror.finish() for mirror in mirrors]
    assert [result.problem for result in results] == [None] * 2
    assert len({result.run_id for result in results}) == 2
    assert len({result.experiment_id for result in results}) == 1
    assert not list(tmp_path.glob("mlflow.db.new*"))
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        statuses = connection.execute("SELECT status FROM runs").fetchall()
    assert statuses == [("FINISHED",)] * 2


def test_stores_that_cannot_be_used_are_one_line_each(project):
    folder = write_run(project / "runs" / "a")
    (project / "text.db").write_text("no database\n" * 500)
    (project / "folder.db").mkdir()
    with contextlib.closing(sqlite3.connect(project / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        expected = {
            None: "database is locked",
            f"sqlite:///{project}/text.db": "file is not a database",
            f"sqlite:///{project}/folder.db": "unable to open database file",
            "sqlite:////proc/nowhere/mlflow.db": "No such file or directory",
            "http://user:hush@127.0.0.1:9": "Connection refused",
            "postgresql://user:hush@127.0.0.1:9/db": "Connection refused",
        }
        mirrors = {
            uri: Mirror.start(folder, tracking_uri=uri, project_dir=project) for uri in expected
        }
        problems = {uri: mirror.finish().problem for uri, mirror in mirrors.items()}
    for uri, reason in expected.items():
        problem = problems[uri]
        assert problem, uri
        assert reason in problem
        assert "\n" not in problem
        assert "hush" not in problem
    assert not (folder / "mlflow.json").exists()


def test_a_silent_server_costs_no_more_than_the_timeout(tmp_path):
    folder = write_run(tmp_path / "a")
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        mirror = Mirror.start(folder, tracking_uri=uri, project_dir=tmp_path)
        started = time.monotonic()
        problem = mirror.finish(timeout_s=0.5).problem
        assert time.monotonic() - started < 5
    assert problem == f"The MLflow store {uri} took longer than 0.5 s."


def test_a_server_that_wants_a_token_says_so():
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    class Guard(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(401)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Guard) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(MlflowException) as refused:
            MlflowClient(uri).get_experiment_by_name("fleet-rlm")
    assert "401" in str(unusable(uri, refused.value))
    assert unusable(uri, refused.value).fix == "set MLFLOW_TRACKING_TOKEN"


def test_a_cancelled_mirror_leaves_no_process(tmp_path):
    mirror = Mirror.start(write_run(tmp_path / "a"), tracking_uri=None, project_dir=tmp_path)
    pid = mirror._process.pid
    assert is_running(pid)
    mirror.cancel()
    assert not is_running(pid)
    mirror.cancel()
    assert mirror.finish().problem


def test_the_child_dies_with_a_killed_run_even_if_a_fork_holds_the_pipe(tmp_path):
    script = (
        "import os, sys, time; from pathlib import Path; from fleet_rlm.tracking import Mirror\n"
        "m = Mirror.start(Path('a'), tracking_uri=None, project_dir=Path('.'))\n"
        "fork = os.fork() or time.sleep(60)\n"
        "print(m._process.pid, fork, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE
    ) as run:
        mirror_pid, fork_pid = map(int, run.stdout.readline().split())
        try:
            run.kill()
            wait_until(lambda: not is_running(mirror_pid))
        finally:
            os.kill(fork_pid, signal.SIGKILL)


def test_where_runs_go():
    project, env = Path("/p"), {"MLFLOW_TRACKING_URI": "http://there"}
    assert resolve_uri("sqlite:///x.db", project, env) == "sqlite:///x.db"
    assert resolve_uri(None, project, env) == "http://there"
    assert resolve_uri(None, project, {}) == "sqlite:////p/mlflow.db"
    with pytest.raises(UsageError, match=r"a '\?' in the path"):
        resolve_uri(None, Path("/what?"), {})
    assert shown("http://me:hush@there:5000/x") == "http://there:5000/x"
    assert shown("sqlite:////p/mlflow.db") == "sqlite:////p/mlflow.db"


def test_view_refuses_what_it_cannot_show(project, tmp_path, capsys, monkeypatch):
    with pytest.raises(UsageError, match="No run was mirrored yet"):
        serve(tmp_path / "empty", tracking_uri=None, open_browser=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port}"):
            serve(project, tracking_uri=None, port=port, open_browser=False)
    assert serve(project, tracking_uri="http://me:hush@there:5000", open_browser=False) == 0
    assert capsys.readouterr().out.endswith("http://there:5000\n")


def test_the_dashboard_shows_runs_and_takes_more_over_http(project, store):
    from mlflow import MlflowClient

    from fleet_rlm.tracking.writer import find_experiment
    from fleet_rlm.tracking.writer import write_run as write_mlflow_run

    client, experiment = store
    run = write_mlflow_run(client, experiment, write_run(project / "runs" / "a"))
    script = (
        "import sys; from pathlib import Path; from fleet_rlm.tracking.view import serve\n"
        f"sys.exit(serve(Path({str(project)!r}), tracking_uri=None, port=0, open_browser=False))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=project, stdout=subprocess.PIPE, text=True
    ) as view:
        try:
            page = view.stdout.readline().split()[2]
            root, _, shown_experiment = page.partition("/#/experiments/")
            assert shown_experiment == f"{experiment}/runs?viewStateShareKey=fleet-rlm"
            with urllib.request.urlopen(root, timeout=30) as reply:
                assert "MLflow" in reply.read().decode()
            name = f"get-artifact?run_uuid={run.info.run_id}&path=records.json"
            with urllib.request.urlopen(f"{root}/{name}", timeout=30) as reply:
                assert len(json.load(reply)["data"]) == 4
            remote = MlflowClient(tracking_uri=root)
            assert find_experiment(remote, "fleet-rlm", None) == experiment
            write_mlflow_run(remote, experiment, write_run(project / "runs" / "b"))
            assert {found.info.run_name for found in client.search_runs([experiment])} == {"a", "b"}
        finally:
            view.send_signal(signal.SIGINT)
        assert view.wait(timeout=20) == 0
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(root.rpartition(":")[2])), timeout=5)
