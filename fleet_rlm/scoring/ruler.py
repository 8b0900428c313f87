"""RULER's own scoring rule, bug for bug.

Source: NVIDIA/RULER c3f5e3b (Apache-2.0), scripts/eval: `postprocess_pred`, `string_match_all` and
`string_match_part`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x1f]")


def string_match_all(answer: str, references: Sequence[str]) -> float:
    """Share of `references` that occur anywhere in `answer`, case-insensitive, in [0, 1].

    Knows no word boundaries: "12345678" holds "1234567". The benchmark reports the mean over
    samples times 100.
    """
    text = _text(answer)
    return sum(reference.lower() in text for reference in references) / len(references)


def string_match_part(answer: str, references: Sequence[str]) -> float:
    """1 when any of `references` occurs anywhere in `answer`: the rule of RULER's qa tasks."""
    text = _text(answer)
    return float(any(reference.lower() in text for reference in references))


def _text(answer: str) -> str:
    return _CONTROL.sub("\n", answer.strip()).strip().lower()
