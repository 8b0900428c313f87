"""What `fleet-eval view` and `sync` do: the MLflow dashboard, and runs that it lacks."""

from __future__ import annotations

import json
import os
from pathlib import Path

from fleet_rlm.config import resolve
from fleet_rlm.errors import Exit, UsageError
from fleet_rlm.project import project_dir
from fleet_rlm.tracking import SYNC_S, Mirror, parse_trace


def view_command(start: Path, *, port: int | None, open_browser: bool) -> int:
    """Serve the MLflow dashboard until Ctrl-C."""
    from fleet_rlm.tracking.view import serve

    project = project_dir(start)
    uri = resolve({}, os.environ, project).config.mlflow_tracking_uri
    return serve(project, tracking_uri=uri, port=port, open_browser=open_browser)


def sync_command(start: Path, folder: Path, *, trace: str | None, as_json: bool) -> int:
    """Mirror a stored run to MLflow as it is now."""
    wanted = parse_trace(trace)
    if not any((folder / name).exists() for name in ("run.json", "job.json")):
        raise UsageError(f"{folder} is not the folder of a run.", fix="fleet-eval run")
    project = project_dir(start)
    uri = resolve({}, os.environ, project).config.mlflow_tracking_uri
    with Mirror.start(folder, tracking_uri=uri, project_dir=project, trace=wanted) as mirror:
        result = mirror.finish(SYNC_S)
    if result.problem:
        raise UsageError(result.problem)
    if as_json:
        print(json.dumps({"run_id": result.run_id, "experiment_id": result.experiment_id}))
    else:
        print(f"{folder} is MLflow run {result.run_id}; see it with: fleet-eval view")
    return Exit.OK
