"""Where an answer was lost, in words that a model can learn from and that hold no gold answer."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fleet_rlm.program.context_ref import shorten
from fleet_rlm.runner.record import Record, total_usage
from fleet_rlm.suites.sample import Sample

EXAMPLES = 6
"""Answers that one reflection sees."""

STEP_CHARS = 700
"""Characters of a step's code and of its output that a reflection sees."""

GUESSABLE = 3
"""Characters up to which a gold answer is found in a text by chance."""


def reflective_examples(
    records: Sequence[Record],
    steps_of: Mapping[str, Sequence[Mapping[str, Any]]],
    samples: Mapping[str, Sample],
    *,
    seed: str,
) -> list[dict[str, Any]]:
    """Failed answers, as many tasks as there are among them, and one or two that are right.

    Args:
        records: of one pass over training samples.
        steps_of: sample -> steps of its trajectory.
        samples: by id, for queries and gold answers.
        seed: of the choice.

    Returns:
        What GEPA's proposers take; empty when every answer is right.
    """
    rng = random.Random(seed)
    scored = [record for record in records if record.score is not None]
    failed = [record for record in scored if record.score < 1]  # type: ignore[operator]
    right = [record for record in scored if record.score == 1]
    rng.shuffle(failed)
    rng.shuffle(right)
    by_task: dict[str, int] = {}
    order = []
    for record in failed:
        turn = by_task[record.task] = by_task.get(record.task, -1) + 1
        order.append((turn, record))
    worst = [record for _, record in sorted(order, key=lambda pair: pair[0])]
    if not worst:
        return []
    chosen = [*worst[: EXAMPLES - 1], *right]
    return [
        _example(record, steps_of[record.sample], samples[record.sample])
        for record in chosen[:EXAMPLES]
    ]


def explain(record: Record, steps: Sequence[Mapping[str, Any]], sample: Sample) -> str:
    """Score, objectives and where the answer was lost.

    Never read: no code used the context. Misread: the answer never came up. Lost afterwards: it
    came up and was not submitted. Wrong form: it was submitted among other words. What is told of
    short answers, which come up by chance, is the scorer's own feedback only.
    """
    if record.score == 1:
        return "Correct."
    parts = [f"Score {record.score:.2f} of 1."] if record.score is not None else []
    if record.feedback:
        parts.append(f"{record.feedback}.")
    if record.status == "limit":
        parts.append(f"It ran into a limit ({record.stop}) before it submitted.")
    parts += _where(record, steps, sample)
    spent = total_usage(record.usage)
    parts.append(f"({record.turns} turns, {spent.calls} model calls, ${spent.usd:.4f})")
    return " ".join(parts)


def _where(record: Record, steps: Sequence[Mapping[str, Any]], sample: Sample) -> Iterator[str]:
    errors = sum("[Error]" in str(step.get("output", "")) for step in steps)
    if errors:
        yield f"{errors} of {len(steps)} steps ended in an error."
    gold = [str(answer) for answer in getattr(sample.question, "gold", ())]
    if not gold or any(len(answer) <= GUESSABLE for answer in gold):
        return
    seen = "\n".join(_seen(steps))
    if _holds(record.answer or "", gold):
        yield "Wrong form: the value was submitted among other words."
    elif _holds(seen, gold):
        yield "The answer came up in the steps and was lost afterwards."
    elif steps and not any("context" in str(step.get("code", "")) for step in steps):
        yield "Never read: no code used the context."
    elif steps:
        yield "Misread: what was wanted never came up in any output."


def _holds(text: str, gold: Sequence[str]) -> bool:
    return all(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.I) for answer in gold)


def _seen(steps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for step in steps:
        yield str(step.get("output") or step.get("observation") or "")
        for query in step.get("queries") or ():
            yield str(query.get("reply") or query.get("answer") or "")


def _example(record: Record, steps: Sequence[Mapping[str, Any]], sample: Sample) -> dict[str, Any]:
    shown = [
        {
            name: shorten(str(value), STEP_CHARS)
            for name, value in step.items()
            if isinstance(value, str) and value
        }
        for step in steps
    ]
    return {
        "Inputs": {"query": sample.query, "context_tokens": sample.tokens},
        "Generated Outputs": {"steps": shown, "answer": record.answer},
        "Feedback": explain(record, steps, sample),
    }
