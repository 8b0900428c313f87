"""Traces of a run's answers written to MLflow, many spans at a time, never the same one twice."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import orjson
from mlflow import MlflowClient
from mlflow.entities import Assessment, AssessmentSource, Expectation, Feedback, TraceInfo
from mlflow.entities import Span as MlflowSpan
from mlflow.entities.trace_location import TraceLocation
from mlflow.entities.trace_state import TraceState
from mlflow.tracing.client import TracingClient
from mlflow.tracing.constant import SpanAttributeKey, TraceMetadataKey, TraceTagKey
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from fleet_rlm.ledger import Usage
from fleet_rlm.sandbox.redact import Redactor
from fleet_rlm.tracking.spans import About, Span, answer_span

TRACES_AT_ONCE = 20
"""Their spans go in one transaction, or one request."""

_IDS_AT_ONCE = 100
_PREVIEW_CHARS = 1000
_RESOURCE = Resource.get_empty()  # each entry would be a tag of each trace
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The MLflow run that traces belong to."""

    experiment_id: str
    run_id: str
    token: str
    """Of the run folder: traces of it have the same ids whenever they are written."""


def write_traces(
    client: MlflowClient,
    target: Target,
    run_dir: Path,
    about: About,
    records: Sequence[Mapping[str, Any]],
) -> None:
    """Write the traces of `records` that the store lacks; replace those of answers since redone.

    Args:
        client: of the store.
        target: what they belong to.
        run_dir: where the trajectories are.
        about: the run.
        records: of the run, one per sample and epoch.

    Raises:
        MlflowException: the store refused or does not answer.
        NotImplementedError: a tracking server older than MLflow 3.4.
    """
    wanted = {_trace_id(target.token, record): record for record in records}
    stored = dict(_stored(client, target))
    redone = {_key(record) for name, record in wanted.items() if name not in stored}
    outdated = [name for name, key in stored.items() if key in redone]
    for ids in _slices(outdated, _IDS_AT_ONCE):
        client.delete_traces(target.experiment_id, trace_ids=ids)
    redactor = Redactor.from_env(os.environ)
    missing = [(name, record) for name, record in wanted.items() if name not in stored]
    for some in _slices(missing, TRACES_AT_ONCE):
        made = []
        for name, record in some:
            trajectory, ended_ns = _read(run_dir, record, redactor)
            root = answer_span(about, record, trajectory)
            info = _info(name, root, ended_ns - int(root.end_s * 1e9), target, record)
            made.append(Trace(info, root))
        log_traces(client, target.experiment_id, made)


def _key(record: Mapping[str, Any]) -> tuple[str, str]:
    return str(record.get("sample")), str(record.get("epoch"))


def _trace_id(token: str, record: Mapping[str, Any]) -> str:
    whole = orjson.dumps([token, record], option=orjson.OPT_SORT_KEYS)
    return f"tr-{hashlib.blake2b(whole, digest_size=16).hexdigest()}"


def _stored(client: MlflowClient, target: Target) -> Iterator[tuple[str, tuple[str, str]]]:
    page = None
    while page != "":
        found = client.search_traces(
            locations=[target.experiment_id],
            run_id=target.run_id,
            include_spans=False,
            max_results=500,
            page_token=page,
        )
        for trace in found:
            tags = trace.info.tags
            yield trace.info.trace_id, (tags.get("fleet.sample", ""), tags.get("fleet.epoch", ""))
        page = found.token or ""


def _read(
    run_dir: Path, record: Mapping[str, Any], redactor: Redactor
) -> tuple[Mapping[str, Any], int]:
    """The trajectory, and the nanosecond in which it was written; an empty one if it is lost."""
    file = run_dir / str(record.get("trajectory"))
    try:
        trajectory = orjson.loads(gzip.decompress(file.read_bytes()))
        return redactor.clean_data(trajectory), file.stat().st_mtime_ns
    except (OSError, EOFError, ValueError):
        return {}, (run_dir / "records.jsonl").stat().st_mtime_ns


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace ready to be written."""

    info: TraceInfo
    root: Span


def log_traces(client: MlflowClient, experiment_id: str, traces: Sequence[Trace]) -> None:
    """Write traces: the spans of all of them at once, then each as a whole.

    Raises:
        MlflowException: the store refused or does not answer.
        NotImplementedError: a tracking server older than MLflow 3.4.
    """
    log_trees(
        client, experiment_id, [(t.info.trace_id, t.info.request_time, t.root) for t in traces]
    )
    tracing = TracingClient(client.tracking_uri)
    for trace in traces:  # with this it is complete, and found by the next mirror
        tracing.start_trace(trace.info)


def log_trees(
    client: MlflowClient, experiment_id: str, trees: Iterable[tuple[str, int, Span]]
) -> None:
    """Write traces that need no more than their spans say, all in one transaction or request.

    Args:
        client: of the store.
        experiment_id: where they go.
        trees: id ("tr-" and 32 hexadecimal digits), start in milliseconds, and root of each.

    Raises:
        MlflowException: the store refused or does not answer.
        NotImplementedError: a tracking server older than MLflow 3.4.
    """
    spans = [
        span
        for name, started_ms, root in trees
        for span in _spans(name, started_ms * 1_000_000, root, None, "0")
    ]
    TracingClient(client.tracking_uri).log_spans(experiment_id, spans)


def _info(
    name: str, root: Span, started_ns: int, target: Target, record: Mapping[str, Any]
) -> TraceInfo:
    # Of the record: sandboxes cost dollars too, and no span is theirs.
    usage = sum(map(Usage.from_json, (record.get("usage") or {}).values()), Usage())
    shown = ("sample", "epoch", "task", "length", "status", "stop")
    info = TraceInfo(
        trace_id=name,
        trace_location=TraceLocation.from_experiment_id(target.experiment_id),
        request_time=started_ns // 1_000_000,
        execution_duration=int(root.end_s * 1000),
        state=TraceState.ERROR if root.error else TraceState.OK,
        request_preview=str(root.inputs["query"])[:_PREVIEW_CHARS],
        response_preview=str(root.outputs["answer"])[:_PREVIEW_CHARS],
        trace_metadata={
            TraceMetadataKey.SOURCE_RUN: target.run_id,
            TraceMetadataKey.TOKEN_USAGE: json.dumps(_tokens(usage)),
            TraceMetadataKey.COST: json.dumps({"total_cost": usage.usd}),
        },
        tags={
            TraceTagKey.TRACE_NAME: root.name,
            **{f"fleet.{name}": str(record[name]) for name in shown if name in record},
        },
    )
    source = AssessmentSource("CODE", "fleet-rlm")
    found: list[Assessment] = [
        Feedback(name, record[name], source=source)
        for name in ("score", "official", "robust")
        if record.get(name) is not None
    ]
    if record.get("expected"):
        found.append(Expectation("expected_answer", record["expected"], source))
    for assessment in found:
        assessment.create_time_ms = assessment.last_update_time_ms = info.request_time
    info.assessments = found
    return info


def _spans(
    name: str, started_ns: int, span: Span, parent: SpanContext | None, path: str
) -> Iterator[MlflowSpan]:
    """The span and all below it, parents first."""
    context = SpanContext(
        trace_id=int(name.removeprefix("tr-"), 16),
        span_id=int(hashlib.blake2b(path.encode(), digest_size=8).hexdigest(), 16),
        is_remote=False,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )
    attributes = {SpanAttributeKey.REQUEST_ID: name, **_attributes(span)}
    status = Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.OK)
    end_ns = started_ns + int(span.end_s * 1e9)
    failure = {"exception.message": span.error or ""}
    yield MlflowSpan(
        ReadableSpan(
            name=span.name,
            context=context,
            parent=parent,
            attributes={key: orjson.dumps(value).decode() for key, value in attributes.items()},
            events=[Event("exception", failure, end_ns)] if span.error else [],
            status=status,
            resource=_RESOURCE,
            start_time=started_ns + int(span.start_s * 1e9),
            end_time=end_ns,
        )
    )
    for number, child in enumerate(span.children):
        yield from _spans(name, started_ns, child, context, f"{path}.{number}")


def _attributes(span: Span) -> dict[str, Any]:
    found: dict[str, Any] = {SpanAttributeKey.SPAN_TYPE: span.kind, **span.attributes}
    if span.inputs:
        found[SpanAttributeKey.INPUTS] = span.inputs
    if span.outputs:
        found[SpanAttributeKey.OUTPUTS] = span.outputs
    if span.model:
        found[SpanAttributeKey.MODEL] = span.model
    if span.usage:
        found[SpanAttributeKey.CHAT_USAGE] = _tokens(span.usage)
        found[SpanAttributeKey.LLM_COST] = {"total_cost": round(span.usage.usd, 9)}
        found["usd"] = round(span.usage.usd, 9)
    return found


def _tokens(usage: Usage) -> dict[str, int]:
    found = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.tokens,
    }
    return found | ({"cache_read_input_tokens": usage.cached_tokens} if usage.cached_tokens else {})


def _slices(items: list[_Item], size: int) -> Iterator[list[_Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))
