"""The child process of a mirror: prepares the store while samples run, then writes the run.

Started by `mirror.py` with one JSON argument and the store in `MLFLOW_TRACKING_URI`. A line on
stdin asks for the mirror; the end of stdin or of the parent ends the process; the answer is one
JSON line.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
from pathlib import Path
from types import TracebackType

from fleet_rlm.errors import FleetError
from fleet_rlm.tracking.store import artifact_root, prepare_store, unusable

NICENESS = 10
"""Samples come first: preparing costs 2-4 s of CPU and there is a whole run to do it in."""


def main() -> None:
    """Serve one mirror and end."""
    job = json.loads(sys.argv[1])
    uri = os.environ["MLFLOW_TRACKING_URI"]
    answer_fd = os.dup(1)
    os.dup2(2, 1)  # what MLflow prints must not mix with the answer

    def answer(**fields: str | None) -> None:
        os.write(answer_fd, json.dumps(fields).encode() + b"\n")

    def report(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        # The one place for every failure of MLflow, of which there are many kinds: the run goes on.
        answer(problem=str(error if isinstance(error, FleetError) else unusable(uri, error)))
        sys.__excepthook__(kind, error, trace)

    sys.excepthook = report
    os.nice(NICENESS)
    wanted = threading.Event()
    threading.Thread(target=_watch_parent, args=(job["parent"], wanted), daemon=True).start()
    prepare_store(uri)

    from mlflow import MlflowClient

    from fleet_rlm.tracking.writer import find_experiment, write_folder

    client = MlflowClient(tracking_uri=uri)
    artifacts = artifact_root(uri, Path(job["project_dir"]))
    experiment_id = find_experiment(client, job["experiment"], artifacts)
    wanted.wait()
    run = write_folder(client, experiment_id, Path(job["run_dir"]), trace=job["trace"])
    answer(run_id=run.info.run_id, experiment_id=run.info.experiment_id, problem=None)


def _watch_parent(parent: int, wanted: threading.Event) -> None:
    """Set `wanted` on a line; end the process with its parent.

    The parent's id is watched too: a process that the parent forked may hold our stdin open.
    """
    while True:
        ready, _, _ = select.select([0], [], [], 1.0)
        if os.getppid() != parent or (ready and not os.read(0, 1024)):
            os._exit(1)
        if ready:
            wanted.set()
