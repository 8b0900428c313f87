"""One question with its context and gold answer, as every generator and adapter hands it over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from fleet_rlm.scoring.rule import Asked

AnswerType = Literal[
    "exact",
    "set",
    "any",
    "number",
    "label",
    "comparison",
    "user",
    "date",
    "month_year",
    "pairs",
    "lines",
    "text",
]
"""How an answer is read: one value, a set of values, any one of several, an integer, an option, a
comparison phrase, a user's number, a day as MM/DD/YYYY, a month, pairs of users, values on a line
each, a verbatim text.
"""


class AnyQuestion(Asked, Protocol):
    """A question wherever its gold answer is kept: in memory, or with the scorer until it asks."""

    @property
    def position(self) -> float | None:
        """Where the evidence stands, 0.0 first to 1.0 last; None when it is everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question on a window."""

    query: str
    """What is asked, with the form of the answer; never holds the gold answer."""

    gold: tuple[str, ...]
    """One value, or all values of a set. Never crosses into a prompt or a sandbox."""

    answer_type: AnswerType
    options: tuple[str, ...] = ()
    """Answers that need no context: labels, comparison phrases, an even share. Give the floor."""

    kind: str = ""
    """Which question of the task this is: "most_common", "count_user", ..."""

    position: float | None = None
    """Where the evidence stands, 0.0 first to 1.0 last; None when it is everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One context and all questions asked of it. Its samples share a cluster."""

    context: str
    tokens: int
    """Length of `context` in tokens of `fleet_rlm.suites.tokens.TOKENIZER`."""

    questions: tuple[AnyQuestion, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One question with its context and gold answer."""

    id: str
    """Stable across machines: task, length, window, question, and a digest of what shapes them."""

    task: str
    cluster: str
    """The context's id: samples of one cluster are not independent."""

    length: int
    """Target length of the context in tokens; the bucket that reports group by."""

    context: str = field(repr=False)
    tokens: int
    question: AnyQuestion

    @property
    def query(self) -> str:
        """What is asked."""
        return self.question.query
