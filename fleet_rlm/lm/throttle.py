"""How many model calls are in flight, and when a failed one is tried again.

The number adapts as TCP's window does (Chiu and Jain 1989): it has no limit until a service says
"too many", is then cut to a part of what was in flight, and grows again by a little for each round
of answers. Every process of a run shares the same limit.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import dspy

from fleet_rlm.board import Board, Column, Head
from fleet_rlm.ledger import Ledger
from fleet_rlm.lm.cancel import check_cancelled, pause

CUT = 0.8
"""Part of the calls in flight that stays after an overload."""

GROWTH = 0.05
"""Part of the limit that a clean round adds, one call at least."""

TESTED = 0.8
"""Share of the limit that a round must have used: an unused limit proves nothing."""

SHORTEST_CUT_S = 1.0
"""Answers that come this soon after a cut were asked before it."""

TRIES = 5
"""Usual attempts at a call that fails for other reasons than overload."""

PATIENCE_S = 900.0
"""How long one call waits in all for a service that says "too many"."""

LONGEST_DELAY_S = 60.0
SHORTEST_DELAY_S = 0.02
"""A service that says "too many" and asks for no wait at all is not asked again sooner."""

RECHECK_S = 0.02
"""How often a waiting call looks whether another process has made room."""

OVERLOADED_STATUS = frozenset({429, 503, 529})


class Gate:
    """Lets model calls through, no more at a time than the services take.

    Args:
        board: shared with the other processes of a run; one of its own when absent.
        clock: seconds, monotonic.
    """

    def __init__(
        self, board: Board | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.board = board or Board()
        self._clock = clock
        self._room = threading.Condition()

    @property
    def limit(self) -> int | None:
        """Calls that may be in flight; None while no service has complained."""
        limit = self.board.read(Head.LIMIT)
        return int(limit) if limit else None

    def enter(self, ledger: Ledger | None) -> None:
        """Wait for room, which is no working time of the sample.

        Raises:
            Cancelled: the running program was cancelled meanwhile.
            LimitReached: the sample met a limit meanwhile.
        """
        if self._take():
            return
        self.board.add(Column.WAITING, 1)
        try:
            with ledger.waiting() if ledger else nullcontext():
                while not self._take():
                    with self._room:
                        self._room.wait(RECHECK_S)
                    check_cancelled()
                    if ledger is not None:
                        ledger.check()
        finally:
            self.board.add(Column.WAITING, -1)

    def leave(self) -> None:
        """The call has ended, well or not."""
        self.board.add(Column.IN_FLIGHT, -1)
        if self.board.read(Head.LIMIT):
            with self._room:
                self._room.notify()

    def answered(self) -> None:
        """A call was answered; after a clean round there is room for more."""
        if not self.board.read(Head.LIMIT):
            return
        with self.board.head() as head:
            if self._clock() < head[Head.CUT_UNTIL]:
                return
            head[Head.ANSWERED] += 1
            limit = head[Head.LIMIT]
            if head[Head.ANSWERED] < max(4, int(limit)):
                return
            if head[Head.PEAK] >= TESTED * int(limit):
                head[Head.LIMIT] = limit + max(1.0, GROWTH * limit)
            head[Head.ANSWERED] = head[Head.PEAK] = 0.0

    def overloaded(self, in_flight: float, retry_after_s: float) -> None:
        """A service said "too many": cut the limit, once for each burst of complaints.

        Args:
            in_flight: calls in flight when it said so.
            retry_after_s: what it asked to wait; 0 when it did not say.
        """
        with self.board.head() as head:
            now = self._clock()
            if now < head[Head.CUT_UNTIL]:
                return
            reached = min(head[Head.LIMIT] or in_flight, in_flight)
            head[Head.LIMIT] = max(1.0, CUT * reached)
            head[Head.CUT_UNTIL] = now + max(SHORTEST_CUT_S, retry_after_s)
            head[Head.ANSWERED] = head[Head.PEAK] = 0.0
            head[Head.CUTS] += 1

    def _take(self) -> bool:
        limit = self.board.read(Head.LIMIT)
        if not limit:
            self.board.add(Column.IN_FLIGHT, 1)
            return True
        with self.board.head() as head:
            in_flight = self.board.total(Column.IN_FLIGHT)
            if in_flight >= max(1, int(head[Head.LIMIT])):
                return False
            self.board.add(Column.IN_FLIGHT, 1)
            head[Head.PEAK] = max(head[Head.PEAK], in_flight + 1)
            return True


@dataclass(slots=True)
class Attempts:
    """The attempts at one model call. Used by the thread or task that makes the call:
    `begin`, the call, then `ended` or `failed`."""

    gate: Gate
    ledger: Ledger | None
    tries: int = TRIES
    tried: int = 0
    waited_s: float = 0.0

    def begin(self) -> None:
        """Wait for room.

        Raises:
            LimitReached, BudgetExhausted: nothing is left to spend.
            Cancelled: the running program was cancelled.
        """
        check_cancelled()
        if self.ledger is not None:
            self.ledger.check()
        self.gate.enter(self.ledger)

    def ended(self) -> None:
        """The call was answered."""
        self.gate.leave()
        self.gate.answered()

    def failed(self, error: BaseException) -> float:
        """The call failed; gives the seconds to wait before the next attempt.

        Raises:
            BaseException: `error`, when another attempt would not help.
            Cancelled: the running program was cancelled, which is why the call failed.
        """
        in_flight = self.gate.board.total(Column.IN_FLIGHT)
        self.gate.leave()
        check_cancelled()
        self.tried += 1
        if is_overload(error):
            hint = getattr(error, "retry_after", None)
            self.gate.overloaded(in_flight, hint or 0.0)
            delay = backoff(self.tried) if hint is None else max(hint, SHORTEST_DELAY_S)
            delay = with_jitter(delay)
            self.waited_s += delay
            if self.waited_s > PATIENCE_S:
                raise error
            return delay
        if not is_transient(error) or self.tried >= self.tries:
            raise error
        return with_jitter(backoff(self.tried))

    def wait(self, seconds: float, error: BaseException) -> None:
        """Wait between two attempts; after an overload that is no working time.

        Raises:
            Cancelled: the running program was cancelled meanwhile.
        """
        waiting = self.ledger.waiting() if self.ledger and is_overload(error) else nullcontext()
        self.gate.board.add(Column.WAITING, 1)
        try:
            with waiting:
                pause(seconds)
        finally:
            self.gate.board.add(Column.WAITING, -1)


def is_overload(error: BaseException) -> bool:
    """Whether the service said that it gets too many requests."""
    if isinstance(error, dspy.LMRateLimitError):
        return True
    return isinstance(error, dspy.LMError) and error.status in OVERLOADED_STATUS


def is_transient(error: BaseException) -> bool:
    """Whether the same call may well succeed a moment later.

    A reply with status 200 that cannot be read (a bare `LMProviderError`) is the work of a broken
    connection or gateway; dspy does not retry it.
    """
    transient = (dspy.LMServerError, dspy.LMTimeoutError, dspy.LMTransportError)
    return isinstance(error, transient) or type(error) is dspy.LMProviderError


def backoff(tried: int) -> float:
    """Seconds before the next attempt when the service gave no hint: 0.5, 1, 2, ... 60."""
    return min(LONGEST_DELAY_S, 0.5 * 2.0 ** (tried - 1))


def with_jitter(seconds: float) -> float:
    """Up to a quarter longer: calls that failed together must not come back together."""
    return seconds * (1 + 0.25 * random.random())
