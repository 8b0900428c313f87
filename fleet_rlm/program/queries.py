"""The functions with which generated code asks models: sub-queries and children, one budget."""

from __future__ import annotations

import contextvars
import functools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.utils.exceptions import format_error_for_lm

from fleet_rlm.lm.cancel import check_cancelled
from fleet_rlm.lm.threads import start_in_thread
from fleet_rlm.program.events import emit
from fleet_rlm.program.recursion import RecursionSettings
from fleet_rlm.program.trail import SHOWN_CHARS, LlmQuery, Query, account, cut, digest, told

SUB_LM_SETTING = "fleet_sub_lm"
"""DSPy setting with the model for sub-queries: `with dspy.context(fleet_sub_lm=lm): ...`."""


class QueryRefused(RuntimeError):
    """A query over the budget. The model reads the message and can still answer."""


class Budget:
    """What one answer may ask for, shared by the root program and all of its children.

    Args:
        settings: `max_llm_calls`, `max_depth` and `max_children` of the root program.
    """

    def __init__(self, settings: RecursionSettings) -> None:
        self.max_depth = settings["max_depth"]
        self._calls_left = self._max_calls = settings["max_llm_calls"]
        self._children_left = self._max_children = settings["max_children"]
        self._lock = threading.Lock()

    def take_calls(self, count: int) -> None:
        """Reserve model calls.

        Raises:
            QueryRefused: fewer are left; none is taken.
        """
        with self._lock:
            if count > self._calls_left:
                used = self._max_calls - self._calls_left
                raise QueryRefused(
                    f"LLM call limit exceeded: {used} + {count} > {self._max_calls}. "
                    "Use Python code for aggregation instead of making more LLM calls."
                )
            self._calls_left -= count

    def take_children(self, count: int, depth: int) -> None:
        """Reserve child RLMs at `depth`.

        Raises:
            QueryRefused: too deep, or too many; none is taken.
        """
        if depth > self.max_depth:
            raise QueryRefused(
                f"Recursion limit reached: rlm_query is allowed to depth {self.max_depth}. "
                "Use llm_query on a smaller part, or Python code."
            )
        with self._lock:
            if count > self._children_left:
                raise QueryRefused(
                    f"Child limit exceeded: {count} more than the {self._children_left} left of "
                    f"{self._max_children}. Use llm_query on a smaller part, or Python code."
                )
            self._children_left -= count


AskChild = Callable[[str, Any], str]
"""Query and context (None: the parent's own inputs) -> the child's answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queries:
    """The query functions of one running program."""

    budget: Budget
    workers: int
    """Queries of one batch in flight."""

    timeout_s: float
    """Seconds that one sub-query may take, counted from its own start; 0 for no limit."""

    depth: int
    """Depth of the program that asks."""

    sub_lm: Any
    """Model for sub-queries; None for the caller's."""

    ask_child: AskChild

    note: Callable[[Query], None]
    """Told of each query once it is answered; may be called from several threads."""

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Name -> function, as generated code finds them."""
        found: dict[str, Callable[..., Any]] = {
            "llm_query": self.llm_query,
            "llm_query_batched": self.llm_query_batched,
        }
        if self.depth < self.budget.max_depth:
            found |= {"rlm_query": self.rlm_query, "rlm_query_batched": self.rlm_query_batched}
        return found

    def llm_query(self, prompt: str) -> str:
        """Query the LLM with a prompt string."""
        if not isinstance(prompt, str) or not prompt:
            raise ValueError("llm_query takes one non-empty prompt string")
        self.budget.take_calls(1)
        return self._ask_model(prompt)

    def llm_query_batched(self, prompts: Sequence[str]) -> list[str]:
        """Query prompts concurrently, in order; a failed one gives a string with [ERROR]."""
        prompts = _texts(prompts, "llm_query_batched takes a list of prompt strings")
        self.budget.take_calls(len(prompts))
        return self._in_parallel(self._ask_model, [(prompt,) for prompt in prompts])

    def rlm_query(self, query: str, context: Any = None) -> str:
        """Ask a child RLM; without a context it reads the same inputs."""
        if not isinstance(query, str) or not query:
            raise ValueError("rlm_query takes a non-empty query string")
        self.budget.take_children(1, self.depth + 1)
        return self.ask_child(query, context)

    def rlm_query_batched(self, queries: Sequence[str], contexts: Any = None) -> list[str]:
        """Ask child RLMs concurrently, in order; a failed one gives a string with [ERROR]."""
        queries = _texts(queries, "rlm_query_batched takes a list of query strings")
        given = [None] * len(queries) if contexts is None else list(contexts)
        if len(given) != len(queries):
            raise ValueError(f"{len(queries)} queries but {len(given)} contexts")
        self.budget.take_children(len(queries), self.depth + 1)
        return self._in_parallel(self.ask_child, list(zip(queries, given, strict=True)))

    def _ask_model(self, prompt: str) -> str:
        lm = self.sub_lm or dspy.settings.get(SUB_LM_SETTING) or dspy.settings.lm
        if lm is None:
            raise dspy.LMNotConfiguredError("No LM configured. Use dspy.configure(lm=...).")
        check_cancelled()
        emit("sub_query", prompt[:SHOWN_CHARS], chars=len(prompt))
        reply = failure = ""
        with account() as spent:
            try:
                found = (_within(self.timeout_s, lm, prompt) if self.timeout_s else lm(prompt))[0]
                reply = str(found["text"] if isinstance(found, dict) else found)
            except Exception as error:  # any: it is noted, and raised again
                failure = told(error)
                raise
            finally:
                query = LlmQuery(
                    kind="llm",
                    prompt=cut(prompt),
                    prompt_chars=len(prompt),
                    prompt_digest=digest(prompt),
                    reply=cut(reply),
                    reply_chars=len(reply),
                    **spent(),
                )
                self.note(query | {"error": failure} if failure else query)
        emit("sub_query", reply[:SHOWN_CHARS], chars=len(reply), answered=True)
        return reply

    def _in_parallel(self, ask: Callable[..., str], inputs: Sequence[tuple[Any, ...]]) -> list[str]:
        if not inputs:
            return []
        asked = [Future[str]() for _ in inputs]
        waiting = deque(zip(asked, inputs, strict=True))

        def answer() -> None:
            with suppress(IndexError):
                while True:
                    future, given = waiting.popleft()
                    # A context each: DSPy's settings, the ledger and the trace go with every call.
                    _settle(future, functools.partial(contextvars.copy_context().run, ask, *given))

        # The caller's thread takes its part: it has nothing else to do.
        others = [start_in_thread(answer) for _ in range(min(self.workers, len(inputs)) - 1)]
        answer()
        for other in others:
            other.result()
        return [_text_or_error(future) for future in asked]


def _settle(future: Future[Any], ask: Callable[[], Any]) -> None:
    try:
        future.set_result(ask())
    except BaseException as error:  # noqa: BLE001 - raised where the reply is awaited
        future.set_exception(error)


def _within(seconds: float, lm: Any, prompt: str) -> Any:
    """The reply, unless it takes longer: a call cannot be killed, so its late reply is dropped.

    Raises:
        QueryRefused: it took longer.
    """
    reply = start_in_thread(lambda: lm(prompt))
    try:
        return reply.result(seconds)
    except TimeoutError:
        if reply.done():
            raise  # the model's own
        raise QueryRefused(f"The sub-query took longer than {seconds:g} s. Ask for less.") from None


def _text_or_error(future: Future[str]) -> str:
    try:
        return future.result()
    except (dspy.LMError, QueryRefused) as error:
        return f"[ERROR] {format_error_for_lm(error)}"


def _texts(values: Any, complaint: str) -> list[str]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(complaint)
    if not all(isinstance(value, str) and value for value in values):
        raise ValueError(complaint)
    return list(values)
