"""The scoring rules by name, the score of an answer, and the floor that knows nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import cast

from fleet_rlm.errors import ScorerError, boundary, nearest
from fleet_rlm.scoring import dialogue, oolong, robust, robust_values, ruler
from fleet_rlm.scoring.judge import PREFIX, Judge
from fleet_rlm.scoring.library import LIBRARY
from fleet_rlm.scoring.own import OwnRule
from fleet_rlm.scoring.robust import Judged
from fleet_rlm.scoring.rule import Asked, Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Both scores of one answer, each in [0, 1]."""

    official: float
    """By the benchmark's own rule, bug for bug."""

    robust: float
    """By ours: tolerant of form, strict on content."""

    feedback: str
    """In words, where the robust score was lost; "" when nothing was.

    For optimizers on the host: it never names the gold answer but may narrow it down ("too high by
    3"), so it must not reach a sandbox or a prompt of the sample it speaks of.
    """


def score(answer: object, question: Asked, *, task_rule: str, judge: Judge | None = None) -> Score:
    """Score one answer.

    Args:
        answer: what the program returned; anything but a non-empty string is a plain wrong answer.
        question: with its gold answer.
        task_rule: a key of `RULES`, "judged:RUBRIC", or FILE.py:FUNCTION.
        judge: gives the official score of a judged rule.

    Raises:
        ScorerError: an unknown rule, a gold answer that the rule cannot read, no judge where one is
            needed, or its own failure.
    """
    rule = _rule(task_rule, judge)
    _check_gold(question, rule, task_rule)
    with boundary(ScorerError, f"scoring by {task_rule}"):
        if not isinstance(answer, str) or not answer.strip():
            return Score(official=0.0, robust=0.0, feedback="no answer was given")
        judged = rule.robust(answer, question)
        official = float(rule.official(answer, question))
    for value in (official, judged.score):
        if not 0.0 <= value <= 1.0:
            raise ScorerError(f"scoring by {task_rule}: {value} is not a score")
    return Score(official=official, robust=judged.score, feedback=judged.feedback)


def is_judged(task_rule: str) -> bool:
    """Whether the official score of a rule takes a judge."""
    return task_rule.partition(":")[0] == PREFIX


def _check_gold(question: Asked, rule: Rule, task_rule: str) -> None:
    if not any(question.gold) and not (rule.empty_gold and not question.gold):
        raise ScorerError(f"scoring by {task_rule}: the question has no gold answer")


_CONSTANTS = ("I don't know.", "0", "1")
_OPTIONS = 6  # the most labels that a generator offers


def blind_scores(question: Asked, *, task_rule: str) -> dict[str, float]:
    """Robust scores of programs that read the question but never the context, by policy.

    Policies: the constants "I don't know.", "0" and "1"; and "option k", which always answers with
    the k-th of the question's options, counted round: a label, a comparison phrase, or for a number
    the even share of lines per label. An empty answer scores 0 by every rule and is left out.

    Raises:
        ScorerError: as `score`.
    """
    answers = {constant: constant for constant in _CONSTANTS}
    if options := question.options:
        for k in range(max(_OPTIONS, len(options))):
            answers[f"option {k + 1}"] = options[k % len(options)]
    # Never a judge's: a floor must cost nothing.
    rule = _rule(task_rule, None)
    _check_gold(question, rule, task_rule)
    with boundary(ScorerError, f"scoring by {task_rule}"):
        return {policy: rule.robust(given, question).score for policy, given in answers.items()}


def floor(blind: Iterable[Mapping[str, float]]) -> float:
    """What knowing nothing is worth: the best mean of one policy, in [0, 1].

    Args:
        blind: `blind_scores` of each sample; a policy that one of them lacks scores 0 there.

    Returns:
        0.0 without samples.
    """
    totals: dict[str, float] = {}
    count = 0
    for scores in blind:
        count += 1
        for policy, value in scores.items():
            totals[policy] = totals.get(policy, 0.0) + value
    return max(totals.values(), default=0.0) / max(count, 1)


def _rule(name: str, judge: Judge | None) -> Rule:
    if ".py:" in name:
        return OwnRule.parse(name).rule()
    kind, _, rubric = name.partition(":")
    if kind not in RULES or (rubric and kind != PREFIX):
        raise ScorerError(f"No scoring rule {name!r}. {nearest(name, RULES)}")
    rule = RULES[kind]
    if kind != PREFIX or judge is None:
        return rule
    return rule._replace(official=lambda answer, q: judge.score(answer, q, rubric or "answer"))


def _ruler(answer: str, question: Asked) -> float:
    return ruler.string_match_all(answer, question.gold)


def _code(answer: str, question: Asked) -> Judged:
    return robust.code(answer, question.gold[0])


def _names(answer: str, question: Asked) -> Judged:
    return robust.names(answer, question.gold)


def _oolong(answer: str, question: Asked) -> float:
    kind, gold = question.answer_type, question.gold[0]
    day = date.fromisoformat(gold) if kind == "date" else gold
    return oolong.synth_score(answer, day, cast("oolong.Kind", kind))


_QUOTED_LABEL = re.compile(r"label '([^']+)'")


def _counted(answer: str, question: Asked) -> Judged:
    gold = question.gold[0]
    match question.answer_type:
        case "number":
            return robust.number(answer, int(gold))
        case "label":
            return robust.label(answer, gold, question.options)
        case "comparison" if gold in _BEFORE:
            return robust.comparison(answer, _BEFORE[gold], ("before", "after"))
        case "comparison":
            a, b = _QUOTED_LABEL.findall(question.query)[:2]
            return robust.comparison(answer, gold, (a, b))
        case "user":
            return robust.code(answer, gold)
        case "date":
            return robust_values.day(answer, date.fromisoformat(gold))
        case "month_year":
            return robust_values.exact(answer, [gold])
        case other:
            raise ScorerError(f"scoring by aggregate: no rule for answers of type {other!r}")


_BEFORE = {
    "more common": "more common than",
    "less common": "less common than",
    "the same frequency": "same frequency as",
}
"""How OOLONG's answers about before and after a date say what `robust.comparison` knows."""


RULES: dict[str, Rule] = {
    "needle": Rule(_ruler, _code),
    "dialogue": Rule(dialogue.official, dialogue.judge),
    "variables": Rule(_ruler, _names),
    "aggregate": Rule(_oolong, _counted),
    **LIBRARY,
}
"""RULER's rule beside a whole-code match and a set F1; OOLONG's beside form-tolerant readings."""
