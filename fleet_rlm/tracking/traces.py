"""Traces of a run's answers written to MLflow, many spans at a time, never the same one twice."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
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
_RESOURCE = Resource({"service.name": "fleet-rlm"})
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
    tracing = TracingClient(client.tracking_uri)
    missing = [(name, record) for name, record in wanted.items() if name not in stored]
    for some in _slices(missing, TRACES_AT_ONCE):
        made = [
            _Made(target, name, record, *_read(run_dir, record, redactor), about)
            for name, record in some
        ]
        tracing.log_spans(target.experiment_id, [span for trace in made for span in trace.spans()])
        for trace in made:  # with this it is complete, and found by the next mirror
            tracing.start_trace(trace.info())


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


class _Made:
    """One trace as MLflow takes it."""

    def __init__(
        self,
        target: Target,
        name: str,
        record: Mapping[str, Any],
        trajectory: Mapping[str, Any],
        ended_ns: int,
        about: About,
    ) -> None:
        self.target, self.name, self.record, self.about = target, name, record, about
        self.root = answer_span(about, record, trajectory)
        self.start_ns = ended_ns - int(self.root.end_s * 1e9)

    def spans(self) -> Iterator[MlflowSpan]:
        """All of them, parents first."""
        yield from self._spans(self.root, None, "0")

    def info(self) -> TraceInfo:
        """What the list of traces shows."""
        record, root = self.record, self.root
        usage = sum(map(Usage.from_json, (record.get("usage") or {}).values()), Usage())
        return TraceInfo(
            trace_id=self.name,
            trace_location=TraceLocation.from_experiment_id(self.target.experiment_id),
            request_time=self.start_ns // 1_000_000,
            execution_duration=int(root.end_s * 1000),
            state=TraceState.ERROR if root.error else TraceState.OK,
            request_preview=str(root.inputs["query"])[:_PREVIEW_CHARS],
            response_preview=str(root.outputs["answer"])[:_PREVIEW_CHARS],
            trace_metadata={
                TraceMetadataKey.SOURCE_RUN: self.target.run_id,
                TraceMetadataKey.TOKEN_USAGE: json.dumps(_tokens(usage)),
                TraceMetadataKey.COST: json.dumps({"total_cost": usage.usd}),
            },
            tags={
                TraceTagKey.TRACE_NAME: self.about.program,
                **{
                    f"fleet.{name}": str(record[name])
                    for name in ("sample", "epoch", "task", "length", "status", "stop")
                    if name in record
                },
            },
            assessments=self._assessments(),
        )

    def _assessments(self) -> list[Assessment]:
        record, source = self.record, AssessmentSource("CODE", "fleet-rlm")
        found: list[Assessment] = [
            Feedback(name, record[name], source=source)
            for name in ("score", "official", "robust")
            if record.get(name) is not None
        ]
        if record.get("expected"):
            found.append(Expectation("expected_answer", record["expected"], source))
        for assessment in found:
            assessment.create_time_ms = self.start_ns // 1_000_000
            assessment.last_update_time_ms = assessment.create_time_ms
        return found

    def _spans(self, span: Span, parent: SpanContext | None, path: str) -> Iterator[MlflowSpan]:
        context = SpanContext(
            trace_id=int(self.name.removeprefix("tr-"), 16),
            span_id=int(hashlib.blake2b(path.encode(), digest_size=8).hexdigest(), 16),
            is_remote=False,
            trace_flags=TraceFlags(TraceFlags.SAMPLED),
        )
        attributes = {SpanAttributeKey.REQUEST_ID: self.name, **_attributes(span)}
        status = Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.OK)
        end_ns = self.start_ns + int(span.end_s * 1e9)
        failure = {"exception.message": span.error or ""}
        yield MlflowSpan(
            ReadableSpan(
                name=span.name,
                context=context,
                parent=parent,
                attributes={name: json.dumps(value) for name, value in attributes.items()},
                events=[Event("exception", failure, end_ns)] if span.error else [],
                status=status,
                resource=_RESOURCE,
                start_time=self.start_ns + int(span.start_s * 1e9),
                end_time=end_ns,
            )
        )
        for number, child in enumerate(span.children):
            yield from self._spans(child, context, f"{path}.{number}")


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
