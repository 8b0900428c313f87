"""`make postgres`: runs mirrored into a real PostgreSQL, by way of a tracking server and directly.

Starts Debian's PostgreSQL in a temporary folder and ends it. Where PostgreSQL or its driver is not
installed it says so, and checks nothing.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from test_traces import record, write_folder

from fleet_rlm.tracking import Mirror

START_S = 120.0


def main() -> None:
    programs = _programs()
    if programs is None or importlib.util.find_spec("psycopg") is None:
        missing = (
            "PostgreSQL (apt-get install postgresql)" if programs is None else "psycopg[binary]"
        )
        print(f"skipped: {missing} is not installed; nothing was checked")
        return
    with _postgres(programs) as database, tempfile.TemporaryDirectory() as folder:
        served, direct = ([_run(Path(folder) / f"{way}{n}") for n in (0, 1)] for way in "sd")
        with _tracking_server(database, Path(folder)) as server:
            for _ in range(2):  # once more changes nothing
                _mirror_at_once(served, server, "served")
                _mirror_at_once(direct, database, "direct")
        for experiment, runs in (("served", served), ("direct", direct)):
            _check(database, experiment, runs)
    print("ok: 4 runs and 8 traces in PostgreSQL, each once, through a server and directly")


def _mirror_at_once(runs: list[Path], uri: str, experiment: str) -> None:
    """By a process each, all of which find the experiment, and the dataset, missing."""
    mirrors = [
        Mirror.start(run, tracking_uri=uri, project_dir=run.parent, experiment=experiment)
        for run in runs
    ]
    for mirror in mirrors:
        result = mirror.finish(START_S)
        assert result.run_id is not None, result.problem


def _check(database: str, experiment: str, runs: list[Path]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(database)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    mirrored = client.search_runs([found.experiment_id])
    assert {run.info.run_name for run in mirrored} == {run.name for run in runs}
    assert len(mirrored) == len(runs)
    assert {run.data.metrics["score"] for run in mirrored} == {0.5}
    traces = client.search_traces(locations=[found.experiment_id])
    assert len(traces) == 2 * len(runs)
    assert {trace.info.cost["total_cost"] for trace in traces} == {1.375}
    assert all(len(trace.data.spans) > 10 for trace in traces)


def _run(folder: Path) -> Path:
    return write_folder(folder, [record("x"), record("y", score=0.0)])


def _programs() -> Path | None:
    """Where PostgreSQL's programs are."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists()), None)


@contextmanager
def _postgres(programs: Path) -> Iterator[str]:
    """A fresh cluster on a free port of loopback; the URI of its database."""
    with tempfile.TemporaryDirectory() as folder:
        data, port = Path(folder) / "data", _free_port()
        become = []
        if os.getuid() == 0:  # PostgreSQL refuses root
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
            become = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        _ask([*become, str(programs / "initdb"), "-D", str(data), "-U", "fleet", "-A", "trust"])
        command = [*become, str(programs / "postgres"), "-D", str(data), "-p", str(port)]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            uri = f"postgresql://fleet@127.0.0.1:{port}/postgres"
            _await(lambda: _answers(uri))
            yield uri
        finally:
            server.send_signal(signal.SIGINT)  # ends sessions too
            server.wait(30)


@contextmanager
def _tracking_server(database: str, folder: Path) -> Iterator[str]:
    port = _free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    env = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_ARTIFACTS_DESTINATION": str(folder / "artifacts"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "DO_NOT_TRACK": "true",
    }
    with (folder / "server.log").open("w+b") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            _await(lambda: server.poll() is not None or _healthy(port))
            if server.poll() is not None:
                log.seek(0)
                raise SystemExit(log.read().decode(errors="replace"))
            yield f"http://127.0.0.1:{port}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)


def _ask(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _await(ready) -> None:
    deadline = time.monotonic() + START_S
    while not ready():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def _answers(uri: str) -> bool:
    import psycopg

    try:
        psycopg.connect(uri).close()
    except psycopg.OperationalError:
        return False
    return True


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return reply.status == 200
    except (OSError, urllib.error.URLError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
