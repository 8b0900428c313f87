"""The MLflow dashboard on a project's store, in the foreground."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn
from urllib.parse import quote

from fleet_rlm.errors import Exit, UsageError
from fleet_rlm.tracking.layout import SHARE_KEY, TAG
from fleet_rlm.tracking.store import (
    EXPERIMENT,
    QUIET,
    artifact_root,
    is_server,
    prepare_store,
    resolve_uri,
    shown,
    sqlite_file,
)

USUAL_PORT = 5000
START_S = 120.0
"""A cold start of the dashboard takes 4-20 s; one that ends is reported at once."""


def serve(
    project_dir: Path,
    *,
    tracking_uri: str | None,
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool,
    experiment: str = EXPERIMENT,
) -> int:
    """Serve the dashboard until Ctrl-C; its address goes to stdout when it answers.

    Call it from the main thread. While it runs SIGTERM and SIGHUP mean Ctrl-C: no server is left.

    Args:
        project_dir: the user's project, whose `mlflow.db` is shown.
        tracking_uri: the store; None for `MLFLOW_TRACKING_URI`, else the project's own.
        host: the address to listen on.
        port: None for 5000, or a free one when that is taken; 0 for a free one.
        open_browser: also open the address.
        experiment: whose page is printed.

    Returns:
        The exit code: 0 after Ctrl-C, or for a tracking server, whose address is printed.

    Raises:
        UsageError: no run was mirrored yet, the store cannot be used, the port is taken, the server
            ended by itself.
    """
    uri = resolve_uri(tracking_uri, project_dir, os.environ)
    if is_server(uri):
        print(f"The runs are on a tracking server with its own dashboard: {shown(uri)}")
        if open_browser:
            webbrowser.open(shown(uri))
        return Exit.OK
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise UsageError(
            f"No run was mirrored yet: {file} does not exist.", fix="fleet-eval run quickstart"
        )
    prepare_store(uri)
    port = _choose_port(host, port)
    with tempfile.TemporaryFile() as log, _interrupted_by_signals():
        try:
            with _server(uri, project_dir, (host, port), log) as server:
                page = _await_page(server, f"http://{_in_url(host)}:{port}", experiment)
                if page:
                    print(f"MLflow dashboard: {page}  (Ctrl-C ends it)", flush=True)
                    if open_browser:
                        webbrowser.open(page)
                    server.wait()
        except KeyboardInterrupt:
            return Exit.OK
        log.seek(0)
        last = log.read().decode(errors="replace").strip().rpartition("\n")[2]
    raise UsageError(f"The MLflow dashboard ended with {server.returncode}. {last}")


def _choose_port(host: str, port: int | None) -> int:
    for wanted in (USUAL_PORT, 0) if port is None else (port,):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, wanted))
            except OSError as error:
                reason = error.strerror
                continue
            return int(probe.getsockname()[1])
    raise UsageError(f"Cannot listen on {host} port {port}: {reason}.", fix="--port 0")


@contextmanager
def _server(
    uri: str, project_dir: Path, address: tuple[str, int], log: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    host, port = address
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    artifacts = artifact_root(uri, project_dir) or ""
    env = dict(os.environ) | QUIET
    env |= {
        "MLFLOW_BACKEND_STORE_URI": uri,  # not an argument: it may hold a password
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": artifacts,
        "MLFLOW_ARTIFACTS_DESTINATION": artifacts,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # for online judges; five more processes
        "PYTHONSAFEPATH": "1",  # a project's own modules must not shadow those of the server
    }
    env.pop("MLFLOW_TRACKING_URI", None)
    server = subprocess.Popen(
        [*command, "--workers", "1"],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=env,
        start_new_session=True,  # Ctrl-C comes to us; we end the server and all that it started
    )
    try:
        yield server
    finally:
        _end_group(server)


def _end_group(server: subprocess.Popen[bytes]) -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, how)
        with suppress(subprocess.TimeoutExpired):
            server.wait(5)


def _await_page(server: subprocess.Popen[bytes], root: str, experiment: str) -> str | None:
    """The address of the experiment's page once the server answers; None when it does not."""
    query = f"{root}/api/2.0/mlflow/experiments/get-by-name?experiment_name={quote(experiment)}"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with direct.open(query, timeout=5) as reply:
                found = json.load(reply)["experiment"]
                tags = {tag["key"] for tag in found.get("tags", ())}
                view = f"?viewStateShareKey={SHARE_KEY}" if TAG in tags else ""
                return f"{root}/#/experiments/{found['experiment_id']}/runs{view}"
        except urllib.error.HTTPError:
            return root  # it answers, but no run is in this experiment yet
        except OSError:
            time.sleep(0.2)
    return None


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_url(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
