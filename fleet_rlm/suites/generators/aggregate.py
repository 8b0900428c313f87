"""Aggregate: count what lines are about, when no line says so.

After OOLONG-synth (abertsch72/oolong, MIT): dated lines of users, each with an instance that
belongs to one label; questions over all of them. Own sentences, own wording; what differs is that
counts are drawn first, so ties exist only where a question asks about one, and answers are balanced
over windows.
"""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from random import Random
from typing import ClassVar, NamedTuple

from pydantic import Field

from fleet_rlm.errors import DataError
from fleet_rlm.lexicon import SUBJECTS
from fleet_rlm.suites.generators.base import FILL, Order, Params
from fleet_rlm.suites.sample import Question, Window
from fleet_rlm.suites.tokens import count_tokens

HEADER = (
    "The following lines contain {n} instances, one per line. Each line has a date, a user and an"
    " instance. Every instance belongs to exactly one of these labels: {labels}."
)
COUNT = (
    "How many instances should be classified as label '{label}'?"
    " Give your final answer in the form 'Answer: number'."
)
MOST_COMMON = (
    "Which of the labels is the most common in the instances? Give your final answer in the form"
    " 'Label: answer', where answer is one of the labels: {labels}."
)
COMPARE = (
    "Is label '{a}' more common than, less common than, or as common as (same frequency) label"
    " '{b}'? Give your final answer in the form 'Answer: {a} is [X] label {b}', where [X] is"
    " 'more common than', 'less common than' or 'same frequency as'."
)
COUNT_USER = (
    "Among the instances of user {user}, how many should be classified as label '{label}'?"
    " Give your final answer in the form 'Answer: number'."
)
KINDS = ("count", "most_common", "compare", "count_user")
OUTCOMES = ("more common than", "less common than", "same frequency as")

FRAMES = (
    "Nobody at the meeting expected a remark about the {word}",
    "We spent half of the morning talking about the {word}",
    "My neighbour still tells the story of the {word}",
    "The report mentions the {word} on the second page",
    "Could someone explain to me what happened with the {word}",
    "A long paragraph about the {word} was cut from the article",
    "Everybody remembered the {word} from that day",
    "She wrote the word {word} at the top of an empty page",
    "There was a photograph of the {word} in the hallway",
    "I promised the children a short talk on the {word}",
    "It took us a while to understand why the {word} mattered",
    "The guide pointed at a drawing of the {word} and smiled",
    "His letter ended with an odd joke about the {word}",
    "Two of the visitors argued over the {word}",
    "The quiz had a difficult question on the {word}",
    "Please file the note regarding the {word} before Friday",
    "For some reason the {word} came up again at the office",
    "The first chapter opens with the {word}",
    "They named the project after the {word}",
    "Somebody had left a message about the {word} on the desk",
)
TAILS = (
    "",
    ", as far as I can recall",
    ", and that was the end of it",
    ", which surprised most of us",
    ", at least according to Dana",
    ", though nobody had asked",
    " and then went home",
    ", or so we were told",
    ", just before the lights went out",
    ", and not for the last time",
    ", which is hardly worth mentioning",
    " while the others were waiting",
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DATES = tuple(
    f"{_MONTHS[month % 12]} {day:02d}, {2021 + month // 12}"
    for month in range(40)
    for day in range(1, 29)
)
_TARGET = 0.985
_LEAD = 0.02  # OOLONG asks for the most common label only where it leads by more than 2 %


class AggregateParams(Params):
    labels: int = Field(default=len(SUBJECTS), ge=3, le=len(SUBJECTS))
    """How many labels the instances are drawn from."""

    users: int = Field(default=12, ge=2, le=1000)
    """How many users write; the busiest write most (share falls with 1 / rank)."""


class Row(NamedTuple):
    """One instance."""

    user: int
    label: str


class Aggregate:
    """Writes `aggregate` windows."""

    name: ClassVar = "aggregate"
    version: ClassVar = 1
    rule: ClassVar = "aggregate"
    uses_corpus: ClassVar = False
    max_questions: ClassVar = 8
    params: ClassVar[type[Params]] = AggregateParams

    def min_length(self, params: AggregateParams, questions: int) -> int:
        return 1000

    def build(self, order: Order, params: AggregateParams) -> Window:
        labels = _ranked_labels(order, params.labels)
        asked = _kinds(order)
        tie = any(outcome == "same frequency as" for _, outcome in asked)
        count = int(_TARGET * order.length) // 35  # tokens per line, header included
        for _ in range(8):
            rng = order.rng("lines")
            counts = _label_counts(rng, count, len(labels), tie=tie)
            rows = _rows(rng, dict(zip(labels, counts, strict=True)), params.users)
            context = _render(rng, rows, sorted(labels))
            tokens = count_tokens(context)
            if FILL * order.length < tokens <= order.length:
                questions = _questions(order.rng("questions"), asked, rows, labels)
                return Window(context=context, tokens=tokens, questions=questions)
            count = int(count * _TARGET * order.length / tokens)
        raise DataError(f"aggregate found no number of lines that fills {order.length} tokens")


def _ranked_labels(order: Order, size: int) -> list[str]:
    """The window's labels, most common first: over the windows each label leads equally often."""
    labels = sorted(SUBJECTS)
    order.shared_rng("labels").shuffle(labels)
    chosen = labels[:size]
    leader = chosen.pop(order.window % size)
    order.rng("ranks").shuffle(chosen)
    return [leader, *chosen]


def _kinds(order: Order) -> list[tuple[str, str]]:
    """Kind of each question, in rotation over questions and windows; the outcome of a comparison.

    "most_common" can be asked once per window, and so can the one tie there is.
    """
    start = order.shared_rng("outcomes").randrange(len(OUTCOMES))
    asked: list[tuple[str, str]] = []
    for index in range(order.window * order.questions, (order.window + 1) * order.questions):
        kind = KINDS[index % len(KINDS)]
        outcome = (
            OUTCOMES[(start + index // len(KINDS)) % len(OUTCOMES)] if kind == "compare" else ""
        )
        if kind == "most_common" and (kind, "") in asked:
            kind = "count_user"
        if ("compare", "same frequency as") in asked and outcome == "same frequency as":
            outcome = OUTCOMES[index // len(KINDS) % 2]
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


def _rows(rng: Random, counts: dict[str, int], users: int) -> list[Row]:
    labels = [label for label, count in counts.items() for _ in range(count)]
    rng.shuffle(labels)
    ids = rng.sample(range(10_000, 100_000), users)
    shares = list(accumulate(1 / rank for rank in range(1, users + 1)))
    writers = rng.choices(ids, cum_weights=shares, k=len(labels))
    return [Row(user, label) for user, label in zip(writers, labels, strict=True)]


def _render(rng: Random, rows: list[Row], labels: list[str]) -> str:
    def pick(items: tuple[str, ...]) -> str:
        return items[int(rng.random() * len(items))]

    lines = [HEADER.format(n=len(rows), labels=", ".join(labels)), ""]
    for user, label in rows:
        sentence = f"{pick(FRAMES)}{pick(TAILS)}.".replace("{word}", pick(SUBJECTS[label]))
        lines.append(f"Date: {pick(_DATES)} || User: {user} || Instance: {sentence}")
    lines.append("")
    return "\n".join(lines)


def _questions(
    rng: Random, asked: list[tuple[str, str]], rows: list[Row], labels: list[str]
) -> tuple[Question, ...]:
    counts = Counter(row.label for row in rows)
    per_user = Counter(rows)
    lines_of = Counter(row.user for row in rows)
    to_count = rng.sample(labels, len(labels))
    to_compare = _pairs(rng, labels, counts)
    to_count_user = _busiest_last(rng, per_user, lines_of)
    listed = ", ".join(sorted(labels))
    made: list[Question] = []
    for kind, outcome in asked:
        if kind == "count":
            label = to_count.pop()
            query, gold = COUNT.format(label=label), str(counts[label])
            made.append(_number(query, gold, kind, len(rows) / len(labels)))
        elif kind == "count_user":
            row = to_count_user.pop()
            query, gold = COUNT_USER.format(user=row.user, label=row.label), str(per_user[row])
            made.append(_number(query, gold, kind, lines_of[row.user] / len(labels)))
        elif kind == "most_common":
            made.append(
                Question(
                    query=MOST_COMMON.format(labels=listed),
                    gold=(labels[0],),
                    answer_type="label",
                    options=tuple(sorted(labels)),
                    kind=kind,
                )
            )
        else:
            a, b = to_compare[outcome == OUTCOMES[2]].pop()
            if (outcome == OUTCOMES[0]) != (counts[a] > counts[b]):
                a, b = b, a
            made.append(
                Question(
                    query=COMPARE.format(a=a, b=b),
                    gold=(outcome,),
                    answer_type="comparison",
                    options=OUTCOMES,
                    kind=kind,
                )
            )
    return tuple(made)


def _number(query: str, gold: str, kind: str, guess: float) -> Question:
    # The guess of someone who counts lines but reads none: the floor of this question.
    return Question(
        query=query, gold=(gold,), answer_type="number", options=(str(round(guess)),), kind=kind
    )


def _busiest_last(rng: Random, per_user: Counter[Row], lines_of: Counter[int]) -> list[Row]:
    """Users with their labels in random order, the busiest quarter of users last.

    A count of one or two is guessed too easily: 0.75 ** difference forgives being off by one.
    """
    busy = {user for user, _ in lines_of.most_common(max(2, len(lines_of) // 4))}
    rows = rng.sample(sorted(per_user), len(per_user))
    return sorted(rows, key=lambda row: row.user in busy)


def _pairs(
    rng: Random, labels: list[str], counts: Counter[str]
) -> dict[bool, list[tuple[str, str]]]:
    """Pairs of labels in random order, by whether their counts are equal."""
    pairs = [(a, b) for i, a in enumerate(labels) for b in labels[i + 1 :]]
    rng.shuffle(pairs)
    return {
        equal: [(a, b) for a, b in pairs if (counts[a] == counts[b]) is equal]
        for equal in (True, False)
    }
