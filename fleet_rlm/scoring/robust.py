"""Our own scoring rules: tolerant of form, strict on content.

All of them read the answer after NFKC, case-folding and without markdown marks; a value counts only
as a whole token; an answer that names two values when one is asked names none; an empty answer
scores 0.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable
from typing import NamedTuple


class Judged(NamedTuple):
    """A score in [0, 1], and in words where the rest was lost ("" at 1)."""

    score: float
    feedback: str = ""


RIGHT = Judged(1.0)

_MARKDOWN = re.compile(r"\*+|`+|__+|^[#>\s]+", re.MULTILINE)
_MARKER = re.compile(r"(?:answer|label)\s*(?:is)?\s*:")
_NAME = re.compile(r"(?<![A-Za-z0-9])[A-Z]{5}(?![A-Za-z0-9])")
_INTEGER = re.compile(
    r"(?<![\w.,])[-+]?(?:\d{1,3}(?:,\d{3}){1,5}|\d{1,15})(?:\.\d{1,15})?(?![\w]|[.,]\d)"
)
_PHRASES = {
    "more common than": re.compile(r"\bmore common\b"),
    "less common than": re.compile(r"\bless common\b"),
    "same frequency as": re.compile(r"\bsame frequency\b|\bas common as\b|\bequally common\b"),
}
_MIRROR = {"more common than": "less common than", "less common than": "more common than"}
_NEGATED = re.compile(r"\bnot\b|n't\b|\bneither\b|\bnor\b")


def plain(text: str) -> str:
    """`text` after NFKC, without markdown marks, case-folded, with single spaces."""
    return " ".join(_folded(text).split())


def decisive(answer: str) -> str:
    """The plain line after the last "Answer:" or "Label:"; the whole plain answer without one."""
    head, *tails = _MARKER.split(_folded(answer))
    last = tails[-1].strip() if tails else ""
    return plain(last.splitlines()[0]) if last else plain(head)


def _folded(text: str) -> str:
    return _MARKDOWN.sub("", unicodedata.normalize("NFKC", text).replace("’", "'")).casefold()


def code(answer: str, gold: str) -> Judged:
    """1 when `gold` stands in the answer as a whole number and no other of its length does."""
    whole = re.compile(rf"(?<!\w)(?<!\d[.,])\d{{{len(gold)}}}(?!\w)(?![.,]\d)")
    found = set(whole.findall(plain(answer)))
    if found == {gold}:
        return RIGHT
    if not found:
        return Judged(0.0, f"no {len(gold)}-digit code stands in the answer: give the code only")
    if gold in found:
        return Judged(0.0, f"{len(found)} codes were given: commit to one")
    return Judged(
        0.0,
        "the code of another line was given: match the whole name, not a similar or longer one, and"
        " skip lines marked as revoked",
    )


def names(answer: str, gold: Collection[str]) -> Judged:
    """F1 of the set of names in the answer: its words of five capital letters.

    An answer without any is read again in capitals: lower case costs nothing, but prose then does.
    """
    text = unicodedata.normalize("NFKC", answer)
    found = set(_NAME.findall(text)) or set(_NAME.findall(text.upper()))
    wanted = set(gold)
    if not found:
        return Judged(0.0, "no variable name stands in the answer: list names, separated by commas")
    right = len(found & wanted)
    missing, wrong = len(wanted) - right, len(found) - right
    if not missing and not wrong:
        return RIGHT
    lost = [f"{missing} of {len(wanted)} names are missing"] if missing else []
    lost += [f"{wrong} of the {len(found)} names given do not belong"] if wrong else []
    return Judged(2 * right / (len(found) + len(wanted)), " and ".join(lost))


def label(answer: str, gold: str, options: Iterable[str]) -> Judged:
    """1 when the decisive part of the answer names `gold` and no other of `options`."""
    known = sorted({plain(option) for option in options} | {plain(gold)}, key=len, reverse=True)
    pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, known))})(?!\w)"
    found = set(re.findall(pattern, decisive(answer)))
    if found == {plain(gold)}:
        return RIGHT
    if not found:
        return Judged(0.0, "none of the labels stands in the answer: end with 'Label: answer'")
    if len(found) > 1:
        return Judged(0.0, f"{len(found)} labels were named: commit to one with 'Label: answer'")
    return Judged(0.0, "another label is the most common one: classify and count every line")


def comparison(answer: str, gold: str, sides: tuple[str, str]) -> Judged:
    """1 when the decisive part holds `gold` as its only comparison, for `sides` in either order.

    "b is less common than a" says that a is more common than b. A negated comparison says nothing.
    """
    text = decisive(answer)
    found = [phrase for phrase, pattern in _PHRASES.items() if pattern.search(text)]
    if len(found) != 1 or _NEGATED.search(text):
        return Judged(
            0.0, "no single comparison stands in the answer: end with 'Answer: a is [X] b'"
        )
    said = _MIRROR.get(found[0], found[0]) if _swapped(text, sides) else found[0]
    if said == gold:
        return RIGHT
    return Judged(0.0, "the comparison is wrong: classify and count every line of both labels")


def _swapped(text: str, sides: tuple[str, str]) -> bool:
    first, second = (re.search(rf"(?<!\w){re.escape(plain(side))}(?!\w)", text) for side in sides)
    return first is not None and second is not None and second.start() < first.start()


def number(answer: str, gold: int) -> Judged:
    """0.75 ** |difference| of the only number in the decisive part; "1,042" is 1042."""
    found = {float(text.replace(",", "")) for text in _INTEGER.findall(decisive(answer))}
    if len(found) != 1:
        what = f"{len(found)} numbers stand" if found else "no number stands"
        return Judged(0.0, f"{what} in the answer: end with 'Answer: number'")
    value = found.pop()
    if not value.is_integer():
        return Judged(0.0, "the answer is not a whole number")
    off = int(value) - gold
    if not off:
        return RIGHT
    return Judged(
        0.75 ** abs(off), f"the count is too {'high' if off > 0 else 'low'} by {abs(off)}"
    )
