"""A `dspy.LM` that asks the sample's ledger before each call and books what the call cost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any

import dspy

from fleet_rlm.ledger import Ledger, Role, Usage
from fleet_rlm.lm.cancel import cancel_scope
from fleet_rlm.lm.plain import Plain, ask, is_plain
from fleet_rlm.lm.prices import Price
from fleet_rlm.lm.threads import in_thread
from fleet_rlm.lm.throttle import TRIES, Attempts, Gate

LEDGER_SETTING = "fleet_ledger"
"""DSPy setting that carries the ledger: `with dspy.context(fleet_ledger=ledger): program(...)`."""


last_usage: ContextVar[Usage | None] = ContextVar("fleet_last_usage", default=None)
"""What the call that ended last in this context was billed; None when a cache answered it."""


def current_ledger() -> Ledger | None:
    """The ledger of the sample that runs in this context, if any."""
    ledger: Ledger | None = dspy.settings.get(LEDGER_SETTING)
    return ledger


class MeteredLM(dspy.LM):
    """An LM whose calls are limited, booked and retried, in every thread with DSPy's settings.

    Args:
        model: name as `dspy.LM` takes it.
        role: who spends: "root" or "sub".
        price: dollars per million tokens.
        gate: shared by the models of a run; one of its own when absent.
        abort: ends the call that a thread waits for, by the thread's ident; None where calls cannot
            be ended from outside.
        tries: attempts at a call that fails for another reason than overload.
        settings: everything else that `dspy.LM` takes.

    Raises:
        LimitReached: from a call, when the sample's ledger has met a limit.
        BudgetExhausted: from a call, when the run has met a cap.
        LMError: from a call that failed for good.
    """

    def __init__(
        self,
        model: str,
        *,
        role: Role,
        price: Price,
        gate: Gate | None = None,
        abort: Callable[[int], None] | None = None,
        tries: int = TRIES,
        **settings: Any,
    ) -> None:
        # Retries are ours: dspy's have no jitter, know no limit, and do not retry torn replies.
        super().__init__(model, **{"num_retries": 0, **settings})
        self.role: Role = role
        self.price = price
        self.gate = gate or Gate()
        self._abort = abort
        self._tries = tries
        self._plain: Plain | None = None

    def __call__(self, prompt: Any = None, **kwargs: Any) -> Any:
        attempts = Attempts(self.gate, current_ledger(), self._tries)
        while True:
            attempts.begin()
            started = time.monotonic()
            try:
                with self._abortable():
                    reply = self._ask(prompt, kwargs)
            except BaseException as error:  # noqa: BLE001 - `failed` raises what is not retried
                again, why = attempts.failed(error), error
            else:
                attempts.ended()
                self._book_time(started)
                return reply
            attempts.wait(again, why)

    def _ask(self, prompt: Any, given: dict[str, Any]) -> Any:
        if is_plain(self):
            if self._plain is None or not self._plain.fits(self):
                self._plain = Plain(self)
            request = self._plain.request(self, prompt, given)
            if request is not None:
                return ask(self, request, given.get("messages"))
        return super().__call__(prompt, **given)

    async def acall(self, prompt: Any = None, **kwargs: Any) -> Any:
        if dspy.settings.send_stream is None:
            return await in_thread(lambda: self(prompt, **kwargs))
        # A stream that has begun cannot be taken back, so it is one attempt.
        attempts = Attempts(self.gate, current_ledger(), self._tries)
        attempts.begin()
        started = time.monotonic()
        try:
            reply = await super().acall(prompt, **kwargs)
        except BaseException as error:  # a cancelled call, too, gives its place at the gate back
            attempts.failed(error)
            raise
        attempts.ended()
        self._book_time(started)
        return reply

    def update_history(self, entry: dict[str, Any]) -> None:
        """Book one finished call; dspy calls this in the caller's context, also for sub-calls.

        The entry itself is dropped: kept prompts would grow without bound (100 MB at 500 samples in
        flight).
        """
        ledger = current_ledger()
        usage = entry.get("usage") or {}
        cost = self._cost(usage) if usage else None
        last_usage.set(cost)
        if ledger is None:
            return
        if cost is not None:
            ledger.book(self.role, cost)
        elif original := _cached_usage(entry.get("response")):
            would_be = self._cost(original)
            ledger.book(self.role, Usage(calls=1, cache_hits=1, saved_usd=would_be.usd))

    def __deepcopy__(self, _memo: object) -> MeteredLM:
        # Optimizers copy programs several times a trial; a model has no state worth a copy.
        return self

    def _cost(self, usage: dict[str, Any]) -> Usage:
        details = usage.get("prompt_tokens_details") or {}
        return self.price.cost(
            input_tokens=usage.get("prompt_tokens") or 0,
            output_tokens=usage.get("completion_tokens") or 0,
            cached_tokens=details.get("cached_tokens") or 0,
        )

    def _book_time(self, started: float) -> None:
        ledger = current_ledger()
        if ledger is not None:
            ledger.book(self.role, Usage(seconds=time.monotonic() - started))

    def _abortable(self) -> Any:
        scope = cancel_scope()
        if scope is None or self._abort is None:
            return nullcontext()
        abort, thread = self._abort, threading.get_ident()
        return scope.guard(lambda: abort(thread))


def _cached_usage(response: Any) -> dict[str, Any]:
    """The usage that a response had when it was paid for."""
    responses = response if isinstance(response, list | tuple) else [response]
    usage = getattr(responses[0], "usage", None) if responses else None
    if usage is None:
        return {}
    if isinstance(usage, dict):
        return usage
    return {
        "prompt_tokens": getattr(usage, "input_tokens", None),
        "completion_tokens": getattr(usage, "output_tokens", None),
    }
