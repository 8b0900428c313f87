"""A suite with every default filled in, from its file and the changes asked for."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fleet_rlm.errors import UsageError, nearest, not_utf8, unreadable
from fleet_rlm.suites.apart import fetch_apart
from fleet_rlm.suites.corpus import Corpus
from fleet_rlm.suites.fetched import FetchedTask, resolve_fetched
from fleet_rlm.suites.generators import GENERATORS
from fleet_rlm.suites.generators.bank import BankPart
from fleet_rlm.suites.generators.base import Generator, Params
from fleet_rlm.suites.passages import Source
from fleet_rlm.suites.plan import PlannedSample, WindowCache, limited, only_named, plan_task
from fleet_rlm.suites.prose import Prose
from fleet_rlm.suites.table import (
    CardTable,
    FetchedTable,
    Headline,
    SuiteFile,
    TaskTable,
    check_file,
    check_params,
)
from fleet_rlm.suites.tokens import TOKENIZER

__all__ = ["MAX_LENGTH", "Headline", "PlannedSample", "Suite", "Task", "load_suite", "parse_suite"]

MAX_LENGTH = 20_000_000
"""Tokens of the longest context a suite may ask for."""

_PER_TASK = ("lengths", "windows", "questions", "headline")
_PER_FETCHED = ("lengths", "samples", "headline")
_OF_FETCHED = (*_PER_FETCHED, "rule")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One kind of question of a suite."""

    name: str
    generator: str
    writer: Generator[Any] = field(repr=False)
    lengths: tuple[int, ...]
    """Target lengths of contexts, in tokens of the suite's tokenizer."""

    windows: int
    """Contexts per length."""

    questions: int
    """Questions per context."""

    headline: Headline
    """Which of the two scores is the record's score."""

    params: Params

    @property
    def rule(self) -> str:
        """Name of the scoring rule, for `fleet_rlm.scoring.score`."""
        return self.writer.rule

    def describe(self) -> dict[str, Any]:
        """What decides which samples there are, what they hold and how they count."""
        return {
            "name": self.name,
            "generator": self.generator,
            "generator_version": self.writer.version,
            "lengths": list(self.lengths),
            "windows": self.windows,
            "questions": self.questions,
            "headline": self.headline,
            "params": self.params.identity(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A suite with every default filled in. Made by `parse_suite` or `load_suite`."""

    name: str
    version: int
    description: str
    seed: int
    tasks: tuple[Task | FetchedTask, ...]
    origin: str
    """Where it was read, for messages."""

    corpus: Corpus | None = None
    table: SuiteFile = field(repr=False)
    project: Path | None = field(default=None, repr=False)
    """Whose datasets are meant by name; the one around the working folder when absent."""

    @property
    def card(self) -> CardTable | None:
        """What a reviewer must know before quoting a score."""
        return self.table.card

    @property
    def is_ready(self) -> bool:
        """Whether it can be planned: every dataset it names is on this machine."""
        return all(task.is_ready for task in self.tasks if isinstance(task, FetchedTask))

    @property
    def digest(self) -> str:
        """sha256 of all that decides which samples there are, what they hold and how they count.

        Neither the description nor the file's place is part of it.
        """
        return hashlib.sha256(json.dumps(self._resolved(), sort_keys=True).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """The resolved suite for a run's lock, ready for JSON, with its digest and corpus."""
        corpus = self.corpus and {"origin": self.corpus.origin, "files": self.corpus.files}
        return self._resolved() | {"digest": self.digest, "origin": self.origin, "corpus": corpus}

    def _resolved(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": self.version,
            "seed": self.seed,
            "tasks": [task.describe() for task in self.tasks],
            "source": self._source.digest,
            "tokenizer": TOKENIZER,
        }

    def task(self, name: str) -> Task | FetchedTask:
        """The task of this name.

        Raises:
            UsageError: there is none.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        known = [task.name for task in self.tasks]
        raise UsageError(f"Suite {self.name!r} has no task {name!r}. {nearest(name, known)}")

    def override(self, values: Mapping[str, object]) -> Suite:
        """This suite with some values replaced.

        Args:
            values: by key: "seed"; "lengths", "windows", "questions", "headline" for all tasks;
                "params.X" for all tasks whose generator has X; "tasks.NAME." before any of the
                last five for one task. Values as TOML has them; one length may stand for a list.

        Raises:
            UsageError: an unknown key, or a value the suite file could not hold either.
        """
        known = self._settable()
        raw = self.table.model_dump()
        for key, value in values.items():
            if key not in known:
                raise UsageError(f"Unknown suite setting {key!r}. {nearest(key, known)}")
            for table, name in _targets(raw, key):
                table[name] = value
        if not values:
            return self
        # Together: what is impossible for one length may be right for fewer questions.
        told = ", ".join(f"{key}={value!r}" for key, value in values.items())
        suite = _resolve(raw, f"{self.origin} with {told}", self.project)
        return replace(suite, origin=self.origin, corpus=self.corpus)

    def part(self, part: BankPart) -> Suite:
        """This suite with the lines of its banks drawn from one part of them.

        Its plan has the samples of this suite's in the same order. A task whose `bank_part` is set
        already keeps it, and one without a bank its samples and their ids.

        Raises:
            UsageError: a bank has too few texts for that.
        """
        whole = [
            task.name
            for task in self.tasks
            if isinstance(task, Task) and getattr(task.params, "bank_part", "") == "all"
        ]
        return self.override({f"tasks.{name}.params.bank_part": part for name in whole})

    def with_corpus(self, corpus: Corpus) -> Suite:
        """This suite with its lines planted in `corpus` instead of the built-in prose.

        Raises:
            UsageError: a task writes all of its text itself.
        """
        able = [t.name for t in self.tasks if isinstance(t, Task) and t.writer.uses_corpus]
        unable = [task.name for task in self.tasks if task.name not in able]
        if unable:
            able = able or sorted(name for name, g in GENERATORS.items() if g.uses_corpus)
            raise UsageError(
                f"Suite {self.name!r} cannot use a corpus: {', '.join(unable)} writes all of its"
                f" text itself; tasks that can: {', '.join(able)}"
            )
        return replace(self, corpus=corpus)

    def read_in(self, env: Mapping[str, str]) -> None:
        """Read in data of one's own that is new, in a process apart: see `fetch_apart`.

        Called before a plan by whatever asks models; `plan` alone would read it in right here.

        Args:
            env: this process's environment.

        Raises:
            UsageError: as `fetch`.
        """
        found = {task.manifest.path: task for task in self.tasks if isinstance(task, FetchedTask)}
        for task in found.values():
            if task.is_new:
                fetch_apart(task.manifest, env)

    def plan(
        self, limit: int | None = None, only: Collection[str] | None = None
    ) -> list[PlannedSample]:
        """All samples in order of task, length, window and question. Writes no text.

        Args:
            limit: at most so many, spread over tasks and lengths.
            only: these ids.

        Raises:
            UsageError: an id in `only` that is not planned; `limit` below 1.
        """
        windows = WindowCache()
        samples = [sample for task in self.tasks for sample in self._plan_task(task, windows)]
        if only is not None:
            samples = only_named(samples, only)
        return samples if limit is None else limited(samples, limit)

    def _plan_task(self, task: Task | FetchedTask, windows: WindowCache) -> list[PlannedSample]:
        if isinstance(task, FetchedTask):
            return task.plan(self.seed, windows)
        return plan_task(task, self.seed, self._source, windows)

    @property
    def _source(self) -> Source:
        return self.corpus or Prose()

    def _settable(self) -> list[str]:
        keys = ["seed"]
        for task in self.tasks:
            if isinstance(task, FetchedTask):
                keys += [*_PER_FETCHED, *(f"tasks.{task.name}.{key}" for key in _OF_FETCHED)]
                continue
            keys += _PER_TASK
            params = [f"params.{name}" for name in type(task.params).model_fields]
            keys += [*params, *(f"tasks.{task.name}.{key}" for key in (*_PER_TASK, *params))]
        return list(dict.fromkeys(keys))


def load_suite(path: Path | str, project: Path | None = None) -> Suite:
    """Read a suite file.

    Args:
        path: of the file.
        project: whose datasets are meant by name; the one around the working folder when absent.

    Raises:
        UsageError: the file is unreadable, or see `parse_suite`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise unreadable(f"Suite file {path}", error) from error
    except UnicodeDecodeError as error:
        raise not_utf8(f"Suite file {path}", path, error) from error
    return parse_suite(text, str(path), project)


def parse_suite(text: str, origin: str, project: Path | None = None) -> Suite:
    """The suite that TOML `text` describes.

    Args:
        text: of the file.
        origin: the file's name, for messages, and for what it names beside itself.
        project: as in `load_suite`.

    Raises:
        UsageError: malformed TOML, an unknown or missing key, a wrong type, an unknown generator,
            an impossible length, no windows. One line with file, key and the nearest valid name.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"{origin}: not valid TOML: {error}", fix="correct the file there"
        ) from error
    return _resolve(raw, origin, project)


def _targets(raw: dict[str, Any], key: str) -> list[tuple[dict[str, Any], str]]:
    """The tables and names inside that an override key writes to."""
    if key == "seed":
        return [(raw["suite"], key)]
    tasks = raw["tasks"]
    if key.startswith("tasks."):
        _, wanted, key = key.split(".", 2)
        tasks = [task for task in tasks if task["name"] == wanted]
    if not key.startswith("params."):
        return [(task, key) for task in tasks if key in _keys_of(task)]
    name = key.removeprefix("params.")
    generated = [task for task in tasks if "generator" in task]
    having = [t for t in generated if name in GENERATORS[t["generator"]].params.model_fields]
    return [(task["params"], name) for task in having]


def _keys_of(task: dict[str, Any]) -> tuple[str, ...]:
    return _OF_FETCHED if "dataset" in task else _PER_TASK


def _resolve(raw: dict[str, Any], origin: str, project: Path | None) -> Suite:
    table = check_file(raw, origin)
    names = [task.name for task in table.tasks]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{origin}: two tasks are named {name!r}", fix="rename one of them")
    return Suite(
        name=table.suite.name,
        version=table.suite.version,
        description=table.suite.description,
        seed=table.suite.seed,
        tasks=tuple(
            resolve_fetched(task, origin, project)
            if isinstance(task, FetchedTable)
            else _resolve_task(task, i, raw, origin)
            for i, task in enumerate(table.tasks)
        ),
        origin=origin,
        table=table,
        project=project,
    )


def _too_short(where: str, length: int, params: Params, table: TaskTable) -> str:
    """The least length, and what makes it less."""
    generator = GENERATORS[table.generator]
    least, alone = (generator.min_length(params, n) for n in (table.questions, 1))
    told = (
        f"{where}.lengths: {length:,} tokens is impossible, at least {least:,} here"
        f" ({generator.least})"
    )
    return f"{told}, {alone:,} with questions = 1" if alone < least else told


def _resolve_task(table: TaskTable, index: int, raw: dict[str, Any], origin: str) -> Task:
    where = f"{origin}: tasks.{table.name}"
    params = check_params(raw, index, origin)
    generator = GENERATORS[table.generator]
    if table.questions > generator.max_questions:
        raise UsageError(
            f"{where}.questions: {table.questions} is more than the {generator.max_questions}"
            f" that {generator.name} can ask of one window"
        )
    least = generator.min_length(params, table.questions)
    for length in table.lengths:
        if length < least:
            raise UsageError(_too_short(where, length, params, table))
        if length > MAX_LENGTH:
            raise UsageError(
                f"{where}.lengths: {length:,} tokens is impossible, at most {MAX_LENGTH:,} here"
            )
        if table.lengths.count(length) > 1:
            raise UsageError(f"{where}.lengths: {length:,} stands there twice")
    return Task(
        name=table.name,
        generator=table.generator,
        writer=generator,
        lengths=tuple(table.lengths),
        windows=table.windows,
        questions=table.questions,
        headline=table.headline,
        params=params,
    )
