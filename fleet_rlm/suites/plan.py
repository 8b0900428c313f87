"""Which samples a suite has, known before any text is written, and how each one is built."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from threading import Lock
from typing import TYPE_CHECKING

from fleet_rlm.errors import DataError, UsageError, boundary, nearest
from fleet_rlm.suites.generators.base import FILL, Draft, Order
from fleet_rlm.suites.sample import AnyQuestion, Sample, Window
from fleet_rlm.suites.tokens import TOKENIZER

if TYPE_CHECKING:
    from pathlib import Path

    from fleet_rlm.suites.passages import Source
    from fleet_rlm.suites.suite import Headline, Task

_CACHE_TOKENS = 16_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSample:
    """A sample that is known by name only; `build` writes its text."""

    id: str
    """`needle-8k-0.1-3fa9c1d2`: task, length, window, question, and what shapes the window."""

    task: str
    cluster: str
    """Id of the window; equal for all questions on one context."""

    length: int
    """Target length of the context in tokens."""

    window_key: str
    """sha256 of all that shapes the window's text and questions; `id` ends in its first 8."""

    window: int
    question: int
    rule: str
    """Name of the scoring rule, for `fleet_rlm.scoring.score`."""

    headline: Headline
    """Which of the two scores is the record's score."""

    write: Callable[[], Draft] = field(repr=False, compare=False)
    windows: WindowCache = field(repr=False, compare=False)
    is_filled: bool = True
    """Whether the context was written to its length; a fetched one is as long as it is."""

    is_sealed: bool = False
    """Whether its texts must reach no record, trajectory, trace or log."""

    def build(self) -> Sample:
        """The sample with its text. Thread-safe; questions of one window share one `context` string
        as long as the plan remembers it.

        Raises:
            DataError: the generator failed or broke its promise.
        """
        window = self.windows.get(self.window_key, self._checked_window)
        return Sample(
            id=self.id,
            task=self.task,
            cluster=self.cluster,
            length=self.length,
            context=window.context,
            tokens=window.tokens,
            question=window.questions[self.question],
        )

    def write_context(self, path: Path) -> AnyQuestion:
        """Write the context to a file as UTF-8, block by block, and give the question on it.

        A context that this plan does not hold in memory is not put there.

        Raises:
            DataError: as `build`; the file cannot be written.
        """
        with boundary(DataError, f"writing {self.cluster} to {path}"):
            draft = self._checked_draft()
            with path.open("w", encoding="utf-8", newline="") as file:
                file.writelines(draft.blocks)
            return draft.questions[self.question]

    def _checked_window(self) -> Window:
        with boundary(DataError, f"building {self.cluster}"):
            return self._checked_draft().window()

    def _checked_draft(self) -> Draft:
        draft = self.write()
        if self.is_filled and not FILL * self.length <= draft.tokens <= self.length:
            raise DataError(f"{self.cluster} has {draft.tokens} tokens for {self.length}")
        if len(draft.questions) <= self.question:
            raise DataError(f"{self.cluster} has only {len(draft.questions)} questions")
        return draft


class WindowCache:
    """The windows used last, up to a number of tokens in all; the last one is always kept.

    Threads that ask for one window at the same time wait for one build. A build that fails is not
    remembered: the next thread tries again.
    """

    def __init__(self, max_tokens: int = _CACHE_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._lock = Lock()

    def get(self, key: str, build: Callable[[], Window]) -> Window:
        """The window of `key`, from memory or by `build`."""
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
        with slot.lock:
            if slot.window is None:
                slot.window = build()
                self._forget_oldest()
            return slot.window

    def _forget_oldest(self) -> None:
        with self._lock:
            built = [(key, s.window.tokens) for key, s in self._slots.items() if s.window]
            total = sum(tokens for _, tokens in built)
            for key, tokens in built[:-1]:
                if total <= self._max_tokens:
                    return
                del self._slots[key]
                total -= tokens


@dataclass(slots=True)
class _Slot:
    lock: Lock = field(default_factory=Lock)
    window: Window | None = None


def plan_task(task: Task, seed: int, source: Source, windows: WindowCache) -> list[PlannedSample]:
    """All samples of a task, by length, window and question; they build through `windows`."""
    made: list[PlannedSample] = []
    generator = f"{task.writer.name}-{task.writer.version}"
    for length in task.lengths:
        for window in range(task.windows):
            order = Order(
                generator=generator,
                length=length,
                seed=seed,
                window=window,
                questions=task.questions,
                source=source,
            )
            key = _window_key(task, order)
            name = f"{task.name}-{length_label(length)}-{window}"
            write = partial(task.writer.draft, order, task.params)
            made.extend(
                PlannedSample(
                    id=f"{name}.{question}-{key[:8]}",
                    task=task.name,
                    cluster=f"{name}-{key[:8]}",
                    length=length,
                    window_key=key,
                    window=window,
                    question=question,
                    rule=task.rule,
                    headline=task.headline,
                    write=write,
                    windows=windows,
                )
                for question in range(task.questions)
            )
    return made


def _window_key(task: Task, order: Order) -> str:
    shaping = {
        "generator": order.generator,
        "params": task.params.identity(),
        "seed": order.seed,
        "length": order.length,
        "window": order.window,
        "questions": order.questions,
        "source": order.source.digest if task.writer.uses_corpus else None,
        "tokenizer": TOKENIZER,
    }
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()


def length_label(length: int) -> str:
    """8000 as "8k", 1000000 as "1m", 131072 as it is: never rounded.

    >>> [length_label(n) for n in (8000, 1_500_000, 2_000_000, 131_072)]
    ['8k', '1500k', '2m', '131072']
    """
    for unit, letter in ((1_000_000, "m"), (1000, "k")):
        if length % unit == 0:
            return f"{length // unit}{letter}"
    return str(length)


def only_named(samples: Sequence[PlannedSample], ids: Collection[str]) -> list[PlannedSample]:
    """The samples with these ids, in planned order.

    Raises:
        UsageError: an id that is not planned.
    """
    known = {sample.id for sample in samples}
    for wanted in ids:
        if wanted not in known:
            raise UsageError(f"No sample {wanted!r} in this plan. {_nearest_id(wanted, known)}")
    return [sample for sample in samples if sample.id in set(ids)]


def _nearest_id(wanted: str, known: set[str]) -> str:
    close = {name for name in known if name.partition("-")[0] == wanted.partition("-")[0]}
    return nearest(wanted, sorted(close or known)[:200])


def limited(samples: Sequence[PlannedSample], limit: int) -> list[PlannedSample]:
    """At most `limit` samples, in planned order, drawn round robin over tasks and lengths.

    The first picks differ in task and length, the next in window, the last in question only.

    Raises:
        UsageError: `limit` below 1.
    """
    if limit < 1:
        raise UsageError(f"limit must be at least 1, not {limit}")
    picked = {sample.id for _, sample in zip(range(limit), _rounds(samples), strict=False)}
    return [sample for sample in samples if sample.id in picked]


def _rounds(samples: Sequence[PlannedSample]) -> Iterator[PlannedSample]:
    cells: dict[str, dict[int, list[PlannedSample]]] = {}
    for sample in sorted(samples, key=lambda sample: (sample.question, sample.window)):
        cells.setdefault(sample.task, {}).setdefault(sample.length, []).append(sample)
    order = {sample.task: None for sample in samples}
    queues = [_staggered(cells[task], start) for start, task in enumerate(order)]
    for turn in zip_longest(*queues):
        yield from (sample for sample in turn if sample is not None)


def _staggered(by_length: dict[int, list[PlannedSample]], start: int) -> Iterator[PlannedSample]:
    # Task number `start` begins with its own length, so that a few samples already differ in both.
    lengths = sorted(by_length)
    start %= len(lengths)
    for turn in zip_longest(*(by_length[length] for length in lengths[start:] + lengths[:start])):
        yield from (sample for sample in turn if sample is not None)
