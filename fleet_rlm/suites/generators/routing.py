"""Routing: questions whose cheapest sufficient tool is known, over the lines of `aggregate`.

Python alone; one sub-query about one line; a batch of sub-queries over all lines; or a child for
every user, whose own lines again need a batch. `fleet_rlm.scoring.routing` says which tool an
answer took. After the finding that recursion hurts where it is not needed (arXiv 2603.02615,
2603.15653).
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import accumulate
from random import Random
from typing import ClassVar

import numpy as np
from pydantic import Field

from fleet_rlm.errors import DataError
from fleet_rlm.lexicon import SUBJECTS
from fleet_rlm.scoring.routing import Route
from fleet_rlm.suites.generators.bank import BankPart, open_bank
from fleet_rlm.suites.generators.base import FILL, Draft, Order, Params, spread
from fleet_rlm.suites.generators.counting import COUNT
from fleet_rlm.suites.generators.rows import Cells, Rows, make_rows, read_rows
from fleet_rlm.suites.sample import Question

PYTHON = (
    "How many instances did user {user} write? Give your final answer in the form 'Answer: number'."
)
ONE = (
    "As which of the labels should the only instance of user {user} be classified? Give your final"
    " answer in the form 'Label: answer', where answer is one of the labels: {labels}."
)
CHILD = (
    "Every user has one label that is the most common among the user's own instances. Which label"
    " is that of the most users? Give your final answer in the form 'Label: answer', where answer"
    " is one of the labels: {labels}."
)
_TOKENS = 35  # of a line
_TARGET = 0.985
_FAVOURITE = 0.4  # share of a user's lines of the favourite label; the others share the rest


class RoutingParams(Params):
    """Knobs of `routing`."""

    route: Route = "python"
    """The cheapest tool that suffices."""

    users: int = Field(default=10, ge=6, le=100)
    """How many users write, about equally much."""

    bank_part: BankPart = "all"
    """As of `aggregate`."""


class Routing:
    """Writes `routing` windows."""

    name: ClassVar = "routing"
    version: ClassVar = 1
    rule: ClassVar = "aggregate"
    uses_corpus: ClassVar = False
    least: ClassVar = "700 for each user, or one sub-query reads what a batch is for"
    max_questions: ClassVar = 1
    params: ClassVar[type[Params]] = RoutingParams

    def min_length(self, params: RoutingParams, questions: int) -> int:
        return params.users * 20 * _TOKENS

    def draft(self, order: Order, params: RoutingParams) -> Draft:
        count = int(_TARGET * order.length) // _TOKENS
        for attempt in range(40):
            rows = _draw(order, order.rng(f"lines {attempt}"), params, count)
            tokens = rows.tokens
            if not FILL * order.length < tokens <= order.length:
                count = int(count * _TARGET * order.length / tokens)
            elif question := _ask(order, params.route, rows):
                return Draft(blocks=rows.blocks(), tokens=tokens, questions=(question,))
        raise DataError(f"routing found no clear-cut question on {order.length} tokens")

    def solve(self, params: RoutingParams, context: str, query: str) -> tuple[str, ...]:
        rows = read_rows(context, open_bank("", params.bank_part))
        user = "".join(re.findall(r"user (\d+)", query))
        if params.route == "python":
            return (str(sum(row.user == user for row in rows)),)
        if params.route == "one":
            return tuple(row.label for row in rows if row.user == user)
        if params.route == "batch":
            label = re.findall(r"label '(\w+)'", query)[0]
            return (str(sum(row.label == label for row in rows)),)
        of_user: dict[str, Counter[str]] = {}
        for row in rows:
            of_user.setdefault(row.user, Counter())[row.label] += 1
        tops = Counter(counts.most_common(1)[0][0] for counts in of_user.values())
        return (tops.most_common(1)[0][0],)


def _draw(order: Order, rng: Random, params: RoutingParams, count: int) -> Rows:
    labels = sorted(SUBJECTS)
    # Over the windows every label is equally often the favourite of the most users.
    order.shared_rng("labels").shuffle(labels)
    leader = order.window % len(labels)
    others = [label for label in range(len(labels)) if label != leader]
    most = params.users // 3 + 1
    favourites = [leader] * most + [
        others[index % len(others)] for index in range(params.users - most)
    ]
    rng.shuffle(favourites)
    ids = rng.sample(range(10_000, 100_000), params.users)
    stream = np.random.RandomState(rng.getrandbits(32))
    rest = (1 - _FAVOURITE) / (len(labels) - 1)
    user = np.array(rng.choices(range(params.users), k=count))
    label = np.empty(count, dtype=np.intp)
    for index, favourite in enumerate(favourites):
        mine = user == index
        shares = [_FAVOURITE if c == favourite else rest for c in range(len(labels))]
        edges = np.array(list(accumulate(shares)))[:-1]
        label[mine] = np.searchsorted(edges, stream.random_sample(int(mine.sum())))
    if params.route == "one":  # a guest, who writes once
        ids.append(next(i for i in rng.sample(range(10_000, 100_000), 200) if i not in ids))
        user[_place(order, count)] = params.users
    bank = open_bank("", params.bank_part)
    return make_rows(rng, bank, labels, ids, Cells(label, user))


def _place(order: Order, count: int) -> int:
    return int(spread(order.window, order.shared_rng("depth").random()) * count)


def _ask(order: Order, route: Route, rows: Rows) -> Question | None:
    """The window's question; None when its answer would hang on a tie."""
    rng = order.rng("question")
    counts = np.zeros((len(rows.users), len(rows.labels)), dtype=np.intp)
    np.add.at(counts, (rows.user, rows.label), 1)
    options = tuple(sorted(rows.labels))
    if route == "python":
        user = rng.randrange(len(rows.users))
        total = int(counts[user].sum())
        return _number(PYTHON.format(user=rows.users[user]), total, len(rows.day) / len(rows.users))
    if route == "batch":
        label = rng.randrange(len(rows.labels))
        total = int(counts[:, label].sum())
        query = COUNT.format(label=rows.labels[label])
        return _number(query, total, len(rows.day) / len(rows.labels))
    if route == "one":
        line = _place(order, len(rows.user))
        query = ONE.format(user=rows.users[-1], labels=", ".join(options))
        gold = rows.labels[rows.label[line]]
        return _label(query, gold, options, "one", line / len(rows.day))
    ranked = np.sort(counts, axis=1)
    if (ranked[:, -1] == ranked[:, -2]).any():
        return None
    tops = np.bincount(counts.argmax(axis=1), minlength=len(rows.labels))
    if np.sort(tops)[-1] == np.sort(tops)[-2]:
        return None
    gold = rows.labels[int(tops.argmax())]
    return _label(CHILD.format(labels=", ".join(options)), gold, options, "child", None)


def _number(query: str, gold: int, guess: float) -> Question:
    return Question(
        query=query,
        gold=(str(gold),),
        answer_type="number",
        options=(str(round(guess)),),
        kind="batch" if query.startswith("How many instances should") else "python",
    )


def _label(
    query: str, gold: str, options: tuple[str, ...], kind: str, position: float | None
) -> Question:
    return Question(
        query=query,
        gold=(gold,),
        answer_type="label",
        options=options,
        kind=kind,
        position=position,
    )
