"""A run's caps: what is left of them, whether another sample may start, when to warn."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from fleet_rlm.board import Board, Column
from fleet_rlm.errors import BudgetExhausted
from fleet_rlm.ledger import Caps, Purse, Usage, check_caps
from fleet_rlm.runner.record import Record

WARN_AT = (0.5, 0.8)
"""Shares of a cap at which a run says so."""

RESERVED_SHARE = 0.9
"""A sample is expected to cost no more than this share of the finished ones did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """What earlier sessions of a run have used."""

    usd: float = 0.0
    tokens: int = 0
    seconds: float = 0.0


class RunPurse:
    """The caps of a run, as each of its processes sees them; see `ledger.Purse`.

    Checked before each call, so that no more is spent beyond a cap than by the calls then in
    flight.

    Args:
        caps: what the run may use, over all of its sessions.
        board: where the processes of this session book.
        before: what earlier sessions used.
        started: monotonic time at which this session began; the same clock in every process.
        outer: what a larger whole may spend that this run is a part of.
        calls: where calls in flight are counted; `board` when absent.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        caps: Caps,
        board: Board,
        before: Before,
        started: float,
        *,
        outer: Purse | None = None,
        calls: Board | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.caps = caps
        self.board = board
        self.before = before
        self.started = started
        self._outer = outer
        self.calls = calls or board
        self._clock = clock

    def book(self, usage: Usage) -> None:
        """Take one call's usage out, or a sandbox's."""
        if self._outer is not None:
            self._outer.book(usage)
        if usage.calls:
            self.board.add(Column.CALLS, usage.calls)
            self.board.add(Column.TOKENS, usage.tokens)
        if usage.usd:
            self.board.add(Column.USD, usage.usd)

    def check(self) -> None:
        """Called before each model call.

        Raises:
            BudgetExhausted: a cap is met, of the run or of what it is a part of.
        """
        if self._outer is not None:
            self._outer.check()
        caps = self.caps
        if caps.usd is None and caps.tokens is None and caps.seconds is None:
            return
        check_caps(caps, usd=self.usd, tokens=self.tokens, seconds=self.seconds)

    @property
    def usd(self) -> float:
        """Dollars spent, by all sessions."""
        return self.before.usd + self.board.total(Column.USD)

    @property
    def tokens(self) -> float:
        """Tokens used, by all sessions."""
        return self.before.tokens + self.board.total(Column.TOKENS)

    @property
    def seconds(self) -> float:
        """Seconds of running, of all sessions."""
        return self.before.seconds + self._clock() - self.started


class Reserve:
    """Keeps back what the samples in flight will cost, so that few are begun and not finished.

    A sample that a cap cuts off is owed again, and what it cost is lost. So none is started unless
    the caps have room for it and for those in flight, each taken at the 90th percentile of the
    finished ones.

    Args:
        purse: the caps.
    """

    def __init__(self, purse: RunPurse) -> None:
        self._purse = purse
        self._settled_usd = purse.usd
        self._settled_tokens = purse.tokens
        self._usd: list[float] = []
        self._tokens: list[float] = []
        self._warned = 0.0

    def settle(self, usage: Usage) -> None:
        """Count a sample that has ended, with a record or without."""
        self._settled_usd += usage.usd
        self._settled_tokens += usage.tokens

    def learn(self, record: Record) -> None:
        """Take a finished sample for what the next ones will cost."""
        spent = sum((Usage.from_json(used) for used in record.usage.values()), Usage())
        bisect.insort(self._usd, spent.usd)
        bisect.insort(self._tokens, spent.tokens)

    def problem(self, in_flight: int) -> BudgetExhausted | None:
        """Why one more sample should not start beside those in flight, if it should not."""
        caps = self._purse.caps
        try:
            self._purse.check()
        except BudgetExhausted as error:
            return error
        for kind, settled, costs, cap, fix in (
            ("dollars", self._settled_usd, self._usd, caps.usd, "--max-usd"),
            ("tokens", self._settled_tokens, self._tokens, caps.tokens, "--max-tokens"),
        ):
            if cap is None or not costs:
                continue
            dear = costs[min(len(costs), ceil(RESERVED_SHARE * len(costs))) - 1]
            if settled + (in_flight + 1) * dear > cap:
                return BudgetExhausted(
                    f"The run's cap of {cap:,.6g} {kind} has no room for another sample:"
                    f" {settled:,.6g} are spent, and one takes up to {dear:,.3g}.",
                    fix=f"the same command with a higher {fix}",
                )
        return None

    def warning(self) -> str | None:
        """The line to say when another of `WARN_AT` has been passed."""
        used = {
            f"${self._purse.usd:.4f} of ${self._purse.caps.usd or 0:,.6g}": (
                self._purse.usd, self._purse.caps.usd
            ),
            f"{self._purse.tokens:,.0f} of {self._purse.caps.tokens or 0:,} tokens": (
                self._purse.tokens, self._purse.caps.tokens
            ),
            f"{self._purse.seconds:,.1f} of {self._purse.caps.seconds or 0:,.6g} seconds": (
                self._purse.seconds, self._purse.caps.seconds
            ),
        }  # fmt: skip
        shares = {text: spent / cap for text, (spent, cap) in used.items() if cap}
        if not shares:
            return None
        text, share = max(shares.items(), key=lambda found: found[1])
        passed = max((mark for mark in WARN_AT if share >= mark), default=0.0)
        if passed <= self._warned:
            return None
        self._warned = passed
        return f"{passed:.0%} of the run's cap is used: {text}."
