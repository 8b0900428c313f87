"""Our own rules for answers of other shapes: texts, sets, options, dates, pairs, long quotations.

As in `robust`: form costs nothing, content must be whole, an answer that says two things when one
is asked says none.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date
from difflib import SequenceMatcher

from fleet_rlm.scoring import graphwalks, pairs, squad
from fleet_rlm.scoring.robust import RIGHT, Judged, decisive, plain

_OUTER = " \t\n\"'`“”‘’.,;:!?()[]{}"
_ITEM = re.compile(r"\s*(?:,|;|\n|(?<=\s)(?:and|&)(?=\s))\s*")
_MARKED = re.compile(r"(?:answer|option|choice)\s*(?:is|:)?\s*:?\s*\(?([A-J])\b(?!['’])", re.I)
_LETTER = re.compile(r"(?<![\w'’])([A-J])(?![\w'’])")
_FENCE = re.compile(r"^```[^\n]*\n|\n```\s*$")
_ALL_NUMBERS = re.compile(r"(?<![\w.,])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?![\w]|[.,]\d)")


def exact(answer: str, gold: Collection[str]) -> Judged:
    """1 when the decisive part equals one of `gold`, outer punctuation and case aside."""
    if _bare(decisive(answer)) in {_bare(plain(value)) for value in gold}:
        return RIGHT
    return Judged(0.0, "the answer is not the one wanted: end with 'Answer: ' and the value alone")


def holds_all(answer: str, gold: Collection[str]) -> Judged:
    """Share of `gold` that stands in the answer as whole words."""
    text = plain(answer)
    found = sum(_holds(text, value) for value in gold)
    if found == len(gold):
        return RIGHT
    return Judged(found / len(gold), f"{len(gold) - found} of {len(gold)} values are missing")


def holds_any(answer: str, gold: Collection[str]) -> Judged:
    """1 when one of `gold` stands in the answer as whole words."""
    text = plain(answer)
    if any(_holds(text, value) for value in gold):
        return RIGHT
    return Judged(0.0, "the answer does not hold the value wanted")


def token_f1(answer: str, gold: Sequence[str]) -> Judged:
    """Best F1 of the words of the decisive part and of one of `gold`, without case and marks."""
    value = squad.token_f1(decisive(answer), [plain(reference) for reference in gold])
    if value == 1:
        return RIGHT
    return Judged(value, "words are missing or too many: give the short answer alone")


def character_f1(answer: str, gold: Sequence[str]) -> Judged:
    """The same over letters and digits, for scripts without spaces."""
    said = Counter(filter(str.isalnum, decisive(answer)))
    value = max(squad.f1(said, Counter(filter(str.isalnum, plain(text)))) for text in gold)
    if value == 1:
        return RIGHT
    return Judged(value, "characters are missing or too many: give the short answer alone")


def members(answer: str, gold: Collection[str]) -> Judged:
    """F1 of the set of items in the decisive part, split at commas, lines, ";" and "and"."""
    said = {_bare(item) for item in _ITEM.split(_list_part(answer))} - {""}
    wanted = {_bare(plain(item)) for item in gold}
    return _set(said, wanted, "items")


def labels(
    answer: str,
    gold: Collection[str],
    known: Iterable[str],
    question: str,
    words: Mapping[str, str],
) -> Judged:
    """1 when the labels that the decisive part names, those of the question aside, are `gold`.

    Args:
        answer: the whole answer.
        gold: the labels wanted.
        known: every label there is.
        question: its labels do not count in the answer, unless they are wanted.
        words: other spellings of labels, such as "2" for "two".
    """
    text, asked = decisive(answer), plain(question)
    spelled = {label: label for label in known} | dict(words)
    found = {label for word, label in spelled.items() if _holds(text, word)}
    wanted = {plain(label) for label in gold}
    found -= {label for label in known if _holds(asked, label)} - wanted
    if found == wanted:
        return RIGHT
    if not found:
        return Judged(0.0, "no known label stands in the answer: give the label alone")
    return Judged(0.0, "the labels named are not those wanted: name the final ones only")


def choice(answer: str, letter: str, text: str = "") -> Judged:
    """1 when `letter` is the only option that the answer settles on, or `text` is all it says.

    The letter after the last "answer", "option" or "choice" counts, else the only lone capital.
    """
    shown = unicodedata.normalize("NFKC", answer).replace("*", "").strip()
    marked = [found.upper() for found in _MARKED.findall(shown)]
    said = {marked[-1]} if marked else set(_LETTER.findall(shown))
    if len(shown.strip(_OUTER)) == 1:
        said = {shown.strip(_OUTER).upper()}
    if said == {letter} or (text and _bare(plain(answer)) == _bare(plain(text))):
        return RIGHT
    if not said:
        return Judged(0.0, "no option was chosen: end with 'Answer: ' and one letter")
    if len(said) > 1:
        return Judged(0.0, f"{len(said)} options were named: commit to one letter")
    return Judged(0.0, "another option is right: find the passage that decides")


def value(answer: str, gold: float) -> Judged:
    """1 when the only number in the decisive part is `gold`."""
    found = {float(text.replace(",", "")) for text in _ALL_NUMBERS.findall(decisive(answer))}
    if found == {gold}:
        return RIGHT
    if len(found) != 1:
        return Judged(0.0, f"{len(found) or 'no'} numbers stand in the answer: give one alone")
    return Judged(0.0, "the number is wrong")


def day(answer: str, gold: date) -> Judged:
    """1 when the decisive part reads as the day `gold`; 01/06/2023 is January 6."""
    from dateutil import parser  # type: ignore[import-untyped] # ships no types

    text = re.sub(r"^date\s*:?\s*", "", decisive(answer)).strip(_OUTER)
    try:
        said = parser.parse(text).date()
    except (ValueError, OverflowError):
        return Judged(0.0, "no date stands in the answer: end with 'Answer: MM/DD/YYYY'")
    return RIGHT if said == gold else Judged(0.0, "the date is wrong")


def user_pairs(answer: str, gold: set[pairs.Pair]) -> Judged:
    """F1 of the set of pairs, in round or square brackets, quoted, or one a line."""
    said = {pair for pair in pairs.parse_loose(answer) if pair[0] != pair[1]}
    return _set(set(map(str, said)), {str(pair) for pair in gold}, "pairs")


def nodes(answer: str, gold: Collection[str]) -> Judged:
    """F1 of the set of nodes in the last list of the answer; without a list 0."""
    said = graphwalks.parse(re.sub(r"[*`]+", "", answer).strip())
    if said is None:
        return Judged(0.0, "no list stands in the answer: end with 'Final Answer: [a, b]'")
    return _set(set(said), set(gold), "nodes")


def quotation(answer: str, text: str, prefix: str = "") -> Judged:
    """Likeness of `text` and of what follows the last `prefix`, code fences aside."""
    said = _FENCE.sub("", answer.strip()).strip()
    if prefix:
        if prefix not in said:
            return Judged(0.0, "the reply must begin with the string asked for, as it is written")
        said, text = (whole.rpartition(prefix)[2] for whole in (said, text))
    likeness = SequenceMatcher(None, text.strip(), said.strip()).ratio()
    if likeness == 1:
        return RIGHT
    return Judged(likeness, "the text differs from the one asked for: quote it whole, and no more")


def _set(said: set[str], wanted: set[str], things: str) -> Judged:
    if said == wanted:
        return RIGHT
    missing, wrong = len(wanted - said), len(said - wanted)
    lost = [f"{missing} of {len(wanted)} {things} are missing"] if missing else []
    lost += [f"{wrong} of the {len(said)} {things} given do not belong"] if wrong else []
    return Judged(graphwalks.set_f1(said, wanted), " and ".join(lost))


def _list_part(answer: str) -> str:
    # `decisive` keeps one line; a list may go over many.
    head, found, tail = answer.casefold().rpartition("answer:")
    return "\n".join(plain(line) for line in (tail if found else head or tail).splitlines())


def _bare(text: str) -> str:
    return text.strip(_OUTER)


def _holds(text: str, value: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(plain(value))}(?!\w)", text) is not None
