"""OOLONG-Pairs' scoring: F1 of the set of user pairs, read strictly or loosely.

Source: arXiv 2512.24601, appendix D.1: pairs "(a, b)", lower id first; two empty sets are equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from fleet_rlm.scoring.graphwalks import set_f1

Pair = tuple[int, int]

_STRICT = re.compile(r"\(\s*(\d+)\s*,\s*(\d+)\s*\)")
_LOOSE = re.compile(
    r"[(\[]\s*['\"]?(\d+)['\"]?\s*,\s*['\"]?(\d+)['\"]?\s*[)\]]"  # in brackets, quoted or not
    r"|^[ \t]*['\"]?(\d+)['\"]?[ \t]*,[ \t]*['\"]?(\d+)['\"]?[ \t]*$",  # alone on a line
    re.MULTILINE,
)


def parse_strict(text: str) -> set[Pair]:
    """Every "(a, b)" of digits, lower id first."""
    return _ordered(_STRICT.findall(text))


def parse_loose(text: str) -> set[Pair]:
    """The same, also in square brackets, quoted, or alone on a line."""
    return _ordered((a or c, b or d) for a, b, c, d in _LOOSE.findall(text))


def pairs_f1(said: set[Pair], gold: set[Pair]) -> float:
    """F1 of two sets of pairs, in [0, 1]."""
    return set_f1(map(str, said), {str(pair) for pair in gold})


def _ordered(found: Iterable[tuple[str, str]]) -> set[Pair]:
    return {(min(int(a), int(b)), max(int(a), int(b))) for a, b in found}
