"""What one answer did: its steps, what each asked and spent, and below a child its own steps."""

from __future__ import annotations

import functools
import hashlib
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NotRequired, TypedDict

import dspy

from fleet_rlm.errors import one_line
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

    after_s: NotRequired[float]
    """From the start of the step that it belongs to until it was asked."""

    error: NotRequired[str]
    """Why it failed, on one line; absent when it did not."""


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


class ToolCall(Spent):
    """One call of a tool of the program's own."""

    kind: Literal["tool"]
    name: str
    arguments: str
    """By name, as Python writes them; its two ends, `SHOWN_CHARS` at most."""

    result: str
    """The same; empty when it failed."""


Query = LlmQuery | RlmQuery | ToolCall


class Step(TypedDict):
    """One turn with the REPL."""

    reasoning: str
    code: str
    output: str
    """As the model was shown it."""

    seconds: NotRequired[float]
    """From the end of the step before."""

    start_s: NotRequired[float]
    """The part of it in which a sandbox session was started; absent when none was."""

    think_s: NotRequired[float]
    """The part of it in which the model wrote its action; what is left, its code ran."""

    usage: NotRequired[dict[str, float]]
    """Of the action and of all that its code asked."""

    queries: NotRequired[list[Query]]
    """In the order of their ends."""


class _Laps(TypedDict, total=False):
    start_s: float
    think_s: float


class Trail:
    """The steps of one running program. Queries may be noted from any thread."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._queries: list[Query] = []
        self._lock = threading.Lock()
        self._since = self._lap = time.monotonic()
        self._laps: _Laps = {}
        self._spent = _total()

    def note(self, query: Query) -> None:
        """Add a finished query to the step that is under way."""
        after_s = time.monotonic() - self._since - query["seconds"]
        query["after_s"] = max(round(after_s, 3), 0.0)
        with self._lock:
            self._queries.append(query)

    def lap(self, part: Literal["start_s", "think_s"]) -> None:
        """Book the time since the last lap, or the step's start, under this part of the step."""
        now = time.monotonic()
        self._laps[part] = round(self._laps.get(part, 0.0) + now - self._lap, 3)
        self._lap = now

    def watched(self, name: str, tool: Callable[..., Any]) -> Callable[..., Any]:
        """`tool`, each call of which is noted. Its signature stays; it is called by name alone."""
        signature = inspect.signature(tool)

        def named(given: tuple[Any, ...], arguments: dict[str, Any]) -> dict[str, Any]:
            # dspy's tools take no positional arguments, and models write them.
            return signature.bind_partial(*given).arguments | arguments if given else arguments

        if inspect.iscoroutinefunction(tool):

            @functools.wraps(tool)
            async def call(*given: Any, **arguments: Any) -> Any:
                arguments = named(given, arguments)
                with self._noted(name, arguments) as results:
                    results.append(await tool(**arguments))
                return results[0]
        else:

            @functools.wraps(tool)
            def call(*given: Any, **arguments: Any) -> Any:
                arguments = named(given, arguments)
                with self._noted(name, arguments) as results:
                    results.append(tool(**arguments))
                return results[0]

        return call

    @contextmanager
    def _noted(self, name: str, arguments: dict[str, Any]) -> Iterator[list[Any]]:
        results: list[Any] = []
        failure = ""
        with account() as spent:
            try:
                yield results
            except Exception as error:  # any: it is noted, and raised again
                failure = told(error)
                raise
            finally:
                call = ToolCall(
                    kind="tool",
                    name=name,
                    arguments=cut(", ".join(f"{key}={item!r}" for key, item in arguments.items())),
                    result=cut(str(results[0])) if results else "",
                    **spent(),
                )
                self.note(call | {"error": failure} if failure else call)

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
                **self._laps,
                usage=(total - self._spent).to_json(),
                queries=queries,
            )
        )
        self._since = self._lap = now
        self._laps, self._spent = {}, total


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


def told(error: Exception) -> str:
    """A failure on one line, cut."""
    return one_line(f"{type(error).__name__}: {error}")


def digest(text: str) -> str:
    """Equal for equal texts."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _total() -> Usage:
    ledger: Any = current_ledger()
    return Usage() if ledger is None else ledger.total
