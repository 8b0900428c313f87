"""The rules of fetched benchmarks and of users' own data, by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from typing import cast

from fleet_rlm.errors import ScorerError
from fleet_rlm.scoring import (
    babilong,
    graphwalks,
    infinitebench,
    longbench,
    mrcr,
    oolong,
    pairs,
    robust,
    ruler,
    squad,
)
from fleet_rlm.scoring import robust_values as ours
from fleet_rlm.scoring.robust import Judged
from fleet_rlm.scoring.rule import Asked, Rule

_SIDES = re.compile(r"(?:is|Is) (?:the )?label '?([^'?]+?)'? (?:more|\[)")
_NUMBER_WORDS = {"0": "none", "1": "one", "2": "two", "3": "three", "zero": "none"}
_SPELLED = {"grey": "gray", "toilet": "bathroom"}


def _first(question: Asked) -> str:
    return question.gold[0]


def _oolong_official(answer: str, question: Asked) -> float:
    kind, gold = question.answer_type, _first(question)
    said = oolong.render(answer, kind)
    day = date.fromisoformat(gold) if kind == "date" else gold
    return oolong.synth_score(said, day, cast("oolong.Kind", kind))


def _oolong_robust(answer: str, question: Asked) -> Judged:
    gold = _first(question)
    match question.answer_type:
        case "number":
            return robust.number(answer, int(gold))
        case "label":
            return robust.label(answer, gold, question.options)
        case "comparison":
            return _comparison(answer, question)
        case "date":
            return ours.day(answer, date.fromisoformat(gold))
        case "user":
            return ours.value(answer, float(gold))
        case "month_year":
            return ours.exact(answer, [gold])
        case other:
            raise ScorerError(f"scoring by oolong: no rule for answers of type {other!r}")


def _comparison(answer: str, question: Asked) -> Judged:
    sides = _SIDES.search(question.query)
    a = sides[1] if sides else ""
    # Without the sides named, "b is less common than a" cannot be turned round.
    return robust.comparison(answer, _first(question), (a, "\0"))


def _oolong_real(answer: str, question: Asked) -> float:
    return oolong.real_score(oolong.real_render(answer), _first(question))


def _oolong_real_robust(answer: str, question: Asked) -> Judged:
    wanted = oolong.real_parse(f"\\boxed{{{_first(question)}}}")
    said = oolong.real_parse(answer)
    shown = ", ".join(said) if isinstance(said, list) else str(said)
    if isinstance(wanted, int):
        return robust.number(shown, wanted)
    if isinstance(wanted, list):
        return ours.members(shown, wanted)
    return ours.exact(shown, [wanted])


def _gold_pairs(question: Asked) -> set[pairs.Pair]:
    found = pairs.parse_strict("\n".join(question.gold))
    if len(found) != len(set(question.gold)):
        raise ScorerError("scoring by oolong-pairs: a gold answer is no pair '(a, b)'")
    return found


def _graphwalks(answer: str, question: Asked) -> float:
    said = graphwalks.parse(answer)
    return 0.0 if said is None else graphwalks.set_f1(said, question.gold)


def _babilong_robust(answer: str, question: Asked) -> Judged:
    known = babilong.LABELS[question.kind]
    target = _first(question)
    wanted = target.split(",") if target not in known else [target]
    words = {word: label for word, label in _NUMBER_WORDS.items() if label in known}
    words |= {word: label for word, label in _SPELLED.items() if label in known}
    return ours.labels(answer, wanted, known, _bare_question(question), words)


def _bare_question(question: Asked) -> str:
    # The instruction before it names labels that the question does not.
    return question.query.rpartition("Question: ")[2]


def _letter(question: Asked) -> str:
    return question.gold[-1]


def _infinitebench_robust(answer: str, question: Asked) -> Judged:
    gold = question.gold
    match question.kind:
        case "passkey" | "number_string":
            return robust.code(answer, gold[0])
        case "kv_retrieval":
            return ours.holds_all(answer, gold[:1])
        case "code_run" | "math_find":
            return ours.value(answer, float(gold[0]))
        case "longbook_choice_eng" | "code_debug":
            return ours.choice(answer, gold[-1], gold[0])
        case "longdialogue_qa_eng":
            return ours.holds_any(answer, gold)
        case "longbook_qa_eng":
            return ours.token_f1(answer, gold)
        case "longbook_qa_chn":
            return ours.character_f1(answer, gold)
        case _:
            share = infinitebench.RULES[question.kind](robust.decisive(answer), gold)
            return Judged(share, "" if share == 1 else "the values go wrong after that share")


def _unjudged(answer: str, question: Asked) -> float:
    raise ScorerError("scoring by judged: the official score takes a judge, and there is none")


def _holds(rule: Callable[..., float]) -> Callable[[str, Asked], float]:
    return lambda answer, question: rule(answer, question.gold)


LIBRARY: dict[str, Rule] = {
    "oolong": Rule(_oolong_official, _oolong_robust),
    "oolong-real": Rule(_oolong_real, _oolong_real_robust),
    "oolong-pairs": Rule(
        lambda answer, q: pairs.pairs_f1(pairs.parse_strict(answer), _gold_pairs(q)),
        lambda answer, q: ours.user_pairs(answer, _gold_pairs(q)),
        empty_gold=True,
    ),
    "longbench-v2": Rule(
        lambda answer, q: float(longbench.parse(longbench.render(answer)) == _letter(q)),
        lambda answer, q: ours.choice(answer, _letter(q)),
    ),
    "graphwalks": Rule(
        lambda answer, q: (
            graphwalks.set_f1(graphwalks.parse(answer) or ["\0"], q.gold)
            if graphwalks.parse(answer) != []
            else graphwalks.set_f1([], q.gold)
        ),
        lambda answer, q: ours.nodes(answer, q.gold),
        empty_gold=True,
    ),
    "mrcr": Rule(
        lambda answer, q: mrcr.ratio(answer, *q.gold),
        lambda answer, q: ours.quotation(answer, *q.gold),
    ),
    "babilong": Rule(
        lambda answer, q: babilong.label_score(answer, _first(q), _bare_question(q), q.kind),
        _babilong_robust,
    ),
    "infinitebench": Rule(
        lambda answer, q: infinitebench.RULES[q.kind](answer, q.gold), _infinitebench_robust
    ),
    "judged": Rule(_unjudged, lambda answer, q: ours.holds_any(answer, q.gold)),
    "exact": Rule(
        lambda answer, q: float(answer.strip() in q.gold),
        lambda answer, q: ours.exact(answer, q.gold),
    ),
    "label": Rule(
        lambda answer, q: float(answer.strip() == _first(q)),
        lambda answer, q: robust.label(answer, _first(q), q.options),
    ),
    "number": Rule(
        lambda answer, q: oolong.synth_score(oolong.render(answer, "number"), _first(q), "number"),
        lambda answer, q: robust.number(answer, int(_first(q))),
    ),
    "match-all": Rule(_holds(ruler.string_match_all), lambda a, q: ours.holds_all(a, q.gold)),
    "match-part": Rule(_holds(ruler.string_match_part), lambda a, q: ours.holds_any(a, q.gold)),
    "set": Rule(
        lambda answer, q: graphwalks.set_f1(
            {item.strip() for item in answer.split(",")} - {""}, q.gold
        ),
        lambda answer, q: ours.members(answer, q.gold),
        empty_gold=True,
    ),
    "qa": Rule(_holds(squad.token_f1), lambda answer, q: ours.token_f1(answer, q.gold)),
    "sequence": Rule(
        lambda answer, q: mrcr.ratio(answer, _first(q), ""),
        lambda answer, q: ours.quotation(answer, _first(q)),
    ),
    "choice": Rule(
        lambda answer, q: float(answer.strip() == _letter(q)),
        lambda answer, q: ours.choice(answer, _letter(q)),
    ),
    "date": Rule(
        lambda answer, q: oolong.synth_score(
            oolong.render(answer, "date"), date.fromisoformat(_first(q)), "date"
        ),
        lambda answer, q: ours.day(answer, date.fromisoformat(_first(q))),
    ),
}
"""Name -> rule. From "exact" on no benchmark stands behind them: official reads most plainly."""
