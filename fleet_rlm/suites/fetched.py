"""Tasks whose samples are rows of a dataset: which rows, and how each is planned and built."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleet_rlm.errors import UsageError, nearest
from fleet_rlm.scoring import RULES
from fleet_rlm.scoring.judge import PREFIX, rubric_text
from fleet_rlm.scoring.own import OwnRule
from fleet_rlm.suites.fetch import open_shelf
from fleet_rlm.suites.generators.base import Draft
from fleet_rlm.suites.manifest import Manifest, find_manifest, flat
from fleet_rlm.suites.plan import PlannedSample, WindowCache
from fleet_rlm.suites.shelf import Shelf, Stored, is_fetched, read_lock

if TYPE_CHECKING:
    from fleet_rlm.suites.table import FetchedTable, Headline


_SHOWN = 8  # values of a tag in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedQuestion:
    """One question of a dataset. Its gold answer stays on the scorer's side until asked for."""

    query: str = field(repr=False)
    answer_type: str
    options: tuple[str, ...]
    kind: str
    name: str
    shelf: Shelf = field(repr=False)

    @property
    def gold(self) -> tuple[str, ...]:
        """Read when an answer is scored.

        Raises:
            DataError: it is not on this machine.
        """
        return self.shelf.gold(self.name)

    @property
    def position(self) -> None:
        """Unknown: the dataset does not say where the evidence stands."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedTask:
    """One kind of question of a suite, taken from a dataset."""

    name: str
    manifest: Manifest = field(repr=False)
    where: Mapping[str, Any]
    """Tag, or "kind", -> the value or values that a row must have."""

    lengths: tuple[int, ...]
    """Buckets, in tokens; all when empty."""

    samples: int | None
    """At most so many, drawn by the suite's seed, whole contexts first; all when None."""

    rule: str
    """Name of the scoring rule, "judged:RUBRIC", or FILE.py:FUNCTION."""

    headline: Headline

    @property
    def is_ready(self) -> bool:
        """Whether its data is on this machine, or is of one's own and read in when asked for."""
        return self.manifest.is_local or is_fetched(self.manifest)

    @property
    def is_new(self) -> bool:
        """Whether its data is of one's own and was not read in yet."""
        return self.manifest.is_local and not is_fetched(self.manifest)

    def describe(self) -> dict[str, Any]:
        """What decides which samples there are, what they hold and how they count."""
        lock = read_lock(self.manifest)
        return {
            "name": self.name,
            "dataset": self.manifest.name,
            "manifest": self.manifest.digest,
            "revision": lock and lock.revision,
            "data": lock and lock.digest,
            "where": dict(self.where),
            "lengths": list(self.lengths),
            "samples": self.samples,
            "rule": _identity(self.rule),
            "headline": self.headline,
        }

    def plan(self, seed: int, windows: WindowCache) -> list[PlannedSample]:
        """All samples by length and row. Reads no context and no gold answer.

        Raises:
            UsageError: the data is not on this machine, or no row fits.
        """
        shelf = open_shelf(self.manifest)
        stored = shelf.questions()
        place = _places(stored)
        rows = self._drawn([row for row in stored if self._fits(row)], seed)
        if not rows:
            raise UsageError(
                f"Task {self.name!r}: no row of {self.manifest.name!r} fits:"
                f" {self._misfit(stored)}",
                fix="correct the task's where and lengths",
            )
        by_context: dict[str, list[Stored]] = {}
        for row in stored:
            by_context.setdefault(row.context, []).append(row)
        return [
            PlannedSample(
                id=f"{self.name}-{_slug(row.id)}-{_digest(shelf, row)}",
                task=self.name,
                cluster=f"{self.manifest.name}-{row.context[:12]}",
                length=row.length,
                window_key=f"{self.manifest.name}/{shelf.lock.digest[:16]}/{row.context}",
                window=place[row.id][0],
                question=place[row.id][1],
                rule=self.rule,
                headline=self.headline,
                write=partial(_window, shelf, row.context, by_context[row.context]),
                windows=windows,
                is_filled=False,
                is_sealed=self.manifest.sealed,
            )
            for row in sorted(rows, key=lambda row: (row.length, place[row.id]))
        ]

    def _fits(self, row: Stored) -> bool:
        if self.lengths and row.length not in self.lengths:
            return False
        found = {**row.tags, "kind": row.kind}
        return all(
            found.get(tag) in value if isinstance(value, list) else found.get(tag) == value
            for tag, value in self.where.items()
        )

    def _misfit(self, stored: Sequence[Stored]) -> str:
        """What the rows have where the task asks for something else."""
        asked: dict[str, Any] = {**self.where}
        if self.lengths:
            asked["lengths"] = list(self.lengths)
        for tag, value in asked.items():
            wanted = value if isinstance(value, list) else [value]
            found = {
                {**row.tags, "kind": row.kind, "lengths": row.length}.get(tag) for row in stored
            }
            if not found & set(wanted):
                shown = sorted(map(repr, found))
                more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
                return f"{tag} there is {', '.join(shown[:_SHOWN])}{more}"
        return f"none has all of {', '.join(asked)}"

    def _drawn(self, rows: list[Stored], seed: int) -> list[Stored]:
        if self.samples is None or len(rows) <= self.samples:
            return rows
        contexts = list(dict.fromkeys(row.context for row in rows))
        random.Random(f"{self.manifest.name}/{seed}").shuffle(contexts)
        rank = {context: n for n, context in enumerate(contexts)}
        return sorted(rows, key=lambda row: rank[row.context])[: self.samples]


def resolve_fetched(table: FetchedTable, origin: str, project: Path | None) -> FetchedTask:
    """The task that a table of a suite file describes.

    Args:
        table: checked in shape.
        origin: the suite's file.
        project: whose datasets are meant by name.

    Raises:
        UsageError: an unknown dataset, rule or tag; one line with file and key.
    """
    where = f"{origin}: tasks.{table.name}"
    try:
        manifest = find_manifest(table.dataset, project)
    except UsageError as error:
        raise UsageError(f"{where}.dataset: {error.message}", fix=error.fix) from error
    tags = [*flat({"tags": manifest.file.columns.get("tags", [])}), "kind"]
    for tag in table.where:
        if tag not in tags:
            raise UsageError(
                f"{where}.where: no tag {tag!r}. {nearest(tag, tags)}",
                fix=f"list its column among tags in {manifest.path.name}",
            )
    return FetchedTask(
        name=table.name,
        manifest=manifest,
        where=table.where,
        lengths=tuple(table.lengths),
        samples=table.samples,
        rule=_rule(table.rule or manifest.adapter.rule, where, Path(origin).parent),
        headline=table.headline or ("official" if manifest.adapter.rule else "robust"),
    )


def _rule(name: str | None, where: str, folder: Path) -> str:
    if name is None:
        raise UsageError(
            f"{where}.rule: is missing; known: {', '.join(sorted(RULES))}", fix='rule = "exact"'
        )
    if ".py:" in name:
        own = OwnRule.parse(str(folder / name))
        own.reload()
        return str(own)
    kind, _, rubric = name.partition(":")
    if kind not in RULES or (rubric and kind != PREFIX):
        raise UsageError(
            f"{where}.rule: no scoring rule {name!r}. {nearest(name, RULES)}",
            fix="the name of a rule, or FILE.py:FUNCTION for your own",
        )
    if kind != PREFIX:
        return name
    rubric = str(folder / rubric) if "." in rubric else rubric or "answer"
    try:
        rubric_text(rubric)
    except UsageError as error:
        raise UsageError(f"{where}.rule: {error.message}", fix=error.fix) from error
    return f"{kind}:{rubric}"


def _identity(rule: str) -> str:
    """What a rule computes, not where its file lies."""
    if ".py:" in rule:
        return OwnRule.parse(rule).identity
    kind, _, rubric = rule.partition(":")
    if kind != PREFIX:
        return rule
    return f"{kind}:{hashlib.sha256(rubric_text(rubric).encode()).hexdigest()}"


def _places(stored: Sequence[Stored]) -> dict[str, tuple[int, int]]:
    """Row -> number of its context, and its own number among the questions on it."""
    counts: dict[str, int] = {}
    numbers: dict[str, int] = {}
    places = {}
    for row in stored:
        number = numbers.setdefault(row.context, len(numbers))
        places[row.id] = (number, counts.get(row.context, 0))
        counts[row.context] = counts.get(row.context, 0) + 1
    return places


def _window(shelf: Shelf, context: str, rows: Sequence[Stored]) -> Draft:
    text, tokens = shelf.context(context)
    questions = tuple(
        FetchedQuestion(
            query=shelf.seal.open(row.query),
            answer_type=row.answer_type,
            options=row.options,
            kind=row.kind,
            name=row.id,
            shelf=shelf,
        )
        for row in rows
    )
    return Draft(blocks=(text,), tokens=tokens, questions=questions)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")[:40] or "row"


def _digest(shelf: Shelf, row: Stored) -> str:
    shaping = f"{shelf.lock.dataset}/{row.context}/{row.id}/{row.query}"
    return hashlib.sha256(shaping.encode()).hexdigest()[:8]
