"""The error tree, its exit codes, and the boundary that gives a foreign exception an owner.

    FleetError
    ├─ UsageError            bad flag, config, suite or program            exit 2
    ├─ BudgetExhausted       the run's money or token cap is spent         exit 3 (resumable)
    ├─ Paused                models or sandboxes fail: nothing is scored   exit 4 (resumable)
    ├─ SandboxUnavailable    no safe place to run generated code           exit 5
    ├─ LimitReached          one sample met a limit: a result, it is scored
    └─ SampleError           one sample failed: missing data, never a zero
       ├─ ProviderError      the model's service
       ├─ SandboxError       the box that runs generated code
       ├─ ProgramError       the program under test
       ├─ ScorerError        the scorer
       └─ DataError          the sample's own data

A message is one line: what happened and where; `fix` is the command that mends it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from enum import IntEnum
from pathlib import Path


def unreadable(what: str, error: OSError) -> UsageError:
    """What to say of a file that the system does not let us read.

    Args:
        what: the file and what it is: "Bank lines.csv".
        error: as the system gave it.
    """
    fixes = {
        errno.ENOENT: "correct its name, or write it",
        errno.EISDIR: "name a file in it",
        errno.EACCES: f"chmod u+r {error.filename}",
    }
    fix = fixes.get(error.errno or 0, "name another file")
    return UsageError(f"{what} is unreadable: {error.strerror}", fix=fix)


def not_utf8(what: str, path: Path | str, error: UnicodeDecodeError) -> UsageError:
    """What to say of a text file in another encoding: the first byte that is wrong, counted from 0.

    Args:
        what: the file and what it is: "Bank lines.csv".
        path: of the file.
        error: as reading it gave it.
    """
    return UsageError(
        f"{what} is not UTF-8 at byte {error.start}", fix=f"iconv -f latin1 -t utf-8 {path}"
    )


class Exit(IntEnum):
    """Exit codes of every command line entry point."""

    OK = 0
    GATE_FAILED = 1
    USAGE = 2
    BUDGET = 3
    COVERAGE = 4
    NO_SANDBOX = 5
    INTERRUPTED = 130


class FleetError(Exception):
    """Base of everything this package raises on purpose.

    Args:
        message: one line, without a trailing full stop when `fix` follows.
        fix: the command or edit that mends it.
    """

    exit_code = Exit.GATE_FAILED

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        self.message = one_line(message)
        self.fix = fix
        super().__init__(f"{self.message} Try: {fix}" if fix else self.message)


class UsageError(FleetError):
    """The caller asked for something that cannot be done as written."""

    exit_code = Exit.USAGE


class BudgetExhausted(FleetError):
    """The run's cap is reached; what was paid for is stored and the run can be resumed."""

    exit_code = Exit.BUDGET


class Paused(FleetError):
    """A job waits for models or sandboxes that fail; what is finished is stored."""

    exit_code = Exit.COVERAGE


class SandboxUnavailable(FleetError):
    """No isolation level holds on this machine, so no generated code is run."""

    exit_code = Exit.NO_SANDBOX


class LimitReached(FleetError):
    """A sample met one of its own limits. Not a failure: its partial answer is scored.

    Args:
        kind: which limit, as stored in a record's `stop`: "wall", "tokens", "usd".
        used: how much was used, in the limit's unit.
        limit: the limit, in the same unit.
    """

    def __init__(self, kind: str, used: float, limit: float) -> None:
        self.kind, self.used, self.limit = kind, used, limit
        super().__init__(f"{kind} limit reached: {used:.6g} of {limit:.6g}")


class SampleError(FleetError):
    """One sample could not be answered or scored; it becomes an error record, never a zero."""

    boundary = "program"


class ProviderError(SampleError):
    """The model's service failed after retries."""

    boundary = "provider"


class SandboxError(SampleError):
    """The sandbox or its connection failed; never the fault of the code that ran in it."""

    boundary = "sandbox"


class ProgramError(SampleError):
    """The program under test raised."""

    boundary = "program"


class ScorerError(SampleError):
    """The scorer raised or returned something that is not a score."""

    boundary = "scorer"


class DataError(SampleError):
    """The sample's own data could not be built or read."""

    boundary = "data"


@contextmanager
def boundary(owner: type[SampleError], doing: str) -> Iterator[None]:
    """Turn whatever escapes the block into `owner`; errors of this package pass unchanged.

    Args:
        owner: the class that answers for the block.
        doing: what the block does, for the message: "scoring sample needle-8k-0".
    """
    try:
        yield
    except FleetError:
        raise
    except Exception as error:  # whatever the owner's code raises, the owner answers for it
        raise owner(f"{doing}: {type(error).__name__}: {error}") from error


class FleetWarning(UserWarning):
    """Something a user should know that stops nothing; command lines print it as one line."""


def one_line(text: str, limit: int = 400) -> str:
    """`text` on one line, cut in the middle of nothing longer than `limit` characters."""
    flat = " ".join(str(text).split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def nearest(name: str, known: Iterable[str]) -> str:
    """The sentence that offers the nearest valid name, or the list of them.

    >>> nearest("oolnog", ["oolong", "needle"])
    "Did you mean 'oolong'?"
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known: {', '.join(names)}." if names else "None are known."
