"""Aggregate: count what lines are about, when no line says so.

After OOLONG-synth (abertsch72/oolong, MIT): dated lines of users, each with an instance that
belongs to one label; questions over all of them. Own sentences, own wording; what differs is that
counts are drawn first, so ties exist only where a question asks about one, and answers are balanced
over windows.
"""

from __future__ import annotations

from itertools import accumulate
from random import Random
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fleet_rlm.errors import DataError
from fleet_rlm.lexicon import SUBJECTS
from fleet_rlm.suites.generators.bank import BankParams
from fleet_rlm.suites.generators.base import FILL, Draft, Order, Params
from fleet_rlm.suites.generators.counting import OUTCOMES, Asker, Kind
from fleet_rlm.suites.generators.recount import recount
from fleet_rlm.suites.generators.rows import DAYS, Cells, Rows, doubles, make_rows, read_rows

_TARGET = 0.985
KINDS: list[Kind] = ["count", "most_common", "compare", "count_user"]
_COMPARING = frozenset({"compare", "before_after"})
_DATED = frozenset({"most_date", "second_date", "dates_n"})
_LEAD = 0.02  # OOLONG asks for the most common label only where it leads by more than 2 %


class AggregateParams(BankParams):
    """Knobs of `aggregate`."""

    labels: int = Field(default=len(SUBJECTS), ge=3, le=1000)
    """How many labels the instances are drawn from."""

    users: int = Field(default=12, ge=2, le=1000)
    """How many users write; the busiest write most (share falls with 1 / rank)."""

    kinds: list[Kind] = Field(
        default=["count", "most_common", "compare", "count_user"], min_length=1
    )
    """Kinds of questions, asked in rotation."""

    @model_validator(mode="after")
    def _has_labels(self) -> Self:
        self.check_labels(self.labels)
        return self


class Aggregate:
    """Writes `aggregate` windows."""

    name: ClassVar = "aggregate"
    version: ClassVar = 1
    rule: ClassVar = "aggregate"
    uses_corpus: ClassVar = False
    least: ClassVar = "1,000, and 500 for each label above six"
    max_questions: ClassVar = 8
    params: ClassVar[type[Params]] = AggregateParams

    def min_length(self, params: AggregateParams, questions: int) -> int:
        return 1000 + 500 * max(0, params.labels - len(SUBJECTS))

    def draft(self, order: Order, params: AggregateParams) -> Draft:
        labels = _ranked_labels(order, params)
        asked = _kinds(order, params)
        tie = any(outcome == "same frequency as" for _, outcome in asked)
        count = int(_TARGET * order.length) // 35  # tokens per line, header included
        for attempt in range(40):
            # A short text has few lines: where scaling leaps over the goal, others may meet it.
            rng = order.rng("lines" if attempt < 8 else f"lines {attempt}")
            rows = _draw_rows(rng, params, labels, count, tie=tie)
            tokens = rows.tokens
            if FILL * order.length < tokens <= order.length:
                asker = Asker(order, rows)
                questions = tuple(asker.ask(kind, outcome) for kind, outcome in asked)
                return Draft(blocks=rows.blocks(), tokens=tokens, questions=questions)
            count = int(count * _TARGET * order.length / tokens)
        raise DataError(f"aggregate found no number of lines that fills {order.length} tokens")

    def solve(self, params: AggregateParams, context: str, query: str) -> tuple[str, ...]:
        return (recount(read_rows(context, params.opened), query),)


def _ranked_labels(order: Order, params: AggregateParams) -> list[str]:
    """The window's labels, most common first: over the windows each label leads equally often."""
    labels = list(params.opened.labels)
    order.shared_rng("labels").shuffle(labels)
    chosen = labels[: params.labels]
    leader = chosen.pop(order.window % params.labels)
    order.rng("ranks").shuffle(chosen)
    return [leader, *chosen]


def _kinds(order: Order, params: AggregateParams) -> list[tuple[Kind, str]]:
    """Kind of each question, in rotation over questions and windows; the outcome of a comparison.

    A tie of two labels can be asked for once per window.
    """
    kinds = params.kinds
    start = order.shared_rng("outcomes").randrange(len(OUTCOMES))
    asked: list[tuple[Kind, str]] = []
    for index in range(order.window * order.questions, (order.window + 1) * order.questions):
        kind, turn = kinds[index % len(kinds)], index // len(kinds)
        outcome = OUTCOMES[(start + turn) % len(OUTCOMES)] if kind in _COMPARING else ""
        if kind == "most_common" and (kind, "") in asked:
            kind = "count_user"
        if kind == "before_after" or (kind, outcome) in asked:
            outcome = OUTCOMES[turn % 2] if outcome == OUTCOMES[2] else outcome
        asked.append((kind, outcome))
    return asked


def _label_counts(rng: Random, total: int, size: int, *, tie: bool) -> list[int]:
    """`size` counts that sum to `total`: falling, the first with a clear lead, and no two equal
    except, with `tie`, one pair behind the first."""
    for _ in range(100):
        ratio = rng.uniform(0.6, 0.9)
        weights = [ratio**rank for rank in range(size)]
        counts = [max(1, int(total * weight / sum(weights))) for weight in weights]
        for rank in range(size - 2, -1, -1):
            counts[rank] = max(counts[rank], counts[rank + 1] + 1)
        if tie:
            rank = rng.randrange(1, size - 1)
            counts[rank] = counts[rank + 1]
        counts[0] += total - sum(counts)
        if counts[0] - counts[1] > max(1, _LEAD * total):
            return counts
    raise DataError(f"aggregate found no label mix for {total} lines")


def _draw_rows(
    rng: Random, params: AggregateParams, labels: list[str], count: int, *, tie: bool
) -> Rows:
    counts = _label_counts(rng, count, len(labels), tie=tie)
    per_line = np.repeat(np.arange(len(labels)), counts).tolist()
    rng.shuffle(per_line)
    users = rng.sample(range(10_000, 100_000), params.users)
    shares = list(accumulate(1 / rank for rank in range(1, params.users + 1)))
    writers = rng.choices(range(params.users), cum_weights=shares, k=len(per_line))
    cells = Cells(np.array(per_line), np.array(writers))
    days = _skewed_days(rng, len(per_line)) if _DATED.intersection(params.kinds) else None
    return make_rows(rng, params.opened, labels, users, cells, days)


def _skewed_days(rng: Random, count: int) -> NDArray[np.intp]:
    """Days of which a few are clearly the most common, wherever they lie."""
    days = list(range(DAYS))
    rng.shuffle(days)
    luck = doubles(rng, count)
    rng.random()  # what follows draws other numbers
    return np.array(days)[(luck**1.5 * DAYS).astype(np.intp)]
