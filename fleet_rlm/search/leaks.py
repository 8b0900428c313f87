"""Whether a candidate for a prompt carries text or answers of samples that judge it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fleet_rlm.suites.sample import Sample

SHORTEST_LINE = 40
"""Characters from which a line that a prompt and a context share is no chance."""

SHORTEST_GOLD = 4
"""Characters from which an answer in an instruction is no chance."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a job has seen where it may learn, and where it may not."""

    open_texts: tuple[str, ...]
    """Contexts and queries of training samples, and the program's own prompts."""

    closed_texts: tuple[str, ...]
    """Contexts and queries of validation and test."""

    closed_gold: tuple[str, ...]
    """Their answers, those left out that training texts hold as well."""


def know(train: Iterable[Sample], closed: Iterable[Sample], own: Iterable[str]) -> Known:
    """Sort the texts of samples by whether a prompt may hold them.

    Args:
        train: samples to learn from.
        closed: samples of validation and test.
        own: texts of the program before it is compiled.
    """
    open_texts = (*_texts(train), *own)
    closed = list(closed)
    gold = {
        answer
        for sample in closed
        for answer in map(str, getattr(sample.question, "gold", ()))
        if len(answer) >= SHORTEST_GOLD and not any(answer in text for text in open_texts)
    }
    return Known(open_texts, tuple(_texts(closed)), tuple(sorted(gold)))


def find_leak(texts: Sequence[str], known: Known, *, check_gold: bool) -> str | None:
    """The first thing in these texts that they must not hold, in words; None for clean ones.

    A line counts that a validation or test context holds too and no training text does.

    Args:
        texts: of one candidate.
        known: from `know`.
        check_gold: whether an answer alone is a leak; a worked example has answers of its own.
    """
    lines = {
        line.strip() for text in texts for line in text.splitlines() if len(line) >= SHORTEST_LINE
    }
    for line in sorted(line for line in lines if len(line) >= SHORTEST_LINE):
        if any(line in text for text in known.closed_texts) and not any(
            line in text for text in known.open_texts
        ):
            return "a line of a validation or test context"
    if check_gold:
        whole = "\n".join(texts)
        for answer in known.closed_gold:
            if re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", whole):
                return "an answer of a validation or test sample"
    return None


def _texts(samples: Iterable[Sample]) -> list[str]:
    samples = list(samples)
    contexts = {sample.cluster: sample.context for sample in samples}
    return [*contexts.values(), *(sample.query for sample in samples)]
