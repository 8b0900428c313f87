"""Questions over counted rows: the wording, the gold answers, and which of them are clear-cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations
from random import Random
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet_rlm.errors import DataError
from fleet_rlm.suites.generators.base import Order
from fleet_rlm.suites.generators.rows import (
    DAYS,
    MONTH_COUNT,
    MONTH_DAYS,
    Rows,
    date_iso,
    date_text,
    month_text,
)
from fleet_rlm.suites.sample import Question

COUNT = (
    "How many instances should be classified as label '{label}'?"
    " Give your final answer in the form 'Answer: number'."
)
MOST_COMMON = (
    "Which of the labels is the most common in the instances? Give your final answer in the form"
    " 'Label: answer', where answer is one of the labels: {labels}."
)
LEAST_COMMON = MOST_COMMON.replace("the most common", "the least common")
COMPARE = (
    "Is label '{a}' more common than, less common than, or as common as (same frequency) label"
    " '{b}'? Give your final answer in the form 'Answer: {a} is [X] label {b}', where [X] is"
    " 'more common than', 'less common than' or 'same frequency as'."
)
COUNT_USER = (
    "Among the instances of user {user}, how many should be classified as label '{label}'?"
    " Give your final answer in the form 'Answer: number'."
)
MOST_USER = (
    "Which user is represented most often in the instances?"
    " Give your final answer in the form 'User: [X]', where [X] is the user ID."
)
SECOND_USER = MOST_USER.replace("most often", "second most often")
LABEL_USER = (
    "Which user has the most instances that should be classified as label '{label}'?"
    " Give your final answer in the form 'User: [X]', where [X] is the user ID."
)
USER_PAIR = (
    "Which of the users {a} and {b} has more instances that should be classified as label"
    " '{label}'? Give your final answer in the form 'User: [X]', where [X] is the user ID."
)
MOST_DATE = (
    "Which date is represented most often in the instances?"
    " Give your final answer in the form 'Date: [X]', where [X] is the date as MM/DD/YYYY."
)
SECOND_DATE = MOST_DATE.replace("most often", "second most often")
DATES_N = (
    "How many dates are represented exactly {n} times in the instances?"
    " Give your final answer in the form 'Answer: number'."
)
BEFORE_AFTER = (
    "Was label '{label}' more common, less common, or the same frequency before {date} compared to"
    " after it, by number of instances? Give your final answer in the form"
    " 'Answer: {label} is [X] before {date}', where [X] is 'more common', 'less common' or"
    " 'the same frequency'."
)
FIRST_MONTH = (
    "In which month did the instances of label '{a}' first outnumber those of label '{b}'?"
    " Give your final answer in the form 'Answer: [X]', where [X] is the month and year, such as"
    " 'Mar 2020'."
)
MONTHS_ABOVE = (
    "In how many months did the instances of label '{a}' outnumber those of label '{b}'?"
    " Give your final answer in the form 'Answer: number'."
)
MONTHS_LED = (
    "In how many months was label '{label}' the single most common label?"
    " Give your final answer in the form 'Answer: number'."
)
COUNT_BETWEEN = (
    "Among the instances dated between {first} and {last}, inclusive, how many should be classified"
    " as label '{label}'? Give your final answer in the form 'Answer: number'."
)

Kind = Literal[
    "count",
    "most_common",
    "least_common",
    "compare",
    "count_user",
    "most_user",
    "second_user",
    "label_user",
    "user_pair",
    "most_date",
    "second_date",
    "dates_n",
    "before_after",
    "first_month",
    "months_above",
    "months_led",
    "count_between",
]
"""Every kind of question that OOLONG-synth asks, by its counting, user and timeline groups."""

OUTCOMES = ("more common than", "less common than", "same frequency as")
BEFORE = ("more common", "less common", "the same frequency")

_FALLBACKS: tuple[Kind, ...] = ("count", "count_user", "user_pair", "count_between")


class _Cell(NamedTuple):
    user: int
    label: str


class Asker:
    """Asks questions of one window; none twice, and none whose answer hangs on a tie."""

    def __init__(self, order: Order, rows: Rows) -> None:
        self._order = order
        self._rows = rows
        self._labels = list(rows.labels)
        size, users = len(rows.labels), len(rows.users)
        self._per_label = np.bincount(rows.label, minlength=size)
        self._per_user = np.bincount(rows.user, minlength=users)
        self._per_day = np.bincount(rows.day, minlength=DAYS)
        cells = np.bincount(rows.label * users + rows.user, minlength=size * users)
        self._cells = cells.reshape(size, users)
        months = rows.day // MONTH_DAYS
        monthly = np.bincount(rows.label * MONTH_COUNT + months, minlength=size * MONTH_COUNT)
        self._monthly = monthly.reshape(size, MONTH_COUNT)
        rng = order.rng("questions")
        # These three share one stream; the others have their own.
        self._to_count = rng.sample(self._labels, size)
        self._to_compare = self._pairs(rng)
        self._to_count_user = self._busiest_last(rng)
        self._streams: dict[str, Iterator[Question]] = {}

    def ask(self, kind: Kind, outcome: str) -> Question:
        """The next question of `kind`, or of another kind when no clear-cut one is left.

        Raises:
            DataError: the window is too short for as many questions.
        """
        for turn in (kind, *_FALLBACKS):
            question = self._try(turn, outcome if turn == kind else "")
            if question is not None:
                return question
        raise DataError(f"aggregate has no clear-cut question left on {len(self._rows.day)} lines")

    def _try(self, kind: Kind, outcome: str) -> Question | None:
        if kind == "count":
            return self._count()
        if kind == "count_user":
            return self._count_user()
        if kind == "compare":
            return self._compare(outcome or OUTCOMES[0])
        name = f"{kind}/{outcome}"
        if name not in self._streams:
            rng = self._order.rng(f"questions/{name}")
            if kind == "before_after":
                self._streams[name] = self._before_after(rng, outcome or OUTCOMES[0])
            else:
                self._streams[name] = _MAKERS[kind](self, rng)
        return next(self._streams[name], None)

    def _count(self) -> Question | None:
        if not self._to_count:
            return None
        label = self._to_count.pop()
        gold = self._per_label[self._labels.index(label)]
        share = len(self._rows.day) / len(self._labels)
        return _number(COUNT.format(label=label), gold, "count", share)

    def _count_user(self) -> Question | None:
        if not self._to_count_user:
            return None
        cell = self._to_count_user.pop()
        user = self._rows.users.index(cell.user)
        gold = self._cells[self._labels.index(cell.label), user]
        query = COUNT_USER.format(user=cell.user, label=cell.label)
        return _number(query, gold, "count_user", self._per_user[user] / len(self._labels))

    def _compare(self, outcome: str) -> Question | None:
        pairs = self._to_compare[outcome == OUTCOMES[2]]
        if not pairs:
            return None
        a, b = pairs.pop()
        more = self._per_label[self._labels.index(a)] > self._per_label[self._labels.index(b)]
        if (outcome == OUTCOMES[0]) != more:
            a, b = b, a
        return Question(
            query=COMPARE.format(a=a, b=b),
            gold=(outcome,),
            answer_type="comparison",
            options=OUTCOMES,
            kind="compare",
        )

    def _most_common(self, _: Random) -> Iterator[Question]:
        yield self._label_question(MOST_COMMON, self._labels[0], "most_common")

    def _least_common(self, _: Random) -> Iterator[Question]:
        last, second = np.sort(self._per_label)[:2]
        if last < second:
            label = self._labels[int(self._per_label.argmin())]
            yield self._label_question(LEAST_COMMON, label, "least_common")

    def _label_question(self, wording: str, gold: str, kind: Kind) -> Question:
        options = tuple(sorted(self._labels))
        return Question(
            query=wording.format(labels=", ".join(options)),
            gold=(gold,),
            answer_type="label",
            options=options,
            kind=kind,
        )

    def _most_user(self, _: Random) -> Iterator[Question]:
        if (user := _ranked(self._per_user, 0)) is not None:
            yield self._user_question(MOST_USER, user, "most_user")

    def _second_user(self, _: Random) -> Iterator[Question]:
        if (user := _ranked(self._per_user, 1)) is not None:
            yield self._user_question(SECOND_USER, user, "second_user")

    def _label_user(self, rng: Random) -> Iterator[Question]:
        for label in rng.sample(range(len(self._labels)), len(self._labels)):
            if (user := _ranked(self._cells[label], 0)) is not None:
                query = LABEL_USER.format(label=self._labels[label])
                yield self._user_question(query, user, "label_user")

    def _user_pair(self, rng: Random) -> Iterator[Question]:
        # As many as anyone asks of one window; a thousand users make too many pairs to list.
        seen = set()
        for turn in range(200):
            label = rng.randrange(len(self._labels))
            a, b = rng.sample(range(len(self._rows.users)), 2)
            more, less = (a, b) if self._cells[label, a] > self._cells[label, b] else (b, a)
            if self._cells[label, more] - self._cells[label, less] <= 1:
                continue
            first, second = (more, less) if turn % 2 else (less, more)
            users = self._rows.users
            query = USER_PAIR.format(a=users[first], b=users[second], label=self._labels[label])
            if query not in seen:
                seen.add(query)
                options = (str(users[first]), str(users[second]))
                yield self._user_question(query, more, "user_pair", options)

    def _user_question(
        self, query: str, user: int, kind: Kind, options: tuple[str, ...] = ()
    ) -> Question:
        gold = str(self._rows.users[user])
        return Question(query=query, gold=(gold,), answer_type="user", options=options, kind=kind)

    def _most_date(self, _: Random) -> Iterator[Question]:
        if (day := _ranked(self._per_day, 0)) is not None:
            yield _date_question(MOST_DATE, day, "most_date")

    def _second_date(self, _: Random) -> Iterator[Question]:
        if (day := _ranked(self._per_day, 1)) is not None:
            yield _date_question(SECOND_DATE, day, "second_date")

    def _dates_n(self, rng: Random) -> Iterator[Question]:
        times, dates = np.unique(self._per_day[self._per_day > 0], return_counts=True)
        found = [(int(n), int(count)) for n, count in zip(times, dates, strict=True) if count > 1]
        rng.shuffle(found)
        for n, count in found:
            yield _number(DATES_N.format(n=n), count, "dates_n", len(self._rows.day) / DAYS)

    def _before_after(self, rng: Random, outcome: str) -> Iterator[Question]:
        for label in rng.sample(range(len(self._labels)), len(self._labels)):
            days = np.sort(self._rows.day[self._rows.label == label])
            # A date about a quarter from one end of the label's own lines: never a near tie.
            share = rng.uniform(0.65, 0.85)
            at = share if outcome == OUTCOMES[0] else 1 - share
            day = int(days[int(at * (len(days) - 1))])
            before, after = int((days < day).sum()), int((days > day).sum())
            wanted = before > after if outcome == OUTCOMES[0] else before < after
            if wanted and abs(before - after) > 1:
                yield Question(
                    query=BEFORE_AFTER.format(label=self._labels[label], date=date_text(day)),
                    gold=(BEFORE[OUTCOMES.index(outcome)],),
                    answer_type="comparison",
                    options=BEFORE,
                    kind="before_after",
                )

    def _first_month(self, rng: Random) -> Iterator[Question]:
        for a, b in self._label_pairs(rng):
            above = np.flatnonzero(self._monthly[a] > self._monthly[b])
            if len(above):
                yield Question(
                    query=FIRST_MONTH.format(a=self._labels[a], b=self._labels[b]),
                    gold=(month_text(int(above[0])),),
                    answer_type="month_year",
                    kind="first_month",
                )

    def _months_above(self, rng: Random) -> Iterator[Question]:
        for a, b in self._label_pairs(rng):
            gold = (self._monthly[a] > self._monthly[b]).sum()
            query = MONTHS_ABOVE.format(a=self._labels[a], b=self._labels[b])
            yield _number(query, gold, "months_above", MONTH_COUNT / 2)

    def _months_led(self, rng: Random) -> Iterator[Question]:
        top = np.sort(self._monthly, axis=0)[-2:]
        leader = np.where(top[1] > top[0], self._monthly.argmax(axis=0), -1)
        for label in rng.sample(range(len(self._labels)), len(self._labels)):
            query = MONTHS_LED.format(label=self._labels[label])
            share = MONTH_COUNT / len(self._labels)
            yield _number(query, (leader == label).sum(), "months_led", share)

    def _count_between(self, rng: Random) -> Iterator[Question]:
        seen = set()
        for _ in range(200):
            label = rng.randrange(len(self._labels))
            first, last = sorted(rng.sample(range(DAYS), 2))
            inside = (self._rows.day >= first) & (self._rows.day <= last)
            gold = int((inside & (self._rows.label == label)).sum())
            query = COUNT_BETWEEN.format(
                first=date_text(first), last=date_text(last), label=self._labels[label]
            )
            if gold and query not in seen:
                seen.add(query)
                share = inside.sum() / len(self._labels)
                yield _number(query, gold, "count_between", share)

    def _label_pairs(self, rng: Random) -> list[tuple[int, int]]:
        pairs = list(permutations(range(min(len(self._labels), 20)), 2))
        rng.shuffle(pairs)
        return pairs

    def _busiest_last(self, rng: Random) -> list[_Cell]:
        """Users with their labels in random order, the busiest quarter of users last.

        A count of one or two is guessed too easily: 0.75 ** difference forgives being off by one.
        """
        users = self._rows.users
        writers, first = np.unique(self._rows.user, return_index=True)
        seen = [int(user) for user in writers[np.argsort(first)]]
        seen.sort(key=lambda user: -self._per_user[user])
        busy = {users[user] for user in seen[: max(2, len(seen) // 4)]}
        found = [
            _Cell(users[user], self._labels[label]) for label, user in np.argwhere(self._cells)
        ]
        cells = rng.sample(sorted(found), len(found))
        return sorted(cells, key=lambda cell: cell.user in busy)

    def _pairs(self, rng: Random) -> dict[bool, list[tuple[str, str]]]:
        """Pairs of labels in random order, by whether their counts are equal."""
        count = dict(zip(self._labels, self._per_label.tolist(), strict=True))
        labels = self._labels
        pairs = [(a, b) for i, a in enumerate(labels) for b in labels[i + 1 :]]
        rng.shuffle(pairs)
        return {
            equal: [(a, b) for a, b in pairs if (count[a] == count[b]) is equal]
            for equal in (True, False)
        }


_MAKERS: dict[Kind, Callable[[Asker, Random], Iterator[Question]]] = {
    "most_common": Asker._most_common,
    "least_common": Asker._least_common,
    "most_user": Asker._most_user,
    "second_user": Asker._second_user,
    "label_user": Asker._label_user,
    "user_pair": Asker._user_pair,
    "most_date": Asker._most_date,
    "second_date": Asker._second_date,
    "dates_n": Asker._dates_n,
    "first_month": Asker._first_month,
    "months_above": Asker._months_above,
    "months_led": Asker._months_led,
    "count_between": Asker._count_between,
}


def _ranked(counts: NDArray[np.intp], rank: int) -> int | None:
    """Which one has the largest (0) or second largest (1) count; None when that is a tie."""
    order = np.argsort(-counts, kind="stable")[: rank + 2]
    values = counts[order]
    if len(set(values.tolist())) < len(values):
        return None
    return int(order[rank])


def _date_question(query: str, day: int, kind: Kind) -> Question:
    return Question(query=query, gold=(date_iso(day),), answer_type="date", kind=kind)


def _number(query: str, gold: int | np.integer[Any], kind: Kind, guess: float) -> Question:
    # The guess of someone who counts lines but reads none: the floor of this question.
    return Question(
        query=query,
        gold=(str(int(gold)),),
        answer_type="number",
        options=(str(round(guess)),),
        kind=kind,
    )
