"""The runner's side of the MLflow mirror: a child process that never slows or fails a run."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from fleet_rlm.config import Config
from fleet_rlm.errors import UsageError, one_line
from fleet_rlm.project import relative
from fleet_rlm.tracking.choice import Trace
from fleet_rlm.tracking.store import EXPERIMENT, PATIENCE, QUIET, resolve_uri, shown

SYNC_S = 600.0
"""Longest that a mirror may take that was asked for, itself or all of its traces."""

RUN_S = 60.0
"""The same where a run waits for it. Sampled traces take a second, a thousand half a minute."""

# The package is found where the parent found it, whatever lies in the working directory, and its
# folder does not stay on the path: a checkout holds a `datasets/` that is not Hugging Face's.
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); import fleet_rlm; del sys.path[0];"
    "from fleet_rlm.tracking.worker import main; main()"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorResult:
    """How a mirror ended."""

    run_id: str | None = None
    """The MLflow run; None exactly when there is a problem."""

    experiment_id: str | None = None
    problem: str | None = None
    """One line for the user: why the run is not in MLflow. The run folder is complete."""


class Mirror:
    """One run folder on its way to MLflow.

    `start` when the run starts, then `finish` once when its files are written, or `cancel`; as a
    context manager it cancels what was not finished. No trouble with the store is raised.
    Importing MLflow costs 1.2-6 s of CPU and 160 MB: a child process does it while samples run.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  as long as the child, see `cancel`
        self._uri = ""
        self._problem = "The MLflow mirror was cancelled."

    @classmethod
    def start(
        cls,
        run_dir: Path,
        *,
        tracking_uri: str | None,
        project_dir: Path,
        experiment: str = EXPERIMENT,
        trace: Trace = "sampled",
    ) -> Self:
        """Start the child, which prepares the store at low priority.

        Args:
            run_dir: the run folder; its files are read only when `finish` asks.
            tracking_uri: the store; None for `MLFLOW_TRACKING_URI`, else `mlflow.db` of the project
                with files in `mlartifacts/` beside it.
            project_dir: the user's project.
            experiment: the MLflow experiment, made if need be.
            trace: whose answers are written as traces too; see `choice.chosen`.
        """
        mirror = cls()
        job: dict[str, str | int] = {
            "run_dir": str(run_dir.absolute()),
            "project_dir": str(project_dir.absolute()),
            "experiment": experiment,
            "trace": trace,
            "parent": os.getpid(),
        }
        try:
            mirror._uri = resolve_uri(tracking_uri, project_dir, os.environ)
            mirror._process = _start_child(job, mirror._uri, mirror._log)
        except UsageError as error:
            mirror._problem = str(error)
        except OSError as error:
            mirror._problem = f"The MLflow process cannot be started: {error}"
        return mirror

    def finish(self, timeout_s: float = 60.0) -> MirrorResult:
        """Mirror the run folder as it is now, in at most `timeout_s`; the child then ends."""
        try:
            return self._answer(timeout_s)
        finally:
            self.cancel()

    def cancel(self) -> None:
        """End the child. What it had written stays; harmless after `finish`."""
        process = self._process
        if process is not None and process.stdin and process.stdout:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stdin.close()
        self._process = None
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()

    def _answer(self, timeout_s: float) -> MirrorResult:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return MirrorResult(problem=self._problem)
        with suppress(BrokenPipeError):  # it met a problem and ended; the answer says which
            os.write(process.stdin.fileno(), b"mirror\n")
        answered = select.poll()
        answered.register(process.stdout, select.POLLIN)
        if not answered.poll(timeout_s * 1000):
            slow = f"The MLflow store {shown(self._uri)} took longer than {timeout_s:g} s."
            return MirrorResult(problem=slow)
        line = process.stdout.readline()  # written at once; empty when the child died without one
        if line:
            return MirrorResult(**json.loads(line))
        process.wait()
        self._log.seek(0)
        last = self._log.read().decode(errors="replace").strip().rpartition("\n")[2]
        return MirrorResult(
            problem=one_line(f"The MLflow process ended with {process.returncode}. {last}")
        )


@contextmanager
def mirrored(
    folder: Path, config: Config, project: Path, *, trace: Trace = "sampled"
) -> Iterator[Callable[[], str | None]]:
    """Mirror the folder of a run or a job to MLflow, prepared beside the block.

    Yields:
        What writes it, once, when its files are written: gives a line when that failed.
    """
    if not config.mlflow:
        yield lambda: None
        return
    uri = config.mlflow_tracking_uri
    with Mirror.start(folder, tracking_uri=uri, project_dir=project, trace=trace) as mirror:

        def write() -> str | None:
            problem = mirror.finish(SYNC_S if trace == "all" else RUN_S).problem
            return problem and f"{problem.rstrip('.')}. Later: fleet-eval sync {relative(folder)}"

        yield write


def _start_child(job: dict[str, str | int], uri: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
    package_root = str(Path(__file__).absolute().parents[2])
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _BOOT, package_root, json.dumps(job)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=PATIENCE | dict(os.environ) | QUIET | {"MLFLOW_TRACKING_URI": uri},
        start_new_session=True,  # a Ctrl-C is for the run, which then decides
    )
