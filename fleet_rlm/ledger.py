"""Who spent what: calls, tokens, dollars and seconds by role, and one sample's limits on them.

The ledger of the running sample travels as the DSPy setting `fleet_ledger`, not as a context
variable of our own: `dspy.Parallel` hands only DSPy's settings to its worker threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Literal, get_args

from fleet_rlm.errors import LimitReached

Role = Literal["root", "sub", "proposer", "judge", "sandbox"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was spent: model calls, tokens and US dollars."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            calls=self.calls + other.calls,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            usd=self.usd + other.usd,
        )

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def to_json(self) -> dict[str, float]:
        """Plain numbers; dollars to a billionth, so that the order of threads leaves no trace."""
        shown = {field.name: getattr(self, field.name) for field in fields(self)}
        return shown | {"usd": round(self.usd, 9)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one sample may use. None means no limit of that kind."""

    wall_s: float | None = 600.0
    """Seconds from the sample's start, waiting included."""

    tokens: int | None = None
    """Input and output tokens of all roles together."""

    usd: float | None = None
    """US dollars of all roles together."""


class Ledger:
    """Books one sample's spending by role and refuses the next model call once a limit is met.

    Safe to use from many threads: sub-calls of one sample run in parallel.

    Args:
        limits: what the sample may use.
        clock: seconds, monotonic; replaced in tests.
    """

    def __init__(
        self, limits: Limits | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits = limits or Limits(wall_s=None)
        self._clock = clock
        self._started = clock()
        self._by_role: dict[Role, Usage] = {}
        self._grace = 0
        self._lock = threading.Lock()

    def book(self, role: Role, usage: Usage) -> None:
        """Add `usage` to what `role` has spent."""
        with self._lock:
            self._by_role[role] = self._by_role.get(role, Usage()) + usage

    def check(self) -> None:
        """Call before each model call.

        Raises:
            LimitReached: a limit is met and no grace is open.
        """
        if self._grace:
            return
        total = self.total
        for kind, used, limit in (
            ("wall", self.seconds, self.limits.wall_s),
            ("tokens", total.tokens, self.limits.tokens),
            ("usd", total.usd, self.limits.usd),
        ):
            if limit is not None and used >= limit:
                raise LimitReached(kind, used, limit)

    @contextmanager
    def grace(self) -> Iterator[None]:
        """Let the block call models past the limits: one extraction of what is already paid for."""
        with self._lock:
            self._grace += 1
        try:
            yield
        finally:
            with self._lock:
                self._grace -= 1

    @property
    def seconds(self) -> float:
        """Seconds since the sample started."""
        return self._clock() - self._started

    @property
    def by_role(self) -> Mapping[Role, Usage]:
        """What each role has spent so far."""
        with self._lock:
            return dict(self._by_role)

    @property
    def total(self) -> Usage:
        """What all roles have spent so far."""
        return sum(self.by_role.values(), Usage())

    def __deepcopy__(self, _memo: object) -> Ledger:
        # Predictions and settings are deep-copied by dspy; spending must land in one place.
        return self
