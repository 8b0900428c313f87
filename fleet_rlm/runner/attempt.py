"""One attempt at one sample: build it, ask the program, score the answer, and say what happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import dspy
from dspy.primitives.code_interpreter import CodeInterpreter, CodeInterpreterError
from dspy.utils.exceptions import AdapterParseError, ContextWindowExceededError

from fleet_rlm.errors import (
    DataError,
    LimitReached,
    ProgramError,
    ProviderError,
    SampleError,
    SandboxError,
    ScorerError,
    boundary,
    one_line,
)
from fleet_rlm.ledger import Ledger, Limits
from fleet_rlm.lm.metered import LEDGER_SETTING, MeteredLM
from fleet_rlm.program.queries import SUB_LM_SETTING
from fleet_rlm.runner.record import ErrorInfo, Record, Status
from fleet_rlm.sandbox.redact import Redactor
from fleet_rlm.scoring import blind_scores, score
from fleet_rlm.suites.plan import PlannedSample
from fleet_rlm.suites.sample import Sample
from fleet_rlm.suites.seal import withheld

ANSWER_CHARS = 500

MISCONFIGURED = (
    dspy.LMAuthError,
    dspy.LMConfigurationError,
    dspy.LMUnsupportedModelError,
    dspy.LMBillingError,
)
"""Provider errors that every further sample would meet as well."""


class Job(NamedTuple):
    """One owed sample and epoch."""

    planned: PlannedSample
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one attempt gives the writer."""

    record: Record
    trajectory: dict[str, Any]
    misconfigured: str | None = None
    """Set when the model's service refused the configuration: the run should stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What every attempt of a run shares."""

    program: dspy.Module
    root: MeteredLM
    sub: MeteredLM
    limits: Limits
    redactor: Redactor
    interpreter_factory: Callable[[], CodeInterpreter] | None
    """None for programs that run no code."""


class Reply(NamedTuple):
    """What a program gave for one set of inputs."""

    answer: str
    stop: str
    """"submitted", "answered", or why it ended before that."""

    steps: list[dict[str, Any]]
    """Turns with the REPL: reasoning, code, output."""

    reasoning: str


def attempt(job: Job, bench: Bench) -> Outcome:
    """Run one sample once.

    Never raises for a failing sample: failures of data, model, sandbox, program and scorer become a
    typed error on the record. A limit is a result: what the program has by then is scored.
    """
    ledger = Ledger(bench.limits)
    planned = job.planned
    reply = Reply("", "error", [], "")
    scores: dict[str, Any] = {}
    failure: SampleError | None = None
    sample: Sample | None = None
    try:
        with boundary(DataError, f"building sample {planned.id}"):
            sample = planned.build()
        reply = ask(bench, {"context": sample.context, "query": sample.query}, ledger)
        scores = _score(planned, sample, reply.answer)
    except SampleError as error:
        failure = error
        # Steps that were paid for are kept, though the sample has no score.
        reply = reply._replace(steps=getattr(error.__cause__, "trajectory", reply.steps))
    clean = withheld if planned.is_sealed else bench.redactor.clean
    record = Record(
        sample=planned.id,
        epoch=job.epoch,
        task=planned.task,
        cluster=planned.cluster,
        length=planned.length,
        status=_status(failure, reply.stop),
        stop="error" if failure else reply.stop,
        answer=None if failure else clean(reply.answer)[:ANSWER_CHARS],
        tokens=sample.tokens if sample else 0,
        turns=len(reply.steps),
        seconds=round(ledger.seconds, 3),
        usage={role: usage.to_json() for role, usage in ledger.by_role.items()},
        error=_info(failure, clean) if failure else None,
        **scores,
    )
    cause = failure.__cause__ if failure else None
    return Outcome(
        record=record,
        trajectory={
            "sample": planned.id,
            "epoch": job.epoch,
            "query": clean(sample.query) if sample else None,
            "answer": clean(reply.answer),
            "stop": record.stop,
            "reasoning": clean(reply.reasoning),
            "steps": [
                {name: clean(str(text)) for name, text in step.items()} for step in reply.steps
            ],
        },
        misconfigured=clean(one_line(str(cause))) if isinstance(cause, MISCONFIGURED) else None,
    )


def ask(bench: Bench, inputs: Mapping[str, Any], ledger: Ledger) -> Reply:
    """Call the program once, its spending booked and limited by `ledger`.

    Raises:
        SampleError: the model's service, the sandbox or the program failed; limits do not raise.
    """
    with bench_context(bench, ledger):
        try:
            found = bench.program(**inputs)
        except Exception as error:  # noqa: BLE001 - the one place where a program's failure is captured
            return _reply_after(error)
    return Reply(
        answer="" if (answer := found.get("answer")) is None else str(answer),
        stop=str(found.get("stop") or "answered"),
        steps=list(found.get("trajectory") or []),
        reasoning=str(found.get("final_reasoning") or found.get("reasoning") or ""),
    )


def _reply_after(error: Exception) -> Reply:
    """The reply that a failure still leaves, else the failure's owner.

    Raises:
        SampleError: the sample has no score.
    """
    if isinstance(error, LimitReached):
        return Reply("", error.kind, [], "")
    if isinstance(error, ContextWindowExceededError):
        return Reply("", "context", [], "")
    if isinstance(error, AdapterParseError):
        return Reply(str(error.lm_response or ""), "malformed", [], "")
    if isinstance(error, SampleError):
        raise error
    owner: type[SampleError] = ProgramError
    if isinstance(error, dspy.LMError):
        owner = ProviderError
    elif isinstance(error, CodeInterpreterError):
        owner = SandboxError
    raise owner(f"{type(error).__name__}: {error}") from error


@contextmanager
def bench_context(bench: Bench, ledger: Ledger) -> Iterator[None]:
    """DSPy's settings for one call: models, sandbox, and the ledger that books and limits it."""
    shared: dict[str, Any] = {LEDGER_SETTING: ledger, SUB_LM_SETTING: bench.sub}
    if bench.interpreter_factory is not None:
        shared["interpreter_factory"] = bench.interpreter_factory
    # A global trace would keep every prompt of every sample alive; optimizers open their own.
    with dspy.context(lm=bench.root, trace=[], **shared):
        yield


def headline_score(answer: str, planned: PlannedSample) -> float:
    """The record's score of an answer, in [0, 1].

    Raises:
        ScorerError: the rule failed.
    """
    found = score(answer, planned.build().question, task_rule=planned.rule)
    return found.official if planned.headline == "official" else found.robust


def _score(planned: PlannedSample, sample: Sample, answer: str) -> dict[str, Any]:
    with boundary(ScorerError, f"scoring sample {sample.id}"):
        found = score(answer, sample.question, task_rule=planned.rule)
        blind = blind_scores(sample.question, task_rule=planned.rule)
    return {
        "score": found.official if planned.headline == "official" else found.robust,
        "official": found.official,
        "robust": found.robust,
        "blind": blind,
        "feedback": found.feedback,
    }


def _status(failure: SampleError | None, stop: str) -> Status:
    if failure:
        return "error"
    return "scored" if stop in {"submitted", "answered", "malformed"} else "limit"


def _info(failure: SampleError, clean: Callable[[str], str]) -> ErrorInfo:
    cause = failure.__cause__ or failure
    return ErrorInfo(
        boundary=failure.boundary, type=type(cause).__name__, message=clean(failure.message)
    )
