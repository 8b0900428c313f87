"""What a scoring rule is: what it reads of a question, and its two functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from fleet_rlm.scoring.robust import Judged


class Asked(Protocol):
    """What a rule reads of a question; `fleet_rlm.suites.sample.Question` is one."""

    @property
    def query(self) -> str:
        """What is asked."""

    @property
    def gold(self) -> tuple[str, ...]:
        """One value, or all values of a set."""

    @property
    def answer_type(self) -> str:
        """How an answer is read, see `fleet_rlm.suites.sample.AnswerType`."""

    @property
    def options(self) -> tuple[str, ...]:
        """Answers that need no context; () when there are none."""

    @property
    def kind(self) -> str:
        """Which question of the task this is; "" when it has one only."""


class Rule(NamedTuple):
    """One way of scoring: an answer, never empty, and its question to scores in [0, 1]."""

    official: Callable[[str, Asked], float]
    """The benchmark's own rule, bug for bug."""

    robust: Callable[[str, Asked], Judged]
    """Ours: tolerant of form, strict on content."""

    empty_gold: bool = False
    """Whether no gold answer at all means the empty set, not a missing one."""
