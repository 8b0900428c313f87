"""One run folder written to one MLflow run, through `MlflowClient` and explicit run ids."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import orjson
from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.entities import Dataset as Input
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from fleet_rlm.errors import UsageError
from fleet_rlm.tracking.choice import Trace, chosen
from fleet_rlm.tracking.content import (
    HOST_SIDE,
    MAX_PARAM_CHARS,
    Content,
    Dataset,
    read_content,
)
from fleet_rlm.tracking.job_content import FILES as JOB_FILES
from fleet_rlm.tracking.job_content import JOB_FILE, Part, read_job
from fleet_rlm.tracking.layout import TAG, view_state
from fleet_rlm.tracking.lookup import LINK_FILE, RECORDS_FILE
from fleet_rlm.tracking.spans import About
from fleet_rlm.tracking.traces import Target, write_traces

RECORDS_TABLE = "records.json"
PLOTS = "plots"
"""Folder of a run's pictures, and of its artifacts."""

TRIALS_TABLE = "trials_table.json"

_PARAMS_AT_ONCE, _METRICS_AT_ONCE = 100, 1000  # the limits of one request, refused above
_INPUT_TRIES = 3
_TOKEN_TAG = "fleet.mirror"
_TABLES_TAG = "mlflow.loggedArtifacts"  # what MLflow's table viewer looks for


def find_experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    """The id of the experiment, made if need be; several processes may ask at once.

    Raises:
        UsageError: the experiment was deleted in the dashboard.
        MlflowException: the store does not answer.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            # Without the kind the dashboard opens on a page about traces, not on the runs.
            tags = {"mlflow.experimentKind": "custom_model_development", TAG: view_state()}
            made = client.create_experiment(name, artifact_location=artifacts, tags=tags)
            return str(made)
        except MlflowException as error:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise error
    if experiment.lifecycle_stage == "deleted":
        raise UsageError(
            f"The MLflow experiment {name!r} is deleted.",
            fix=f"mlflow experiments restore --experiment-id {experiment.experiment_id}",
        )
    if experiment.tags.get(TAG) != view_state():
        client.set_experiment_tag(experiment.experiment_id, TAG, view_state())
    return str(experiment.experiment_id)


def write_folder(
    client: MlflowClient, experiment_id: str, folder: Path, *, trace: Trace = "sampled"
) -> Run:
    """Mirror the folder of a run, or of a job with a run inside for each of its trials.

    Raises:
        MlflowException: the store refused or does not answer.
        UsageError: the folder cannot be read or written.
    """
    if (folder / JOB_FILE).exists():
        return write_job(client, experiment_id, folder)
    return write_run(client, experiment_id, folder, trace=trace)


def write_job(client: MlflowClient, experiment_id: str, job_dir: Path) -> Run:
    """Mirror a job's folder as far as it is, and return its MLflow run; again as `write_run`.

    Raises:
        MlflowException: the store refused or does not answer.
        UsageError: the folder cannot be read or written.
    """
    content, parts = read_job(job_dir)
    with _only_mirror(job_dir):
        run = _open_run(client, experiment_id, job_dir, content)
        _log_values(client, run, content)
        _log_table(client, run, TRIALS_TABLE, content.table)
        for name in JOB_FILES:
            if (job_dir / name).exists():
                client.log_artifact(run.info.run_id, str(job_dir / name))
        if (job_dir / "bundle").is_dir():
            client.log_artifacts(run.info.run_id, str(job_dir / "bundle"), "bundle")
        for part in parts:
            inside = {"mlflow.parentRunId": run.info.run_id, "fleet.job": content.run}
            tagged = replace(part, tags=part.tags | inside)
            write_run(client, experiment_id, part.folder, trace="none", part=tagged)
        _end(client, run, content)
    return run


def write_run(
    client: MlflowClient,
    experiment_id: str,
    run_dir: Path,
    *,
    trace: Trace = "sampled",
    part: Part | None = None,
) -> Run:
    """Mirror a run folder and return its MLflow run.

    The MLflow run that mirrored the folder before is continued: metrics and files are written
    again, and the records table is replaced, never appended to. A mirror killed anywhere leaves no
    second MLflow run behind.

    Raises:
        MlflowException: the store refused or does not answer.
        UsageError: the run folder cannot be read or written.
    """
    content = read_content(run_dir)
    if part is not None:
        content = replace(
            content,
            title=part.title,
            params=content.params | part.params,
            metrics=[*content.metrics, *part.metrics],
            tags=content.tags | part.tags,
        )
    with _only_mirror(run_dir):
        run = _open_run(client, experiment_id, run_dir, content)
        run_id = run.info.run_id
        _log_values(client, run, content)
        _log_table(client, run, RECORDS_TABLE, content.table)
        _log_records(client, run_id, content)
        for name in ("run.json", "summary.json", "report.html"):
            if (run_dir / name).exists():
                client.log_artifact(run_id, str(run_dir / name))
        if (run_dir / PLOTS).is_dir():
            client.log_artifacts(run_id, str(run_dir / PLOTS), PLOTS)
        _end(client, run, content)
        _write_traces(client, run, run_dir, content, trace)
    return run


def _end(client: MlflowClient, run: Run, content: Content) -> None:
    status = "FINISHED" if content.finished else "KILLED"
    client.set_terminated(run.info.run_id, status, end_time=content.ended_ms)


def _write_traces(
    client: MlflowClient, run: Run, run_dir: Path, content: Content, trace: Trace
) -> None:
    if records := chosen(content.records, trace):
        target = Target(
            experiment_id=run.info.experiment_id,
            run_id=run.info.run_id,
            token=content.tags[_TOKEN_TAG],
        )
        about = About(
            suite=content.params.get("suite", ""),
            program=content.params.get("program", ""),
            models=content.models,
        )
        write_traces(client, target, run_dir, about, records)


@contextmanager
def _only_mirror(run_dir: Path) -> Iterator[None]:
    try:
        folder = os.open(run_dir, os.O_RDONLY)
    except OSError as error:
        raise UsageError(f"The run folder {run_dir} cannot be read: {error}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _open_run(client: MlflowClient, experiment_id: str, run_dir: Path, content: Content) -> Run:
    """The MLflow run of the folder in this store, made if need be.

    The folder's own token is on disk before the run is made, and a tag of the run: the run is found
    again though a kill or an outage came before its id was noted, or another store between.
    """
    link = _read_link(run_dir)
    token = str(link.get("token") or uuid.uuid4().hex)
    tags = content.tags | {_TOKEN_TAG: token}
    run = _run_of_link(client, link, content.run)
    if run is None:
        _write_link(run_dir, {"token": token})
        run = _run_of_token(client, experiment_id, token, content.run) or client.create_run(
            experiment_id, start_time=content.started_ms, run_name=content.title, tags=tags
        )
    _write_link(
        run_dir,
        {"token": token, "run_id": run.info.run_id, "experiment_id": run.info.experiment_id},
    )
    content.tags[_TOKEN_TAG] = token
    return run


def _run_of_link(client: MlflowClient, link: Mapping[str, str], name: str) -> Run | None:
    """The MLflow run of an earlier mirror, unless the folder was copied or the store replaced."""
    if "run_id" not in link:
        return None
    try:
        run = client.get_run(link["run_id"])
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    mirrored = run.data.tags.get("fleet.run") == name and run.info.lifecycle_stage == "active"
    return run if mirrored else None


def _run_of_token(client: MlflowClient, experiment_id: str, token: str, name: str) -> Run | None:
    found = client.search_runs(
        [experiment_id], f"tags.`{_TOKEN_TAG}` = '{token}'", max_results=100
    )  # a copied folder has the token, and another name
    return next((run for run in found if run.data.tags.get("fleet.run") == name), None)


def _read_link(run_dir: Path) -> dict[str, str]:
    try:
        link = json.loads((run_dir / LINK_FILE).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{run_dir / LINK_FILE} cannot be read: {error}.", fix=f"rm {run_dir / LINK_FILE}"
        ) from error
    return link if isinstance(link, dict) else {}


def _write_link(run_dir: Path, link: Mapping[str, str]) -> None:
    fresh = run_dir / f"{LINK_FILE}.{os.getpid()}"
    try:
        fresh.write_text(json.dumps({"schema": 2, **link}) + "\n", "utf-8")
        fresh.replace(run_dir / LINK_FILE)
    except OSError as error:
        raise UsageError(f"{run_dir / LINK_FILE} cannot be written: {error}") from error


def _log_values(client: MlflowClient, run: Run, content: Content) -> None:
    run_id, logged = run.info.run_id, run.data.params
    params = [Param(name, text) for name, text in content.params.items() if name not in logged]
    # MLflow never changes a param: what a resumed run does differently (its git revision) is a tag.
    changed = {
        f"resumed.{name}": text[:MAX_PARAM_CHARS]
        for name, text in content.params.items()
        if logged.get(name, text) != text
    }
    tags = [RunTag(name, text) for name, text in (content.tags | changed).items()]
    plain = [point for point in content.metrics if point.step is None]
    metrics = [Metric(point.name, point.value, content.ended_ms, 0) for point in plain]
    # MLflow keeps every value of a step, and draws them all: each is written when it is final, and
    # is one and the same point whenever it is written.
    metrics += [
        Metric(point.name, point.value, content.started_ms, point.step)
        for point in content.metrics
        if point.step is not None and content.finished
    ]
    for start in range(0, max(len(params), len(tags)), _PARAMS_AT_ONCE):
        part = slice(start, start + _PARAMS_AT_ONCE)
        client.log_batch(run_id, params=params[part], tags=tags[part])
    for start in range(0, len(metrics), _METRICS_AT_ONCE):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS_AT_ONCE])
    _log_inputs(client, run_id, [_input(dataset) for dataset in content.datasets])


def _log_inputs(client: MlflowClient, run_id: str, inputs: list[DatasetInput]) -> None:
    # Of runs that log the same dataset at once, MLflow refuses all but the first; then it is there.
    for tries_left in reversed(range(_INPUT_TRIES)):
        try:
            client.log_inputs(run_id, inputs)
            return
        except MlflowException:
            if not tries_left:
                raise


def _input(dataset: Dataset) -> DatasetInput:
    source = CodeDatasetSource(dataset.source)
    found = Input(dataset.name, dataset.digest, source._get_source_type(), source.to_json())
    return DatasetInput(found, [InputTag("mlflow.data.context", "evaluation")])


def _log_table(
    client: MlflowClient, run: Run, name: str, table: Mapping[str, list[object]]
) -> None:
    """Write what `MlflowClient.log_table` writes; that one appends to a resumed run's table."""
    split = {"columns": list(table), "data": list(zip(*table.values(), strict=True))}
    client.log_text(run.info.run_id, json.dumps(split, ensure_ascii=False), name)
    tables = [{"path": name, "type": "table"}]
    client.set_tag(run.info.run_id, _TABLES_TAG, json.dumps(tables))


def _log_records(client: MlflowClient, run_id: str, content: Content) -> None:
    """The records as they are, less what must stay in the folder: `lookup` reads them back."""
    lines = [
        orjson.dumps({key: value for key, value in record.items() if key not in HOST_SIDE})
        for record in content.records
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / RECORDS_FILE
        file.write_bytes(gzip.compress(b"".join(line + b"\n" for line in lines), mtime=0))
        client.log_artifact(run_id, str(file))
