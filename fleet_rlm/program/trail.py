"""What one answer did: its steps, what each asked and spent, and below a child its own steps."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NotRequired, TypedDict

import dspy

from fleet_rlm.ledger import Ledger, Usage
from fleet_rlm.lm.metered import LEDGER_SETTING, current_ledger
from fleet_rlm.program.context_ref import shorten

SHOWN_CHARS = 2_000
"""Characters of a prompt or reply that events and steps carry; the rest is told by its length."""


class Spent(TypedDict):
    """What one step or query took."""

    seconds: float
    usage: dict[str, float]
    """As `Usage.to_json`, all roles and all that it led to; zeros where nothing is booked."""


class LlmQuery(Spent):
    """One question to the sub-model."""

    kind: Literal["llm"]
    prompt: str
    """Its two ends, `SHOWN_CHARS` at most."""

    prompt_chars: int
    prompt_digest: str
    """Equal for equal prompts of any length."""

    reply: str
    """Empty when it failed."""

    reply_chars: int


class RlmQuery(Spent):
    """One child."""

    kind: Literal["rlm"]
    query: str
    context_chars: int
    """Characters of the text that it was given; 0 for what is no text."""

    answer: str
    stop: str
    """How the child ended, as a record's `stop`; "error" when it failed."""

    steps: list[Step]


Query = LlmQuery | RlmQuery


class Step(TypedDict):
    """One turn with the REPL."""

    reasoning: str
    code: str
    output: str
    """As the model was shown it."""

    seconds: NotRequired[float]
    """From the end of the step before."""

    usage: NotRequired[dict[str, float]]
    """Of the action and of all that its code asked."""

    queries: NotRequired[list[Query]]
    """In the order of their ends."""


class Trail:
    """The steps of one running program. Queries may be noted from any thread."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._queries: list[Query] = []
        self._lock = threading.Lock()
        self._since = time.monotonic()
        self._spent = _total()

    def note(self, query: Query) -> None:
        """Add a finished query to the step that is under way."""
        with self._lock:
            self._queries.append(query)

    def end_step(self, reasoning: str, code: str, output: str) -> None:
        """Close the step that is under way."""
        now, total = time.monotonic(), _total()
        with self._lock:
            queries, self._queries = self._queries, []
        self.steps.append(
            Step(
                reasoning=reasoning,
                code=code,
                output=output,
                seconds=round(now - self._since, 3),
                usage=(total - self._spent).to_json(),
                queries=queries,
            )
        )
        self._since, self._spent = now, total


@contextmanager
def account() -> Iterator[Callable[[], Spent]]:
    """Book what the block spends in an account of its own as well; gives what it took so far."""
    started = time.monotonic()
    ledger = current_ledger()
    own = ledger.branch() if ledger is not None else Ledger()

    def spent() -> Spent:
        return Spent(seconds=round(time.monotonic() - started, 3), usage=own.total.to_json())

    with dspy.context(**{LEDGER_SETTING: own}):
        yield spent


def cut(text: str) -> str:
    """The two ends of a text, or all of a short one."""
    return shorten(text, SHOWN_CHARS)


def digest(text: str) -> str:
    """Equal for equal texts."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _total() -> Usage:
    ledger: Any = current_ledger()
    return Usage() if ledger is None else ledger.total
