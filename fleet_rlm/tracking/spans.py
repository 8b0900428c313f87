"""What a trace shows of one answer: a tree of spans from its record and trajectory. No MLflow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fleet_rlm.ledger import Usage

MAX_VALUE_CHARS = 4000
"""A longer text is shown by its two ends and its length; the whole one is in the trajectory."""

Kind = Literal["AGENT", "CHAIN", "LLM", "TOOL"]
"""Span types of MLflow."""

_FAILED = re.compile(r"^\[Error\] ?(.*)", re.MULTILINE)
_CHARS = {"prompt": "prompt_chars", "reply": "reply_chars"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A part of the work, with the parts that it is made of."""

    name: str
    kind: Kind
    start_s: float
    """Seconds from the start of the trace; so is `end_s`."""

    end_s: float
    inputs: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)
    usage: Usage | None = None
    """What it spent itself; None where its parts spent it all."""

    model: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    children: Sequence[Span] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What all traces of a run share."""

    suite: str
    program: str
    models: Mapping[str, str]
    """Role -> name."""


def answer_span(about: About, record: Mapping[str, Any], trajectory: Mapping[str, Any]) -> Span:
    """The whole answer as one span; below it turns, and in them calls, sandbox, queries, children.

    Args:
        about: the run.
        record: of the sample and epoch, as stored.
        trajectory: as stored; steps of older runs may lack times, usage and queries.
    """
    steps = list(_steps(trajectory.get("steps") or (), 0.0, about, 0))
    end_s = max([float(record.get("seconds") or 0.0), *(step.end_s for step in steps)])
    usage = {role: Usage.from_json(spent) for role, spent in (record.get("usage") or {}).items()}
    total = sum(usage.values(), Usage())
    in_steps = [Usage.from_json(step.get("usage") or {}) for step in trajectory.get("steps") or ()]
    judged = usage.get("judge", Usage())
    rest = total - judged - sum(in_steps, Usage())
    begun = steps[-1].end_s if steps else 0.0
    if rest.calls > 0 or (rest.input_tokens > 0 and not steps):
        name = "extract" if steps else "answer"
        told = {"reasoning": cut(trajectory.get("reasoning") or "")}
        steps.append(_call(name, begun, end_s, about.models.get("root"), rest, outputs=told))
    if judged.calls:
        steps.append(_call("judge", end_s, end_s, about.models.get("judge"), judged))
    error = record.get("error") or {}
    return Span(
        name=about.program,
        kind="AGENT",
        start_s=0.0,
        end_s=end_s,
        inputs={"query": cut(trajectory.get("query") or ""), "context": _reference(about, record)},
        outputs={"answer": cut(trajectory.get("answer") or ""), "stop": record.get("stop")},
        attributes={
            **{name: record.get(name) for name in ("sample", "epoch", "task", "length", "turns")},
            **_told(total),
            "by_role": {role: _told(spent) for role, spent in usage.items()},
        },
        error=": ".join(str(error[key]) for key in ("boundary", "type", "message") if key in error),
        children=steps,
    )


def cut(text: str, limit: int = MAX_VALUE_CHARS) -> str:
    """A text, or the two ends of a long one around its length."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… ({len(text):,} characters in all) …\n{text[-half:]}"


def _reference(about: About, record: Mapping[str, Any]) -> dict[str, Any]:
    """The context by name: its text is the suite's, and is never copied."""
    named = {"suite": about.suite, "context": record.get("cluster")}
    return named | {"tokens": record.get("tokens")}


def _steps(
    steps: Sequence[Mapping[str, Any]], start_s: float, about: About, depth: int
) -> Iterator[Span]:
    for number, step in enumerate(steps, 1):
        turn = _turn(f"turn {number}", step, start_s, about, depth)
        yield turn
        start_s = turn.end_s


def _turn(name: str, step: Mapping[str, Any], start_s: float, about: About, depth: int) -> Span:
    spent = Usage.from_json(step.get("usage") or {})
    end_s = start_s + float(step.get("seconds") or 0.0)
    if "code" not in step:  # a step of another program: whatever it calls its own
        own = {key: _short(value) for key, value in step.items() if key not in ("usage", "seconds")}
        return Span(name=name, kind="CHAIN", start_s=start_s, end_s=end_s, outputs=own, usage=spent)
    queries = [_query(query, start_s, about, depth) for query in step.get("queries") or ()]
    asked = sum((Usage.from_json(q.get("usage") or {}) for q in step.get("queries") or ()), Usage())
    output, code = str(step.get("output") or ""), str(step.get("code") or "")
    thought_s = start_s + float(step.get("think_s") or 0.0)
    opened_s = thought_s + float(step.get("start_s") or 0.0)
    model = about.models.get("sub" if depth else "root")
    action = {"reasoning": cut(str(step.get("reasoning") or "")), "code": cut(code)}
    parts = [_call("think", start_s, thought_s, model, spent - asked, outputs=action)]
    if "start_s" in step:
        parts.append(Span(name="sandbox.start", kind="TOOL", start_s=thought_s, end_s=opened_s))
    if code:
        parts.append(
            Span(
                name="sandbox.execute",
                kind="TOOL",
                start_s=opened_s,
                end_s=end_s,
                inputs={"code": cut(code)},
                outputs={"stdout": cut(output)},
                error=_failure(output),
                children=queries,
            )
        )
    return Span(
        name=name,
        kind="CHAIN",
        start_s=start_s,
        end_s=end_s,
        outputs={"stdout": cut(output)},
        attributes={"depth": depth, **_told(spent)},
        error=None if code else _failure(output),
        children=parts,
    )


def _query(query: Mapping[str, Any], step_s: float, about: About, depth: int) -> Span:
    start_s = step_s + float(query.get("after_s") or 0.0)
    end_s = start_s + float(query.get("seconds") or 0.0)
    usage = Usage.from_json(query.get("usage") or {})
    error = query.get("error")
    if query["kind"] == "tool":
        return Span(
            name=query["name"],
            kind="TOOL",
            start_s=start_s,
            end_s=end_s,
            inputs={"arguments": query["arguments"]},
            outputs={"result": query["result"]},
            usage=usage if usage.calls else None,
            error=error,
        )
    if query["kind"] == "rlm":
        below = list(_steps(query.get("steps") or (), start_s, about, depth + 1))
        return Span(
            name=f"rlm_query (depth {depth + 1})",
            kind="AGENT",
            start_s=start_s,
            end_s=max([end_s, *(step.end_s for step in below)]),
            inputs={"query": cut(query["query"]), "context_chars": query["context_chars"]},
            outputs={"answer": cut(query["answer"]), "stop": query["stop"]},
            attributes={"depth": depth + 1, **_told(usage)},
            error=error,
            children=below,
        )
    lengths = {name: query[name] for name in _CHARS.values()}
    found = _call(
        "llm_query",
        start_s,
        end_s,
        about.models.get("sub"),
        usage,
        inputs={"prompt": query["prompt"]},
        outputs={"reply": query["reply"]},
        error=error,
        attributes=lengths,
    )
    return found


def _call(
    name: str, start_s: float, end_s: float, model: str | None, usage: Usage, **more: Any
) -> Span:
    return Span(
        name=name, kind="LLM", start_s=start_s, end_s=end_s, model=model, usage=usage, **more
    )


def _failure(output: str) -> str | None:
    """What the REPL said of code that failed; of a traceback the line that names the error."""
    found = _FAILED.search(output)
    if found is None:
        return None
    return cut(output.rstrip().rpartition("\n")[2] if found[1][:9] == "Traceback" else found[1])


def _told(usage: Usage) -> dict[str, float]:
    return {
        "usd": round(usage.usd, 8),
        "calls": usage.calls,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
    }


def _short(value: Any) -> Any:
    return cut(value) if isinstance(value, str) else value
