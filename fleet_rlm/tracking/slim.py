"""Slim traces of any DSPy app: what calls did, cut, cleaned and written many at a time."""

from __future__ import annotations

import atexit
import os
import queue
import secrets
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import dspy
from dspy.utils.callback import ACTIVE_CALL_ID, BaseCallback

from fleet_rlm.errors import FleetWarning, one_line
from fleet_rlm.ledger import Usage
from fleet_rlm.lm.metered import MeteredLM, last_usage
from fleet_rlm.sandbox.redact import Redactor
from fleet_rlm.tracking.spans import Kind, Span, cut
from fleet_rlm.tracking.store import EXPERIMENT, artifact_root, prepare_store, unusable

MAX_CHARS = 1000
"""A longer text is shown by its two ends and its length."""

MAX_ITEMS = 50
"""Items of a list that are kept."""

TRACES_AT_ONCE = 100
"""Written in one transaction, or one request."""

MAX_WAITING = 2000
"""Traces that wait to be written; more are dropped, which is said once."""

LINGER_S = 2.0
"""How long the writer waits for more traces to write with the first."""

_NAME_ATTRIBUTE = "mlflow.traceTag.mlflow.traceName"  # of a root: what the trace is called
_IN_SPANS = ("trajectory", "trail")  # of a Prediction: what the spans below show
_RECENT = 64  # entries of a model's history in which a call is looked for


@dataclass(slots=True)
class _Call:
    """A call under way."""

    name: str
    kind: Kind
    start: float
    inputs: dict[str, Any]
    parent: _Call | None
    instance: Any = None
    run_id: str | None = None
    """Of the MLflow run that was active; of a root only."""

    children: list[Span] = field(default_factory=list)
    model: str | None = None
    started: list[Any] = field(default_factory=list)
    """Of a root only: interpreters that run."""

    @property
    def root(self) -> _Call:
        return self.parent.root if self.parent else self


@dataclass(frozen=True, slots=True)
class _Trace:
    root: Span
    started_ns: int
    run_id: str | None


class Autolog(BaseCallback):
    """Traces what DSPy calls; made by `autolog`. Its methods may be called from any thread."""

    def __init__(self, tracking_uri: str, experiment: str) -> None:
        self._uri, self._experiment = tracking_uri, experiment
        self._calls: dict[str, _Call] = {}
        self._waiting: queue.Queue[_Trace] = queue.Queue(MAX_WAITING)
        self._wanted = threading.Event()
        self._said: set[str] = set()
        # A prompt is in the spans of its module and of its model, and most of it in the next one's.
        self._clean = lru_cache(4096)(Redactor.from_env(os.environ).clean)
        self._writer = threading.Thread(target=self._write, name="fleet-traces", daemon=True)
        self._writer.start()
        atexit.register(self.flush)

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait until what ended so far is written; gives whether it is."""
        self._wanted.set()
        with self._waiting.all_tasks_done:
            return self._waiting.all_tasks_done.wait_for(
                lambda: not self._waiting.unfinished_tasks, timeout_s
            )

    def disable(self) -> None:
        """Trace no more calls; what ended so far is still written."""
        callbacks = [other for other in dspy.settings.callbacks if other is not self]
        dspy.settings.configure(callbacks=callbacks)

    # ---- what DSPy tells --------------------------------------------------------------------

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        given = {**inputs.get("kwargs", {}), **{k: v for k, v in inputs.items() if k != "kwargs"}}
        if not given.get("args"):
            given.pop("args", None)
        kind: Kind = "AGENT" if isinstance(instance, dspy.RLM | dspy.ReAct) else "CHAIN"
        self._start(call_id, type(instance).__name__, kind, given).instance = instance

    def on_module_end(
        self, call_id: str, outputs: Any | None, exception: Exception | None = None
    ) -> None:
        if isinstance(outputs, dspy.Prediction):
            shown = {name: value for name, value in outputs.items() if name not in _IN_SPANS}
            outputs = dspy.Prediction(**shown).toDict()
        self._end(call_id, outputs, exception)

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        model = str(getattr(instance, "model", type(instance).__name__))
        given = {name: inputs[name] for name in ("prompt", "messages") if inputs.get(name)}
        call = self._start(call_id, "LM", "LLM", given)
        call.model, call.instance = model, instance
        last_usage.set(None)

    def on_lm_end(
        self, call_id: str, outputs: Any | None, exception: Exception | None = None
    ) -> None:
        call = self._calls.get(call_id)
        self._end(call_id, outputs, exception, usage=_usage(call) if call else None)

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self._start(call_id, str(getattr(instance, "name", "tool")), "TOOL", inputs)

    def on_tool_end(
        self, call_id: str, outputs: Any | None, exception: Exception | None = None
    ) -> None:
        self._end(call_id, outputs, exception)

    def on_interpreter_startup_start(
        self, call_id: str, instance: Any, inputs: dict[str, Any]
    ) -> None:
        self._start(call_id, "sandbox.start", "TOOL", {}).instance = instance

    def on_interpreter_startup_end(
        self, call_id: str, outputs: Any | None, exception: BaseException | None = None
    ) -> None:
        call = self._calls.get(call_id)
        running = call.root.started if call else []
        if call and any(call.instance is one for one in running):  # to start it again does nothing
            del self._calls[call_id]
            return
        if call and not exception:
            running.append(call.instance)
        self._end(call_id, None, exception)

    def on_interpreter_execute_start(
        self, call_id: str, instance: Any, inputs: dict[str, Any]
    ) -> None:
        self._start(call_id, "sandbox.execute", "TOOL", {"code": inputs.get("code")})

    def on_interpreter_execute_end(
        self, call_id: str, outputs: Any | None, exception: BaseException | None = None
    ) -> None:
        self._end(call_id, {"stdout": outputs}, exception)

    def on_interpreter_tool_call_start(
        self, call_id: str, instance: Any, inputs: dict[str, Any]
    ) -> None:
        given = {name: inputs.get(name) for name in ("args", "kwargs") if inputs.get(name)}
        self._start(call_id, str(inputs.get("tool_name")), "TOOL", given)

    def on_interpreter_tool_call_end(
        self, call_id: str, outputs: Any | None, exception: BaseException | None = None
    ) -> None:
        self._end(call_id, outputs, exception)

    # ---- the tree ---------------------------------------------------------------------------

    def _start(self, call_id: str, name: str, kind: Kind, inputs: Mapping[str, Any]) -> _Call:
        parent = self._calls.get(ACTIVE_CALL_ID.get() or "")
        call = _Call(name, kind, time.monotonic(), _slim(inputs), parent)
        if parent is None:
            call.run_id = _active_run()
        self._calls[call_id] = call
        return call

    def _end(
        self,
        call_id: str,
        outputs: Any,
        error: BaseException | None,
        *,
        usage: Usage | None = None,
    ) -> None:
        call = self._calls.pop(call_id, None)
        if call is None:  # it began before tracing did
            return
        slim = {} if outputs is None else _slim(outputs)
        span = Span(
            name=call.name,
            kind=call.kind,
            start_s=call.start,
            end_s=time.monotonic(),
            inputs=call.inputs,
            outputs=slim if isinstance(slim, dict) else {"result": slim},
            usage=usage,
            model=call.model,
            error=one_line(f"{type(error).__name__}: {error}") if error else None,
            children=call.children,
        )
        if isinstance(call.instance, dspy.Predict):
            span = _with_its_model_call(span)
        if call.parent is not None:
            call.parent.children.append(span)
            return
        started_ns = time.time_ns() - int((span.end_s - span.start_s) * 1e9)
        try:
            self._waiting.put_nowait(_Trace(span, started_ns, call.run_id))
        except queue.Full:
            self._say("Traces end faster than the MLflow store takes them: some are lost.")

    # ---- the writer -------------------------------------------------------------------------

    def _write(self) -> None:
        place: tuple[Any, str] | None = None
        while True:
            traces = self._next()
            try:
                place = place or self._connect()
                self._log(*place, traces)
            # Whatever the store, its client or a value does, the app goes on.
            except Exception as error:  # noqa: BLE001 - nobody else could catch it in this thread
                self._say(str(unusable(self._uri, error)))
            for _ in traces:
                self._waiting.task_done()

    def _next(self) -> list[_Trace]:
        traces = [self._waiting.get()]
        if self._waiting.qsize() < TRACES_AT_ONCE:
            self._wanted.wait(LINGER_S)
        self._wanted.clear()
        with suppress(queue.Empty):
            while len(traces) < TRACES_AT_ONCE:
                traces.append(self._waiting.get_nowait())
        return traces

    def _connect(self) -> tuple[Any, str]:
        from mlflow import MlflowClient

        from fleet_rlm.tracking.writer import find_experiment

        prepare_store(self._uri)
        client = MlflowClient(tracking_uri=self._uri)
        artifacts = artifact_root(self._uri, Path.cwd())
        return client, find_experiment(client, self._experiment, artifacts)

    def _log(self, client: Any, experiment_id: str, traces: Sequence[_Trace]) -> None:
        from fleet_rlm.tracking.traces import log_trees

        trees, of_run = [], defaultdict(list)
        for trace in traces:
            root = _cleaned(trace.root, self._clean, trace.root.start_s)
            name = f"tr-{secrets.token_hex(16)}"
            named = replace(root, attributes={_NAME_ATTRIBUTE: root.name})
            trees.append((name, trace.started_ns // 1_000_000, named))
            of_run[trace.run_id].append(name)
        log_trees(client, experiment_id, trees)
        for run_id, names in of_run.items():
            if run_id is not None:
                client.link_traces_to_run(names, run_id)

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            warnings.warn(text, FleetWarning, stacklevel=2)


def autolog(*, tracking_uri: str | None = None, experiment: str | None = None) -> Autolog:
    """Trace every DSPy call of this process in MLflow, at a fraction of its own autolog's cost.

    Shows modules, model calls with tokens and dollars, tools, and code in its sandbox with what it
    asked. Long texts are cut to their two ends, secrets taken out, and a thread writes the traces
    in batches: a store that fails is a warning, once. Call it from the thread that configures DSPy.

    Args:
        tracking_uri: the store; MLflow's own choice (`MLFLOW_TRACKING_URI`, ...) when absent.
        experiment: its name; `MLFLOW_EXPERIMENT_NAME`, else "fleet-rlm", when absent.

    Returns:
        The tracer, whose `flush` waits for what is not written yet, and `disable` ends it.
    """
    import mlflow

    tracer = Autolog(
        tracking_uri or mlflow.get_tracking_uri(),
        experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT,
    )
    dspy.settings.configure(callbacks=[*dspy.settings.callbacks, tracer])
    return tracer


def _slim(value: Any) -> Any:
    """Plain data with its texts cut."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return cut(value, MAX_CHARS)
    if isinstance(value, Mapping):
        return {
            str(key): _slim(item) for key, item in list(value.items())[:MAX_ITEMS]
            if key != "signature"
        }  # fmt: skip
    if isinstance(value, list | tuple):
        return [_slim(item) for item in value[:MAX_ITEMS]]
    return cut(str(value), MAX_CHARS)


def _with_its_model_call(span: Span) -> Span:
    """A `dspy.Predict` that asked its model once, as one span: an RLM has a sixth less to write."""
    if len(span.children) != 1 or span.error or span.children[0].kind != "LLM":
        return span
    (asked,) = span.children
    if asked.error or asked.inputs.keys() & span.inputs.keys() or "completion" in span.outputs:
        return span
    return replace(
        span,
        kind="LLM",
        inputs={**span.inputs, **asked.inputs},
        outputs={**span.outputs, "completion": asked.outputs.get("result")},
        usage=asked.usage,
        model=asked.model,
        children=(),
    )


def _usage(call: _Call) -> Usage | None:
    """Tokens and dollars of a model call, as it was booked or from its model's history."""
    if isinstance(call.instance, MeteredLM):
        return last_usage.get()
    messages = call.inputs
    for entry in reversed(getattr(call.instance, "history", [])[-_RECENT:]):
        if _slim({k: entry[k] for k in ("prompt", "messages") if entry.get(k)}) != messages:
            continue
        spent = entry.get("usage") or {}
        return Usage(
            calls=1,
            input_tokens=int(spent.get("prompt_tokens") or spent.get("input_tokens") or 0),
            output_tokens=int(spent.get("completion_tokens") or spent.get("output_tokens") or 0),
            usd=float(entry.get("cost") or 0.0),
        )
    return None


def _active_run() -> str | None:
    import mlflow

    run = mlflow.active_run()
    return str(run.info.run_id) if run else None


def _cleaned(span: Span, clean: Callable[[str], str], shift: float) -> Span:
    return replace(
        span,
        start_s=span.start_s - shift,
        end_s=span.end_s - shift,
        inputs=_each(span.inputs, clean),
        outputs=_each(span.outputs, clean),
        error=clean(span.error) if span.error else None,
        children=[_cleaned(child, clean, shift) for child in span.children],
    )


def _each(value: Any, clean: Callable[[str], str]) -> Any:
    """Plain data with each of its texts cleaned."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {key: _each(item, clean) for key, item in value.items()}
    return [_each(item, clean) for item in value] if isinstance(value, list) else value
