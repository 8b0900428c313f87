"""From the id of an MLflow run to the run folder that it mirrors."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

from fleet_rlm.errors import UsageError, one_line
from fleet_rlm.tracking.store import (
    PATIENCE,
    QUIET,
    prepare_store,
    shown,
    sqlite_file,
    unusable,
)

LINK_FILE = "mlflow.json"
"""Kept in the run folder: which MLflow run mirrors it."""

RECORDS_FILE = "records.jsonl.gz"
"""The artifact that a run folder is made from where there is none; it holds no gold answer."""

_RUN_ID = re.compile(r"[0-9a-f]{32}")


def find_run(given: Path, *, runs_dir: Path, tracking_uri: str) -> Path:
    """The folder of a run that is given as its folder or as the id of its MLflow run.

    A run that was made on another machine is read from the store into `runs_dir/mlflow/ID`:
    records without trajectories.

    Args:
        given: what the user wrote.
        runs_dir: where the project keeps its runs.
        tracking_uri: the store, as `store.resolve_uri` gives it.

    Raises:
        UsageError: no run has this id, or the store does not answer.
    """
    run_id = str(given)
    if not _RUN_ID.fullmatch(run_id) or given.exists():
        return given
    for link in runs_dir.glob("**/" + LINK_FILE):
        if _linked(link) == run_id:
            return link.parent
    return _fetched(run_id, runs_dir / "mlflow" / run_id, tracking_uri)


def _linked(link: Path) -> str | None:
    try:
        found = json.loads(link.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found.get("run_id") if isinstance(found, dict) else None


def _fetched(run_id: str, folder: Path, uri: str) -> Path:
    absent = UsageError(
        f"No run folder here, and no run in {shown(uri)}, is MLflow run {run_id}.",
        fix="fleet-eval view",
    )
    if (file := sqlite_file(uri)) is not None and not file.exists():
        raise absent
    prepare_store(uri)
    for name, value in (QUIET | PATIENCE).items():
        os.environ.setdefault(name, value)

    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    folder.mkdir(parents=True, exist_ok=True)
    try:
        client = MlflowClient(tracking_uri=uri)
        if "fleet.run" not in client.get_run(run_id).data.tags:
            raise absent
        for name in ("run.json", "summary.json", RECORDS_FILE):
            client.download_artifacts(run_id, name, str(folder))
        records = gzip.decompress((folder / RECORDS_FILE).read_bytes())
        (folder / "records.jsonl").write_bytes(records)
    except MlflowException as error:
        known = error.error_code != "RESOURCE_DOES_NOT_EXIST"
        raise (unusable(uri, error) if known else absent) from error
    except OSError as error:
        raise UsageError(
            f"MLflow run {run_id} cannot be read into {folder}: {one_line(str(error), 200)}.",
            fix="fleet-eval sync RUN where its folder is",
        ) from error
    return folder
