"""What dspy's optimizers score candidates with, instead of `dspy.Evaluate`.

`dspy.Evaluate` runs slow examples again after 120 s, takes a failure for a score of 0 and drops
what is finished when it gives up (stanfordnlp/dspy#9574, #8754): an optimizer would pay twice and
learn from an outage as if it were a bad prompt.
"""

from __future__ import annotations

import contextvars
import importlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from statistics import fmean
from typing import Any

import dspy
from dspy.evaluate.evaluate import EvaluationResult

from fleet_rlm.errors import BudgetExhausted, SampleError, ScorerError, one_line
from fleet_rlm.runner.attempt import own_failure

USERS = (
    "dspy.teleprompt.bettertogether",
    "dspy.teleprompt.bootstrap_trace",
    "dspy.teleprompt.mipro_optimizer_v2",
    "dspy.teleprompt.random_search",
    "dspy.teleprompt.gepa.gepa_utils",
)
"""Modules of dspy's optimizers that make an `Evaluate`."""


class Stop(BaseException):
    """Ends an optimizer. No `Exception`: MIPROv2 takes those for a candidate that scores 0.

    Args:
        reason: what `evaluating` raises instead.
    """

    def __init__(self, reason: Exception) -> None:
        self.reason = reason
        super().__init__(str(reason))


class Evaluator(dspy.Evaluate):
    """Scores a program on examples, each run exactly once, failures apart from scores.

    Args:
        concurrency: examples in flight.
        min_coverage: share of the examples that must get a score.
        arguments: those of `dspy.Evaluate`; what concerns threads, errors and display is ours.
    """

    def __init__(
        self, *, concurrency: int = 8, min_coverage: float = 0.8, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self._concurrency, self._min_coverage = concurrency, min_coverage

    def __call__(
        self,
        program: dspy.Module,
        metric: Callable[..., Any] | None = None,
        devset: Sequence[dspy.Example] | None = None,
        **_: Any,
    ) -> EvaluationResult:
        """Score the program.

        Returns:
            The mean over the examples that got a score, in percent as dspy has it, and every
            example with its prediction and score; one that failed has an empty prediction and
            `failure_score`, and counts for nothing in the mean.

        Raises:
            Stop: too few examples got a score, the metric is broken, or the run's money is spent.
        """
        examples = list(self.devset if devset is None else devset)
        judge = metric or self.metric
        found = self._run(program, judge, examples)
        scores = [score for score, _, error in found if error is None]
        failures = [error for _, _, error in found if error is not None]
        if len(scores) < max(1.0, self._min_coverage * len(examples)):
            first = failures[0]
            message = f"{type(first).__name__}: {one_line(str(first), 200)}"
            owner = type(first if isinstance(first, SampleError) else own_failure(first))
            raise Stop(
                owner(
                    f"{len(failures)} of {len(examples)} examples failed, which is no evidence"
                    f" against a candidate. The first: {message}"
                )
            ) from first
        return EvaluationResult(
            score=round(100 * fmean(float(score) for score in scores), 2),
            results=[
                (example, prediction, self.failure_score if error else score)
                for example, (score, prediction, error) in zip(examples, found, strict=True)
            ],
        )

    def _run(
        self, program: dspy.Module, metric: Callable[..., Any], examples: Sequence[dspy.Example]
    ) -> list[tuple[Any, dspy.Prediction, Exception | None]]:
        def one(example: dspy.Example) -> tuple[Any, dspy.Prediction, Exception | None]:
            try:
                prediction = program(**example.inputs())
            except BudgetExhausted as error:
                raise Stop(error) from error
            except Exception as error:  # noqa: BLE001 - kept apart from the scores
                return None, dspy.Prediction(), error
            try:
                return metric(example, prediction), prediction, None
            except BudgetExhausted as error:
                raise Stop(error) from error
            except dspy.LMError as error:  # a judge's service
                return None, prediction, error
            except Exception as error:
                # A bug, which no other example mends: left out of the mean, it would go unseen.
                message = f"the metric: {type(error).__name__}: {one_line(str(error), 200)}"
                raise Stop(ScorerError(message)) from error

        pool = ThreadPoolExecutor(min(self._concurrency, max(1, len(examples))), "fleet-example")
        try:
            # A context each: the caller's models, ledger and trace go with every example.
            running: list[Future[Any]] = [
                pool.submit(contextvars.copy_context().run, one, example) for example in examples
            ]
            wait(running, return_when=FIRST_EXCEPTION)
            return [future.result() for future in running]
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def evaluating(*, concurrency: int = 8, min_coverage: float = 0.8) -> Iterator[None]:
    """Let every optimizer of dspy that runs in the block score its candidates with `Evaluator`.

    It holds for the whole process: one compilation at a time.

    Args:
        concurrency: examples in flight.
        min_coverage: share of the examples of one evaluation that must get a score.

    Raises:
        SampleError: too few examples of an evaluation got a score: `ProviderError`, `SandboxError`
            or `ProgramError` by what failed first.
        ScorerError: the metric raised.
        BudgetExhausted: the run's money is spent.
    """
    ours = partial(Evaluator, concurrency=concurrency, min_coverage=min_coverage)
    users = [importlib.import_module(name) for name in USERS]
    stock = [user.Evaluate for user in users]
    for user in users:
        user.Evaluate = ours  # type: ignore[attr-defined]
    try:
        yield
    except Stop as stop:
        raise stop.reason from stop
    finally:
        for user, evaluate in zip(users, stock, strict=True):
            user.Evaluate = evaluate  # type: ignore[attr-defined]
