"""One attempt at one sample: build it, ask the program, score the answer, and say what happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import dspy
from dspy.primitives.code_interpreter import CodeInterpreter, CodeInterpreterError
from dspy.utils.exceptions import AdapterParseError, ContextWindowExceededError

from fleet_rlm.errors import (
    BudgetExhausted,
    DataError,
    LimitReached,
    ProgramError,
    ProviderError,
    SampleError,
    SandboxError,
    SandboxUnavailable,
    ScorerError,
    boundary,
    one_line,
)
from fleet_rlm.ledger import Ledger, Limits, Purse
from fleet_rlm.lm.adapter import LeanChatAdapter
from fleet_rlm.lm.cancel import CANCEL_SETTING, Cancelled, CancelScope
from fleet_rlm.lm.metered import LEDGER_SETTING, MeteredLM
from fleet_rlm.program.queries import SUB_LM_SETTING
from fleet_rlm.runner.record import LIMIT_NAMES, ErrorInfo, Key, Record, Status
from fleet_rlm.runner.recursion import measure
from fleet_rlm.runner.sandboxes import CONTEXT_SETTING, TAGS_SETTING
from fleet_rlm.sandbox.redact import Redactor
from fleet_rlm.scoring import blind_scores, is_judged, score
from fleet_rlm.scoring.judge import Judge
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


Abandoned = Literal["cancelled", "budget", "misconfigured", "no-sandbox"]


class Job(NamedTuple):
    """One owed sample and epoch."""

    planned: PlannedSample
    epoch: int

    @property
    def key(self) -> Key:
        """What its record is stored under."""
        return Key(self.planned.id, self.epoch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one attempt gives the writer: a record, or why there is none and the sample is owed."""

    key: Key
    record: Record | None = None
    trajectory: Mapping[str, Any] | None = None
    usage: Mapping[str, Mapping[str, float]]
    """What was spent, by role; also without a record."""

    abandoned: Abandoned | Literal[""] = ""
    """Why there is no record."""

    why: str = ""
    """The message that goes with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What every attempt of a run shares."""

    program: dspy.Module
    root: MeteredLM
    sub: MeteredLM
    limits: Limits
    redactor: Redactor
    purse: Purse | None = None
    """What the whole run may spend."""

    interpreter_factory: Callable[[], CodeInterpreter] | None
    """None for programs that run no code."""

    contexts: Mapping[str, str] = field(default_factory=dict)
    """Cluster -> digest of a context that Modal holds already."""

    judge: MeteredLM | None = None
    """Gives the official score of judged tasks."""


class Reply(NamedTuple):
    """What a program gave for one set of inputs."""

    answer: str
    stop: str
    """"submitted", "answered", or why it ended before that."""

    steps: list[dict[str, Any]]
    """Turns with the REPL, as `trail.Step`; what another program calls its trajectory."""

    reasoning: str


class Attempt:
    """One attempt at one sample. `run` in one thread; everything else from any thread."""

    def __init__(self, job: Job, bench: Bench) -> None:
        self.job = job
        self.ledger = Ledger(bench.limits, purse=bench.purse)
        self._bench = bench
        self._scope = CancelScope()
        self._timed_out = ""
        self._sample: Sample | None = None

    def run(self) -> Outcome:
        """Build the sample, ask the program, score the answer.

        Never raises for a failing sample: failures of data, model, sandbox, program and scorer
        become a typed error on the record. A limit is a result: what the program has by then is
        scored. Without a record are attempts that were cancelled or that met a cap of the run, and
        those whose model or sandbox refuses what every further sample would ask for as well.
        """
        try:
            return self._run()
        except Cancelled:
            if self._timed_out:
                return self._outcome(Reply("", self._timed_out, [], ""))
            return self._abandoned("cancelled", "")
        except BudgetExhausted as error:
            return self._abandoned("budget", str(error))
        except SandboxUnavailable as error:
            return self._abandoned("no-sandbox", error.message)

    def cancel(self) -> None:
        """Cut it off: its model calls end, its code is interrupted, it has no record."""
        self._scope.cancel()

    def time_out(self) -> None:
        """Cut it off because it does not heed its time limit; that is a result."""
        limits = self._bench.limits
        wall = limits.wall_s is not None and self.ledger.seconds >= limits.wall_s
        self._timed_out = "wall" if wall else "working"
        self._scope.cancel()

    def give_up(self) -> Outcome:
        """The outcome of a program that does not even end when it is cut off."""
        return self._outcome(Reply("", self._timed_out or "working", [], ""))

    @property
    def over_s(self) -> float:
        """Seconds past the sample's time limit; negative before it."""
        limits = self._bench.limits
        over = [-1.0]
        if limits.wall_s is not None:
            over.append(self.ledger.seconds - limits.wall_s)
        if limits.working_s is not None:
            over.append(self.ledger.working_s - limits.working_s)
        return max(over)

    def _run(self) -> Outcome:
        planned = self.job.planned
        reply = Reply("", "error", [], "")
        try:
            with boundary(DataError, f"building sample {planned.id}"):
                self._sample = planned.build()
            # A long text takes seconds to write; the program has its whole time all the same.
            self.ledger.restart()
            inputs = {"context": self._sample.context, "query": self._sample.query}
            with dspy.context(**{CANCEL_SETTING: self._scope, **self._place}):
                reply = ask(self._bench, inputs, self.ledger)
            return self._outcome(reply)
        except SampleError as error:
            if isinstance(error.__cause__, MISCONFIGURED):
                return self._abandoned("misconfigured", one_line(str(error.__cause__)))
            # Steps that were paid for are kept, though the sample has no score.
            steps = getattr(error.__cause__, "trajectory", reply.steps)
            return self._outcome(reply._replace(steps=steps), error)

    def _outcome(self, reply: Reply, failure: SampleError | None = None) -> Outcome:
        planned, sample = self.job.planned, self._sample
        clean, clean_data = self._cleaners
        scores: dict[str, Any] = {}
        if failure is None and sample is None:
            failure = DataError(f"building sample {planned.id} took longer than the time limit")
        elif failure is None and sample is not None:
            try:
                scores = score_answer(planned, sample, reply.answer, self._judge(planned))
            except SampleError as error:
                failure = error
        record = Record(
            sample=planned.id,
            epoch=self.job.epoch,
            task=planned.task,
            cluster=planned.cluster,
            length=planned.length,
            status=status_of(failure, reply.stop),
            stop="error" if failure else reply.stop,
            answer=None if failure else clean(reply.answer)[:ANSWER_CHARS],
            tokens=sample.tokens if sample else 0,
            turns=len(reply.steps),
            seconds=round(self.ledger.seconds, 3),
            working_s=round(self.ledger.working_s, 3),
            usage=self._usage(),
            recursion=self._recursion(reply),
            limit=None if failure else self._met_limit(reply.stop),
            error=error_info(failure, clean) if failure else None,
            **scores,
        )
        return Outcome(
            key=self.job.key,
            record=record,
            usage=record.usage,
            trajectory={
                "sample": planned.id,
                "epoch": self.job.epoch,
                "query": clean(sample.query) if sample else None,
                "answer": clean(reply.answer),
                "stop": reply.stop,
                "reasoning": clean(reply.reasoning),
                "steps": clean_data(reply.steps),
            },
        )

    def _recursion(self, reply: Reply) -> dict[str, int] | None:
        found = measure(reply.steps, len(self._sample.context) if self._sample else 0)
        return None if found is None else found.to_json()

    def _abandoned(self, abandoned: Abandoned, why: str) -> Outcome:
        clean, _ = self._cleaners
        return Outcome(key=self.job.key, usage=self._usage(), abandoned=abandoned, why=clean(why))

    @property
    def _cleaners(self) -> tuple[Callable[[str], str], Callable[[Any], Any]]:
        """What every text and all data pass before they are stored."""
        if self.job.planned.is_sealed:
            return withheld, withheld
        return self._bench.redactor.clean, self._bench.redactor.clean_data

    @property
    def _place(self) -> dict[str, Any]:
        """DSPy settings that say what a sandbox of this attempt is for, and what it mounts."""
        planned, epoch = self.job
        tags = {"task": planned.task, "sample": planned.id, "attempt": str(epoch)}
        return {
            TAGS_SETTING: tags,
            CONTEXT_SETTING: self._bench.contexts.get(planned.cluster),
        }

    def _judge(self, planned: PlannedSample) -> Judge | None:
        model = self._bench.judge
        return make_judge(model, self.ledger) if model and is_judged(planned.rule) else None

    def _met_limit(self, stop: str) -> float | None:
        """The sample's limit behind a `stop`; a program may have limits of its own."""
        limits, spent = self._bench.limits, self.ledger.total
        used = {
            "working": self.ledger.working_s,
            "wall": self.ledger.seconds,
            "tokens": spent.tokens,
            "usd": spent.usd,
        }
        limit: float | None = getattr(limits, LIMIT_NAMES[stop]) if stop in used else None
        return limit if limit is not None and used[stop] >= limit else None

    def _usage(self) -> dict[str, dict[str, float]]:
        return {role: usage.to_json() for role, usage in self.ledger.by_role.items()}


def ask(bench: Bench, inputs: Mapping[str, Any], ledger: Ledger) -> Reply:
    """Call the program once, its spending booked and limited by `ledger`.

    Raises:
        SampleError: the model's service, the sandbox or the program failed; limits do not raise.
        SandboxUnavailable: no sandbox can be had for any sample.
        BudgetExhausted: a cap of the run is met.
        Cancelled: the caller's scope was cancelled.
    """
    with bench_context(bench, ledger):
        try:
            found = bench.program(**inputs)
        except BudgetExhausted:
            raise
        except Exception as error:  # noqa: BLE001 - the one place where a program's failure is captured
            return _reply_after(error)
    return Reply(
        answer="" if (answer := found.get("answer")) is None else str(answer),
        stop=str(found.get("stop") or "answered"),
        steps=list(found.get("trail") or found.get("trajectory") or []),
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
    if isinstance(error, SampleError | SandboxUnavailable):
        raise error
    raise own_failure(error) from error


def own_failure(error: Exception) -> SampleError:
    """A program's failure as an error of this package, which says who owns it."""
    owner: type[SampleError] = ProgramError
    if isinstance(error, dspy.LMError):
        owner = ProviderError
    elif isinstance(error, CodeInterpreterError):
        owner = SandboxError
    return owner(f"{type(error).__name__}: {error}")


@contextmanager
def bench_context(bench: Bench, ledger: Ledger) -> Iterator[None]:
    """DSPy's settings for one call: models, sandbox, and the ledger that books and limits it."""
    shared: dict[str, Any] = {LEDGER_SETTING: ledger, SUB_LM_SETTING: bench.sub}
    if bench.interpreter_factory is not None:
        shared["interpreter_factory"] = bench.interpreter_factory
    if dspy.settings.adapter is None:
        shared["adapter"] = LeanChatAdapter()
    # A global trace would keep every prompt of every sample alive; optimizers open their own.
    with dspy.context(lm=bench.root, trace=[], **shared):
        yield


def make_judge(model: MeteredLM, ledger: Ledger) -> Judge:
    """A judge whose spending `ledger` books, past the sample's limits too.

    What is judged is paid for already, and without a verdict it has no score.
    """

    def ask(prompt: str) -> str:
        with dspy.context(trace=[], **{LEDGER_SETTING: ledger}), ledger.grace():
            (reply,) = model(prompt)
        return reply if isinstance(reply, str) else str(reply.get("text") or "")

    return Judge(model.model, ask)


def score_answer(
    planned: PlannedSample, sample: Sample, answer: str, judge: Judge | None = None
) -> dict[str, Any]:
    """The fields of a record that tell how good an answer is.

    Raises:
        ScorerError: the rule failed.
    """
    with boundary(ScorerError, f"scoring sample {sample.id}"):
        found = score(answer, sample.question, task_rule=planned.rule, judge=judge)
        blind = blind_scores(sample.question, task_rule=planned.rule)
    return {
        "score": found.official if planned.headline == "official" else found.robust,
        "official": found.official,
        "robust": found.robust,
        "blind": blind,
        "feedback": found.feedback,
        "expected": None if planned.is_sealed else shown_gold(sample.question.gold),
    }


def shown_gold(gold: Sequence[str]) -> str:
    """A gold answer as one text, cut."""
    return ", ".join(gold)[:ANSWER_CHARS]


def status_of(failure: SampleError | None, stop: str) -> Status:
    """How a record counts that ended so."""
    if failure:
        return "error"
    return "scored" if stop in {"submitted", "answered", "malformed"} else "limit"


def error_info(failure: SampleError, clean: Callable[[str], str] = str) -> ErrorInfo:
    """What a record tells of a failure."""
    cause = failure.__cause__ or failure
    return ErrorInfo(
        boundary=failure.boundary, type=type(cause).__name__, message=clean(failure.message)
    )
