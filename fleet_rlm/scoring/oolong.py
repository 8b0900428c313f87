"""OOLONG's own scoring rules, bug for bug.

Source: abertsch72/oolong (MIT), src/eval/eval_helpers.py: `synth_attempt_answer_parse`,
`synth_process_response` and their `dnd` counterparts for OOLONG-real. In synth case matters, a full
stop makes a label wrong, and a label of several words scores only behind a colon; real reads
numbers and lists inside \\boxed{} only.
"""

from __future__ import annotations

import ast
import re
from datetime import date, datetime
from typing import Literal

_PHRASES = ("more common", "less common", "same frequency")
_SHORT = 20  # characters

_BOXED = re.compile(r"\\boxed\{\\text\{([^}]*)\}\}|\\boxed\{([^}]*)\}")

Kind = Literal["label", "comparison", "number", "user", "date", "month_year"]


def parse(output: str) -> str:
    """What the benchmark takes for the answer in a model's `output`."""
    if ":" not in output:
        return output if len(output) < _SHORT else output.split()[-1]
    text = output.split(":")[-1].strip()
    for mark in "*[]":
        text = text.replace(mark, "")
    if len(text) < _SHORT:
        return text
    return next((phrase for phrase in _PHRASES if phrase in text), text)


def synth_score(output: str, gold: str | date, kind: Kind) -> float:
    """Score in [0, 1]: 1 for an equal string, 0.75 ** difference for numbers, equal days for dates.

    Args:
        output: the model's whole answer.
        gold: the first gold answer; a `date` exactly for kind "date".
    """
    if not output.strip():
        return 0.0
    text = parse(output)
    if text == str(gold):
        return 1.0
    if text in _PHRASES:
        return float(text in str(gold))
    if kind == "number":
        return _number(text, str(gold))
    if isinstance(gold, date):
        return _date(text, gold)
    return 0.0


_FORMS = {"label": "Label", "user": "User", "date": "Date"}


def render(answer: str, kind: str) -> str:
    """A bare one-line answer in the form that synth questions ask for, "Label: answer".

    Programs submit the value alone, which the official rule misreads when it has several words.
    An answer with a colon or a second line is left as it is.
    """
    bare = answer.strip()
    if ":" in bare or "\n" in bare:
        return answer
    return f"{_FORMS.get(kind, 'Answer')}: {bare}"


def real_parse(output: str) -> str | int | list[str]:
    """What OOLONG-real takes for the answer: a number, a list or a text; in \\boxed{} if any."""
    found = _BOXED.search(output)
    if found is None:
        return output
    text = (found[1] if found[1] is not None else found[2]).strip()
    if text.lstrip("-").isdecimal():
        return int(text)
    return [item.strip() for item in text.split(",")] if "," in text else text


def real_render(answer: str) -> str:
    """A bare one-line answer inside \\boxed{}, as OOLONG-real asks for it."""
    bare = answer.strip()
    return answer if "\\boxed" in bare or "\n" in bare else f"\\boxed{{{bare}}}"


def real_score(output: str, gold: str) -> float:
    """0.75 ** difference for a number, equality without case for a text, recall for a list."""
    said = real_parse(output)
    wanted = real_parse(f"\\boxed{{{gold}}}")
    if isinstance(wanted, int):
        return _number(str(said), str(wanted)) if isinstance(said, int) else 0.0
    if isinstance(wanted, list):
        return len(set(wanted) & set(said)) / len(wanted) if isinstance(said, list) else 0.0
    return float(isinstance(said, str) and said.strip().lower() == wanted.strip().lower())


def _number(text: str, gold: str) -> float:
    try:
        return float(0.75 ** abs(int(gold) - int(text)))
    except (ValueError, OverflowError):
        return 0.0


def _date(text: str, gold: date) -> float:
    from dateutil import parser  # type: ignore[import-untyped] # ships no types

    try:
        return float(parser.parse(text) == datetime(gold.year, gold.month, gold.day))
    except (ValueError, OverflowError):
        return 0.0


_GOLD_DATE = re.compile(r"datetime\.date\((\d+), (\d+), (\d+)\)")


def gold_of(text: str) -> str | date:
    """The gold answer that the benchmark scores against: the first of the list in `text`.

    Args:
        text: column `answer` of OOLONG-synth: "['entity']", "[42]", "[datetime.date(2023, 1, 6)]".

    Raises:
        ValueError: the text is no such list.
    """
    if found := _GOLD_DATE.search(text):
        year, month, day = map(int, found.groups())
        return date(year, month, day)
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        values = None
    if not isinstance(values, list) or not values or not isinstance(values[0], str | int):
        raise ValueError(f"gold answer {text!r} is not a list of values")
    return str(values[0])
