"""Times two ways of doing the same work side by side, and shows the tables of `make bench`."""

from __future__ import annotations

import os
import resource
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """What a piece of work took."""

    wall_s: float
    cpu_s: float
    """Processor time of this process and of all that it started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Figures, a row a case; the first column names the case."""

    title: str
    about: str
    """What was done and how often, in a sentence or two."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def to_text(self) -> str:
        """In aligned columns, for a terminal."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        shown = ["  ".join(map(_aligned, line, widths, range(99))).rstrip() for line in lines]
        return "\n".join([self.title, *textwrap.wrap(self.about, 100), "", *shown, ""])

    def to_markdown(self) -> str:
        """As a section of a page."""
        ruler = [" --- ", *(" ---: " for _ in self.columns[1:])]
        lines = [f"| {' | '.join(line)} |" for line in (self.columns, *self.rows)]
        lines.insert(1, f"|{'|'.join(ruler)}|")
        return "\n".join([f"### {self.title}", "", self.about, "", *lines, ""])


def _aligned(text: str, width: int, column: int) -> str:
    return text.rjust(width) if column else text.ljust(width)


def measure(work: Callable[[], object], *, per: int = 1) -> Cost:
    """Do the work once; what it took, divided by `per` equal parts of it."""
    # Looking at other processes takes milliseconds, so that is done outside of our own figures.
    others, own, wall = _others_s(), _own_s(), time.perf_counter()
    work()
    wall, own = time.perf_counter() - wall, _own_s() - own
    return Cost(wall / per, (own + _others_s() - others) / per)


def side_by_side(
    ours: Callable[[], Cost], stock: Callable[[], Cost], *, repeats: int
) -> tuple[Cost, Cost]:
    """Medians over repetitions taken in turn, so that a busy machine slows both alike."""
    found = [(ours(), stock()) for _ in range(repeats)]
    return middle([pair[0] for pair in found]), middle([pair[1] for pair in found])


def middle(costs: Sequence[Cost]) -> Cost:
    """The median of wall and of processor time, each for itself."""
    return Cost(median(cost.wall_s for cost in costs), median(cost.cpu_s for cost in costs))


def faster(case: str, ours: Cost, stock: Cost) -> list[str]:
    """A row under `FASTER`."""
    return _row(case, ours, stock, times(stock.wall_s, ours.wall_s), times(stock.cpu_s, ours.cpu_s))


def slower(case: str, ours: Cost, stock: Cost) -> list[str]:
    """A row under `SLOWER`."""
    return _row(case, ours, stock, times(ours.wall_s, stock.wall_s), times(ours.cpu_s, stock.cpu_s))


FASTER = ("case", "fleet-rlm", "stock", "faster", "CPU fleet-rlm", "CPU stock", "less CPU")
SLOWER = ("case", "fleet-rlm", "stock", "ratio", "CPU fleet-rlm", "CPU stock", "CPU ratio")


def _row(case: str, ours: Cost, stock: Cost, wall: str, cpu: str) -> list[str]:
    shown = [*map(span, (ours.wall_s, stock.wall_s)), wall]
    return [case, *shown, *map(span, (ours.cpu_s, stock.cpu_s)), cpu]


def span(seconds: float) -> str:
    """Three digits and a unit.

    >>> [span(s) for s in (12.3456, 0.00456, 0.0000456)]
    ['12.3 s', '4.56 ms', '45.6 µs']
    """
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def times(more: float, less: float) -> str:
    """How many times `less` fits into `more`; a dash where the clock is too coarse to tell."""
    if less <= 0:
        return "-"
    ratio = more / less
    return f"{ratio:.0f}x" if ratio >= 100 else f"{ratio:.2g}x" if ratio >= 10 else f"{ratio:.2f}x"


def cpu_seconds() -> float:
    """Processor time so far of this process and of every descendant, dead or alive.

    Exact for this process, its dead children and all living descendants; what a living descendant
    has inherited from dead children is known to the hundredth of a second.
    """
    return _own_s() + _others_s()


def _own_s() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _others_s() -> float:
    return sum(_cpu_of(pid, dead_children_s) for pid, dead_children_s in descendants())


def _cpu_of(pid: int, dead_children_s: float) -> float:
    # The processor clock of another process, see clock_getcpuclockid(3).
    try:
        return time.clock_gettime(~pid << 3 | 2) + dead_children_s
    except OSError:  # it ended a moment ago, and is counted by its parent from now on
        return 0.0


def descendants() -> Iterator[tuple[int, float]]:
    """Living descendants with the seconds that their dead children took."""
    children: dict[int, list[tuple[int, float]]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        dead_children_s = (int(fields[13]) + int(fields[14])) * _TICK_S
        children.setdefault(int(fields[1]), []).append((int(path.parent.name), dead_children_s))
    waiting = [os.getpid()]
    while waiting:
        found = children.get(waiting.pop(), [])
        waiting += [pid for pid, _ in found]
        yield from found


def memory_mb(*, own: bool = True) -> float:
    """Memory of every descendant and, if `own`, of this process.

    Proportional set sizes: a page that several share counts once. Only root may look at locked
    processes.
    """
    kilobytes = 0
    for pid in (*([os.getpid()] if own else ()), *(pid for pid, _ in descendants())):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    kilobytes += int(line.split()[1])
    return kilobytes / 1024
