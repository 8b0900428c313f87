"""Where MLflow keeps runs: the store of a project, made and probed before it is used."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import socket
import sqlite3
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote, urlsplit

from fleet_rlm.errors import UsageError, one_line

EXPERIMENT = "fleet-rlm"
"""The MLflow experiment that runs appear in unless the caller names another."""

SCHEMES = frozenset(
    ["", "file", "http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "uc"]
)
"""How addresses of MLflow's stores begin, before any driver or profile."""

PROBE_S = 5.0
"""How long a locked or silent store may keep the probe waiting."""

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Environment of every MLflow process of ours: nothing is sent home or drawn on the terminal."""

PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""The same: bounds a silent server, 2 tries of 10 s instead of 8 of 120 s. What the user set
stays."""

_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def resolve_uri(tracking_uri: str | None, project_dir: Path, env: Mapping[str, str]) -> str:
    """The tracking URI: the caller's, else `MLFLOW_TRACKING_URI`, else the project's mlflow.db.

    Raises:
        UsageError: the project's path cannot be written as a URI.
    """
    uri = tracking_uri or env.get("MLFLOW_TRACKING_URI")
    if uri:
        return uri
    file = str((project_dir / "mlflow.db").resolve())
    if "?" in file:  # a URI would end there, and a database appear elsewhere
        raise UsageError(
            f"MLflow cannot keep runs in {file}: a '?' in the path.", fix="set MLFLOW_TRACKING_URI"
        )
    return f"sqlite:///{file}"


def is_server(uri: str) -> bool:
    """Whether the store is a tracking server: it has its own tables, files and dashboard."""
    return uri.startswith(("http:", "https:", "databricks"))


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite store; None for every other kind."""
    scheme, _, rest = uri.partition("://")
    path = rest.partition("?")[0].removeprefix("/")
    return Path(path).absolute() if scheme.startswith("sqlite") and path else None


def artifact_root(uri: str, project_dir: Path) -> str | None:
    """Where a store that is no server puts the files of its runs; a server decides for itself."""
    if is_server(uri):
        return None
    file = sqlite_file(uri)
    return str((file.parent if file else project_dir.resolve()) / "mlartifacts")


def shown(uri: str) -> str:
    """The URI without a user name or password."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.netloc else uri


def prepare_store(uri: str) -> None:
    """Make a fresh SQLite store, or find out quickly that a store cannot be used.

    MLflow alone tries to open an unusable database for 100 s. A server is left to the first
    request.

    Raises:
        UsageError: no such host, locked, not writable, or not a database.
    """
    file = sqlite_file(uri)
    try:
        if file is None:
            _probe_database_host(uri)
        else:
            if not file.exists():
                _create_sqlite(file)
            _probe_sqlite(file)
    except (OSError, sqlite3.Error) as error:
        raise unusable(uri, error) from error


def probe_store(uri: str) -> None:
    """Find out whether a store can be used, without making anything.

    Raises:
        UsageError: as `prepare_store`; a server that does not answer, or no store's address.
    """
    if re.split(r"[+-]", urlsplit(uri).scheme)[0] not in SCHEMES:
        raise unusable(uri, ValueError("MLflow has no store with such an address"))
    file = sqlite_file(uri)
    try:
        if is_server(uri) and uri != "databricks":
            _probe_server(uri)
        elif file is None:
            _probe_database_host(uri)
        elif file.exists():
            _probe_sqlite(file)
        elif not can_make(file.parent):
            raise PermissionError(f"cannot write to {file.parent}")
    except (OSError, HTTPException, sqlite3.Error) as error:
        raise unusable(uri, error) from error


def can_make(folder: Path) -> bool:
    """Whether files can be written to a folder, itself made if it is not there."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    try:  # asked of the disk: root has every right, also on one that is read-only
        tempfile.TemporaryFile(dir=there).close()
    except OSError:
        return False
    return True


def _probe_server(uri: str) -> None:
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=PROBE_S).close()
    except urllib.error.HTTPError as answered:
        if answered.code not in (401, 403):  # there, and asks who we are
            raise


def unusable(uri: str, error: BaseException) -> UsageError:
    """The one line for a store that failed: its innermost reason, which clients wrap many times."""
    reason: BaseException = error
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError | sqlite3.Error):
            reason = inner
        inner = inner.__cause__ or inner.__context__
    refused = getattr(error, "error_code", "") in ("UNAUTHENTICATED", "PERMISSION_DENIED")
    text = str(reason).replace(uri, shown(uri)).rstrip(".")
    fix = "set MLFLOW_TRACKING_TOKEN" if refused else "another MLFLOW_TRACKING_URI"
    if getattr(reason, "sqlite_errorname", "") == "SQLITE_NOTADB":
        file = shlex.quote(str(sqlite_file(uri)))
        fix = f"mv {file} {file}.broken, and fleet-eval sync RUN for what shall be in the new one"
    return UsageError(
        f"The MLflow store {shown(uri)} cannot be used: {one_line(text, 200)}.", fix=fix
    )


def _create_sqlite(file: Path) -> None:
    """Run MLflow's migrations beside `file` and rename: a kill leaves no half-made store.

    Costs 1.1 s of CPU more than opening one. Under the lock, so that of parallel runs one does it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if file.exists():
            return
        from mlflow import MlflowClient

        fresh = file.with_name(f"{file.name}.new")
        for left in (fresh, file.with_name(f"{fresh.name}-journal")):
            left.unlink(missing_ok=True)  # by a run that was killed here
        fresh.touch()  # MLflow retries a database that it cannot open; this fails at once
        MlflowClient(tracking_uri=f"sqlite:///{fresh}").search_experiments(max_results=1)
        fresh.rename(file)
    finally:
        os.close(folder)


def _probe_sqlite(file: Path) -> None:
    connection = sqlite3.connect(
        f"file:{quote(str(file))}?mode=rw", uri=True, timeout=PROBE_S, isolation_level=None
    )
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def _probe_database_host(uri: str) -> None:
    parts = urlsplit(uri)
    port = parts.port or _DATABASE_PORTS.get(parts.scheme.partition("+")[0])
    if not is_server(uri) and parts.hostname and port:
        socket.create_connection((parts.hostname, port), timeout=PROBE_S).close()
