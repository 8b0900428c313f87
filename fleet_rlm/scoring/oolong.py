"""OOLONG-synth's own scoring rule, bug for bug.

Source: abertsch72/oolong (MIT), src/eval/eval_helpers.py: `synth_attempt_answer_parse` and
`synth_process_response`. Case matters, a full stop makes a label wrong, and a label of several
words scores only behind a colon.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Literal

_PHRASES = ("more common", "less common", "same frequency")
_SHORT = 20  # characters

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
