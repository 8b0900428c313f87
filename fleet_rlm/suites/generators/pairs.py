"""Pairs: which pairs of users have written about what; the answer grows with their square.

After OOLONG-Pairs (arXiv 2512.24601, appendix D.1): its twenty specifications, ten alike for both
users and ten that differ, over the six labels of the window. What differs: who writes about what is
drawn so that no answer is nearly every pair at any length, and a date rule without an instance of
its label holds, which the question says.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from random import Random
from typing import ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fleet_rlm.errors import DataError
from fleet_rlm.suites.generators.bank import BankParams
from fleet_rlm.suites.generators.base import FILL, Draft, Order, Params
from fleet_rlm.suites.generators.rows import (
    DAYS,
    Cells,
    Read,
    Rows,
    date_text,
    make_rows,
    read_rows,
)
from fleet_rlm.suites.sample import Question

OPENING = (
    "List all pairs of user IDs (no pair twice, lower ID first) {rule}. Each instance belongs to"
    " one of these labels, which you have to infer from what it is about: {labels}. Give all pairs"
    " in the form (user_id_1, user_id_2), one per line."
)
SYMMETRIC = "where both users have at least one instance of label '{a}' or label '{b}'"
DATED = (
    ", and all instances of label '{label}' of both users are dated {side} {date} (a user without"
    " any such instance fulfils this)"
)
ASYMMETRIC = "where one user has {first} and the other user has {second}"
_TIMES = ("no", "one", "two")


class Need(NamedTuple):
    """How many instances of a label a user must have."""

    label: int
    """Index into the window's labels."""

    least: int
    most: int | None = None


class Spec(NamedTuple):
    """One of the twenty questions."""

    first: tuple[Need, ...]
    """Of one user; for `second` empty, of both: one of these suffices."""

    second: tuple[Need, ...] = ()
    dated: tuple[int, str] | None = None
    """Label and side of the date that all of its instances must lie on."""


def _either(a: int, b: int, dated: tuple[int, str] | None = None) -> Spec:
    return Spec((Need(a, 1), Need(b, 1)), dated=dated)


# Labels of the paper by number: description 0, entity 1, human 2, numeric 3, location 4,
# abbreviation 5; numbers of the questions are the paper's.
SPECS: tuple[Spec, ...] = (
    _either(3, 4),
    _either(1, 2),
    _either(0, 5),
    _either(2, 4, (2, "after")),
    _either(1, 3, (1, "before")),
    _either(4, 5),
    _either(0, 3, (3, "after")),
    _either(2, 0),
    _either(1, 4, (4, "after")),
    _either(3, 5, (5, "before")),
    Spec((Need(1, 1), Need(5, 1)), (Need(1, 1, 1),)),
    Spec((Need(3, 2),), (Need(4, 1), Need(2, 1))),
    Spec((Need(0, 1, 1),), (Need(5, 1), Need(1, 1))),
    Spec((Need(2, 1), Need(3, 1)), (Need(4, 2, 2),)),
    Spec((Need(1, 1), Need(4, 1), Need(5, 1)), (Need(3, 1, 1),)),
    Spec((Need(0, 1), Need(2, 1)), (Need(1, 2), Need(5, 1, 1))),
    Spec((Need(3, 1, 1),), (Need(4, 1), Need(0, 1))),
    Spec((Need(5, 1), Need(2, 1, 1)), (Need(1, 1), Need(3, 1))),
    Spec((Need(4, 2), Need(1, 1)), (Need(0, 1, 1), Need(5, 1, 1))),
    Spec((Need(3, 1), Need(2, 1)), (Need(4, 1), Need(1, 1), Need(5, 1, 1))),
)
_LABELS = 6
_TOKENS = 35  # of a line
_TARGET = 0.985


class PairsParams(BankParams):
    """Knobs of `pairs`."""

    users: int = Field(default=40, ge=4, le=400)
    """How many users write; the pairs there are grow with their square."""

    @model_validator(mode="after")
    def _has_labels(self) -> Self:
        self.check_labels(_LABELS)
        return self


class Pairs:
    """Writes `pairs` windows."""

    name: ClassVar = "pairs"
    version: ClassVar = 1
    rule: ClassVar = "oolong-pairs"
    uses_corpus: ClassVar = False
    least: ClassVar = "1,000, or 150 for each user, or too few fulfil a rule"
    max_questions: ClassVar = len(SPECS)
    params: ClassVar[type[Params]] = PairsParams

    def min_length(self, params: PairsParams, questions: int) -> int:
        return max(1000, 150 * params.users)

    def draft(self, order: Order, params: PairsParams) -> Draft:
        labels = list(params.opened.labels)
        order.rng("labels").shuffle(labels)
        labels = labels[:_LABELS]
        count = int(_TARGET * order.length) // _TOKENS
        for attempt in range(40):
            rows = _draw(order.rng(f"lines {attempt}"), params, labels, count)
            tokens = rows.tokens
            if not FILL * order.length < tokens <= order.length:
                count = int(count * _TARGET * order.length / tokens)
                continue
            questions = _questions(order, rows)
            if len(questions) == order.questions:
                return Draft(blocks=rows.blocks(), tokens=tokens, questions=questions)
        raise DataError(
            f"pairs found no {order.length} tokens with {order.questions} questions that have an"
            " answer",
            fix="more users, or fewer questions",
        )

    def solve(self, params: PairsParams, context: str, query: str) -> tuple[str, ...]:
        return _solve(read_rows(context, params.opened), query)


def _draw(rng: Random, params: PairsParams, labels: list[str], count: int) -> Rows:
    """Few users have a label at all, and most of those once or twice; one label of each takes the
    rest of the lines."""
    users = sorted(rng.sample(range(10_000, 100_000), params.users))
    cells: list[tuple[int, int, int]] = []
    for user in range(params.users):
        times = [rng.choices((0, 1, 2, 3), weights=(70, 15, 10, 5))[0] for _ in labels]
        cells += [(user, label, n) for label, n in enumerate(times) if n]
    bulk = [rng.randrange(_LABELS) for _ in range(params.users)]
    spare = max(0, count - sum(n for _, _, n in cells))
    share = [spare // params.users + (user < spare % params.users) for user in range(params.users)]
    cells += [(user, bulk[user], n) for user, n in enumerate(share) if n]
    # The dates of a user's label lie all before, all after, or on both sides of its middle.
    sides = {(u, c): rng.choice(("before", "after", "both")) for u, c, _ in cells}
    often = np.array([n for *_, n in cells])
    label = np.repeat([c for _, c, _ in cells], often)
    writer = np.repeat([u for u, _, _ in cells], often)
    stream = np.random.RandomState(rng.getrandbits(32))
    low = np.array([DAYS // 2 if sides[u, c] == "after" else 0 for u, c, _ in cells])
    high = np.array([DAYS // 2 if sides[u, c] == "before" else DAYS for u, c, _ in cells])
    low, high = np.repeat(low, often), np.repeat(high, often)
    day = low + (stream.random_sample(len(label)) * (high - low)).astype(np.intp)
    order = stream.permutation(len(label))
    return make_rows(
        rng, params.opened, labels, users, Cells(label[order], writer[order]), day[order]
    )


def _questions(order: Order, rows: Rows) -> tuple[Question, ...]:
    counts = np.zeros((len(rows.users), _LABELS), dtype=np.intp)
    np.add.at(counts, (rows.user, rows.label), 1)
    first = np.full(counts.shape, DAYS)
    last = np.full(counts.shape, -1)
    np.minimum.at(first, (rows.user, rows.label), rows.day)
    np.maximum.at(last, (rows.user, rows.label), rows.day)
    middle = DAYS // 2
    made: list[Question] = []
    start = order.window * order.questions
    for turn in range(start, start + len(SPECS)):
        if len(made) == order.questions:
            break
        number = turn % len(SPECS)
        spec = SPECS[number]
        one = _fulfil(spec.first, counts, any_of=not spec.second)
        other = _fulfil(spec.second, counts) if spec.second else one
        if spec.dated:
            label, side = spec.dated
            in_time = first[:, label] >= middle if side == "after" else last[:, label] < middle
            one = other = one & in_time
        gold = [
            f"({rows.users[a]}, {rows.users[b]})"
            for a, b in combinations(range(len(rows.users)), 2)
            if (one[a] and other[b]) or (one[b] and other[a])
        ]
        if gold:
            made.append(
                Question(
                    query=_word(spec, rows.labels),
                    gold=tuple(gold),
                    answer_type="pairs",
                    options=(_every_pair(rows.users),),
                    kind=f"spec {number + 1}",
                )
            )
    return tuple(made)


def _fulfil(
    needs: tuple[Need, ...], counts: NDArray[np.intp], *, any_of: bool = False
) -> NDArray[np.bool_]:
    """Shape (users,): who fulfils all needs, or with `any_of` at least one."""
    met = [
        (counts[:, need.label] >= need.least)
        & (True if need.most is None else counts[:, need.label] <= need.most)
        for need in needs
    ]
    fits: NDArray[np.bool_] = (np.any if any_of else np.all)(met, axis=0)
    return fits


def _word(spec: Spec, labels: Sequence[str]) -> str:
    if spec.second:
        rule = ASYMMETRIC.format(first=_list(spec.first, labels), second=_list(spec.second, labels))
    else:
        a, b = (labels[need.label] for need in spec.first)
        rule = SYMMETRIC.format(a=a, b=b)
    if spec.dated:
        label, side = spec.dated
        day = DAYS // 2 - (side == "after")
        rule += DATED.format(label=labels[label], side=side, date=date_text(day))
    return OPENING.format(rule=rule, labels=", ".join(sorted(labels)))


def _list(needs: tuple[Need, ...], labels: Sequence[str]) -> str:
    return " and ".join(
        f"{'at least' if most is None else 'exactly'} {_TIMES[least]}"
        f" instance{'s' if least > 1 else ''} of label '{labels[label]}'"
        for label, least, most in needs
    )


def _every_pair(users: Sequence[int]) -> str:
    return "\n".join(f"({a}, {b})" for a, b in combinations(users, 2))


_NEED = re.compile(r"(at least|exactly) (one|two) instances? of label '([^']+)'")
_DATED = re.compile(r"all instances of label '([^']+)' .* dated (before|after) (\w{3} \d\d, \d{4})")


def _solve(rows: Sequence[Read], query: str) -> tuple[str, ...]:
    tally: dict[str, Counter[str]] = {}
    for row in rows:
        tally.setdefault(row.user, Counter())[row.label] += 1
    rule = query.partition(". Each instance")[0]
    if "both users" in rule:
        labels = re.findall(r"label '([^']+)'", rule)[:2]
        fit = {user for user, counts in tally.items() if any(counts[label] for label in labels)}
        if dated := _DATED.search(rule):
            label, side, date = dated.groups()
            limit = next(day for day in range(DAYS) if date_text(day) == date)
            fit -= {
                row.user
                for row in rows
                if row.label == label
                and (row.day >= limit if side == "before" else row.day <= limit)
            }
        return tuple(sorted(f"({a}, {b})" for a, b in combinations(sorted(fit), 2)))
    one, other = (_NEED.findall(part) for part in rule.split("and the other user has"))

    def meets(user: str, needs: list[tuple[str, str, str]]) -> bool:
        counts = tally[user]
        wanted = [(how, _TIMES.index(times), counts[label]) for how, times, label in needs]
        return all(have >= n if how == "at least" else have == n for how, n, have in wanted)

    return tuple(
        sorted(
            f"({a}, {b})"
            for a, b in combinations(sorted(tally), 2)
            if (meets(a, one) and meets(b, other)) or (meets(b, one) and meets(a, other))
        )
    )
