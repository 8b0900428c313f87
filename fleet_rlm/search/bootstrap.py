"""Worked examples from a program's own successes (DSPy's BootstrapFewShot)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import dspy

from fleet_rlm.errors import ProgramError, boundary
from fleet_rlm.ledger import Ledger
from fleet_rlm.runner.attempt import Bench, bench_context, headline_score
from fleet_rlm.search.recipe import Recipe
from fleet_rlm.suites.plan import PlannedSample


def bootstrap(
    bench: Bench,
    samples: Sequence[PlannedSample],
    recipe: Recipe,
    ledger: Ledger,
) -> dspy.Module:
    """Run the program on training samples and keep steps of its successes as demos.

    Args:
        bench: program, models and sandbox.
        samples: to learn from, in order; it stops when it has enough.
        recipe: how many demos, and from which score on a trajectory counts as a success.
        ledger: books what this costs.

    Returns:
        A compiled copy; demos hold a preview of the context, never the whole.

    Raises:
        ProgramError: a model, the sandbox or the program failed; nothing is kept, so that the same
            command tries again.
    """
    planned = {sample.id: sample for sample in samples}

    def metric(example: dspy.Example, prediction: dspy.Prediction, _trace: Any = None) -> float:
        return headline_score(str(prediction.get("answer") or ""), planned[example.sample])

    # Raw labelled examples would be stored with their whole contexts and never shown.
    optimizer = dspy.BootstrapFewShot(
        metric=metric,
        metric_threshold=recipe.threshold,
        max_bootstrapped_demos=recipe.demos,
        max_labeled_demos=0,
        max_errors=1,  # an outage must not pass for a program that has no successes
    )
    examples = [_example(sample) for sample in samples]
    # The optimizer prints and draws bars of its own; stdout is for the result.
    with (
        boundary(ProgramError, "compiling with bootstrap"),
        bench_context(bench, ledger),
        redirect_stdout(StringIO()),
        redirect_stderr(StringIO()),
    ):
        compiled = optimizer.compile(bench.program, trainset=examples)
    # A compiled child would be frozen, and left out of the state, inside a larger program.
    compiled._compiled = False
    return compiled


def _example(planned: PlannedSample) -> dspy.Example:
    sample = planned.build()
    example = dspy.Example(context=sample.context, query=sample.query, sample=sample.id)
    return example.with_inputs("context", "query")
