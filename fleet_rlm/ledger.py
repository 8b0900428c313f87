"""Who spent what: calls, tokens, dollars and seconds by role; a sample's limits and a run's caps.

The ledger of the running sample travels as the DSPy setting `fleet_ledger`, not as a context
variable of our own: `dspy.Parallel` hands only DSPy's settings to its worker threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Literal, Protocol, get_args

from fleet_rlm.errors import BudgetExhausted, LimitReached

Role = Literal["root", "sub", "proposer", "judge", "sandbox"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was spent: model calls, tokens, US dollars and seconds."""

    calls: int = 0
    """Answered calls, those from a cache of ours included."""

    input_tokens: int = 0
    """Billed; the part in `cached_tokens` at the provider's lower price."""

    cached_tokens: int = 0
    """The part of `input_tokens` that the provider read from its own cache."""

    output_tokens: int = 0
    usd: float = 0.0
    """Billed."""

    seconds: float = 0.0
    """Sum over calls of the time until the answer, waits for a rate limit not counted."""

    cache_hits: int = 0
    """Calls answered by a cache of ours: nothing was billed for them."""

    saved_usd: float = 0.0
    """What the cache hits would have cost."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            calls=self.calls + other.calls,
            input_tokens=self.input_tokens + other.input_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            usd=self.usd + other.usd,
            seconds=self.seconds + other.seconds,
            cache_hits=self.cache_hits + other.cache_hits,
            saved_usd=self.saved_usd + other.saved_usd,
        )

    def __sub__(self, other: Usage) -> Usage:
        return Usage(
            calls=self.calls - other.calls,
            input_tokens=self.input_tokens - other.input_tokens,
            cached_tokens=self.cached_tokens - other.cached_tokens,
            output_tokens=self.output_tokens - other.output_tokens,
            usd=self.usd - other.usd,
            seconds=self.seconds - other.seconds,
            cache_hits=self.cache_hits - other.cache_hits,
            saved_usd=self.saved_usd - other.saved_usd,
        )

    @property
    def tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    def to_json(self) -> dict[str, float]:
        """Plain numbers; dollars to a billionth, so that the order of threads leaves no trace."""
        shown = {name: getattr(self, name) for name in _NAMES}
        rounded = {"usd": round(self.usd, 9), "saved_usd": round(self.saved_usd, 9)}
        return shown | rounded | {"seconds": round(self.seconds, 3)}

    @classmethod
    def from_json(cls, stored: Mapping[str, float]) -> Usage:
        """Read `to_json` back; what an older version did not store is zero."""
        return cls(**{name: stored[name] for name in _NAMES if name in stored})  # type: ignore[arg-type]


_NAMES = tuple(field.name for field in fields(Usage))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one sample may use. None means no limit of that kind."""

    working_s: float | None = 600.0
    """Seconds from the sample's start, less the time spent waiting for a rate limit."""

    wall_s: float | None = None
    """Seconds from the sample's start, all waiting included."""

    tokens: int | None = None
    """Input and output tokens of all roles together."""

    usd: float | None = None
    """US dollars of all roles together."""


class Purse(Protocol):
    """What a whole run may spend; shared by its samples, threads and processes."""

    def book(self, usage: Usage) -> None:
        """Take one call's usage out."""

    def check(self) -> None:
        """Raise `BudgetExhausted` when nothing is left; called before each model call."""


class Ledger:
    """Books spending by role and refuses the next model call once a limit is met.

    Safe to use from many threads: sub-calls of one sample run in parallel.

    Args:
        limits: what may be used; none when absent.
        parent: a ledger that this one is a part of: it is booked in too, and its limits hold too.
        purse: what the whole run may use.
        clock: seconds, monotonic; replaced in tests.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        parent: Ledger | None = None,
        purse: Purse | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or Limits(working_s=None)
        self._parent = parent
        self._purse = purse
        self._clock = clock
        self._started = clock()
        self._by_role: dict[Role, Usage] = {}
        self._grace = 0
        self._waiting = 0
        self._waited_s = 0.0
        self._waits_since = 0.0
        self._lock = threading.Lock()

    def restart(self) -> None:
        """Let the time limits count from now."""
        with self._lock:
            self._started = self._clock()

    def branch(self) -> Ledger:
        """An account inside of this one, without limits of its own."""
        return Ledger(parent=self, clock=self._clock)

    def book(self, role: Role, usage: Usage) -> None:
        """Add `usage` to what `role` has spent."""
        with self._lock:
            self._by_role[role] = self._by_role.get(role, Usage()) + usage
        if self._parent is not None:
            self._parent.book(role, usage)
        if self._purse is not None:
            self._purse.book(usage)

    def check(self) -> None:
        """Call before each model call.

        Raises:
            LimitReached: a limit is met and no grace is open.
            BudgetExhausted: a cap of the run is met; grace does not help.
        """
        if self._purse is not None:
            self._purse.check()
        if not self._grace:
            self._check_limits()
        if self._parent is not None:
            self._parent.check()

    def _check_limits(self) -> None:
        limits = self.limits
        if limits.working_s is not None and (used := self.working_s) >= limits.working_s:
            raise LimitReached("working", used, limits.working_s)
        if limits.wall_s is not None and (used := self.seconds) >= limits.wall_s:
            raise LimitReached("wall", used, limits.wall_s)
        if limits.tokens is None and limits.usd is None:
            return
        total = self.total
        if limits.tokens is not None and total.tokens >= limits.tokens:
            raise LimitReached("tokens", total.tokens, limits.tokens)
        if limits.usd is not None and total.usd >= limits.usd:
            raise LimitReached("usd", total.usd, limits.usd)

    @contextmanager
    def grace(self) -> Iterator[None]:
        """Let the block call models past the limits: one extraction of what is already paid for."""
        with ExitStack() as stack:
            if self._parent is not None:
                stack.enter_context(self._parent.grace())
            with self._lock:
                self._grace += 1
            try:
                yield
            finally:
                with self._lock:
                    self._grace -= 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The block only waits for a rate limit: its time is no working time."""
        with ExitStack() as stack:
            if self._parent is not None:
                stack.enter_context(self._parent.waiting())
            with self._lock:
                if not self._waiting:
                    self._waits_since = self._clock()
                self._waiting += 1
            try:
                yield
            finally:
                with self._lock:
                    self._waiting -= 1
                    if not self._waiting:
                        self._waited_s += self._clock() - self._waits_since

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    @property
    def working_s(self) -> float:
        """`seconds` less the time in which at least one call waited for a rate limit."""
        with self._lock:
            now = self._clock()
            running = now - self._waits_since if self._waiting else 0.0
            return now - self._started - self._waited_s - running

    @property
    def seconds_left(self) -> float | None:
        """Until the nearest time limit of this ledger and its parents; None where none holds."""
        limits = self.limits
        left = [] if self._parent is None else [self._parent.seconds_left]
        if not self._grace and limits.working_s is not None:
            left.append(limits.working_s - self.working_s)
        if not self._grace and limits.wall_s is not None:
            left.append(limits.wall_s - self.seconds)
        known = [seconds for seconds in left if seconds is not None]
        return max(0.0, min(known)) if known else None

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """What a whole run may use, over all of its sessions. None means no cap of that kind."""

    usd: float | None = None
    tokens: int | None = None
    seconds: float | None = None
    """Of running time."""


def check_caps(caps: Caps, *, usd: float, tokens: float, seconds: float) -> None:
    """Refuse the next model call of a run when a cap is met.

    Raises:
        BudgetExhausted: says which cap, what is spent, and how to go on.
    """
    for kind, used, cap, fix in (
        ("dollars", usd, caps.usd, "--max-usd"),
        ("tokens", tokens, caps.tokens, "--max-tokens"),
        ("seconds", seconds, caps.seconds, "--max-seconds"),
    ):
        if cap is not None and used >= cap:
            raise BudgetExhausted(
                f"The run's cap of {cap:,.6g} {kind} is reached: {used:,.6g} are spent, and all"
                " finished samples are stored.",
                fix=f"the same command with a higher {fix}",
            )
