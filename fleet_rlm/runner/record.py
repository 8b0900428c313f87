"""One line of a run: what happened to one sample in one epoch. Written once, never edited."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, NamedTuple

from fleet_rlm.ledger import Limits, Usage

Status = Literal["scored", "limit", "error"]

SCHEMA = 2
"""Version of a line; older ones are read through `_MIGRATIONS`."""

LIMIT_NAMES = {"working": "working_s", "wall": "wall_s", "tokens": "tokens", "usd": "usd"}
"""How a record names a limit of the sample in `stop` -> its name in `ledger.Limits`."""


class Key(NamedTuple):
    """What a record is about."""

    sample: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """Why a sample has no score."""

    boundary: str
    """Who failed: "provider", "sandbox", "program", "scorer" or "data"."""

    type: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line of `records.jsonl`."""

    sample: str
    epoch: int
    """0-based repetition."""

    task: str
    cluster: str
    """Id of the context; samples of one cluster are not independent."""

    length: int
    """Target length of the context in tokens."""

    status: Status
    """`limit` is a result and carries a score; `error` is missing data."""

    stop: str
    """How the program ended: "submitted", "answered", "iterations", "wall", ..., or "error"."""

    score: float | None = None
    """In [0, 1]; None exactly when `status` is "error"."""

    official: float | None = None
    """The benchmark's own rule."""

    robust: float | None = None
    """Our documented rule."""

    blind: Mapping[str, float] = field(default_factory=dict)
    """Policy that never reads the context -> its score here; see `scoring.blind_scores`."""

    answer: str | None = None
    """What the program answered, cut to 500 characters; the whole of it is in the trajectory."""

    feedback: str = ""
    """Where the answer was lost, in words. Host side only: it narrows the gold answer down."""

    expected: str | None = None
    """The gold answer, cut to 500 characters; None for a sealed dataset, and for an error. Host
    side only."""

    tokens: int = 0
    """Length of the context in tokens."""

    turns: int = 0
    """Turns with the REPL; 0 for a program without one."""

    seconds: float = 0.0
    """From the start of the attempt to its end."""

    working_s: float = 0.0
    """The part of `seconds` in which no call waited for a rate limit."""

    usage: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Role -> what this attempt spent, as `ledger.Usage.to_json`."""

    recursion: Mapping[str, int] | None = None
    """What an RLM did, as `recursion.Recursion`; None for other programs."""

    limit: float | None = None
    """The sample's limit that `stop` names, in its unit; None when none of them ended it."""

    error: ErrorInfo | None = None
    trajectory: str | None = None
    """Path of the trajectory inside the run folder."""

    rescored: bool = False
    """Whether this is a stored answer scored again: its usage was booked by the record before."""

    @property
    def key(self) -> Key:
        """What it settles: sample and epoch."""
        return Key(self.sample, self.epoch)

    def to_json(self) -> dict[str, Any]:
        """One line of `records.jsonl`; `from_json` reads it back."""
        return {"schema": SCHEMA, **{name: getattr(self, name) for name in FIELDS}} | {
            "error": asdict(self.error) if self.error else None
        }

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Record:
        """Read one line back, whichever version wrote it.

        Raises:
            TypeError: a field is missing or unknown.
            ValueError: a newer version wrote it.
        """
        line = migrate(line)
        error = line.get("error")
        return cls(**{**line, "error": ErrorInfo(**error) if error else None})


FIELDS = tuple(item.name for item in fields(Record))


def migrate(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of any version as one of this version, without its version.

    Raises:
        ValueError: a newer version wrote it.
    """
    found = dict(line)
    version = found.pop("schema", 1)
    if version not in (*_MIGRATIONS, SCHEMA):
        raise ValueError(f"schema {version} was written by another version of fleet-rlm")
    for step in range(version, SCHEMA):
        found = _MIGRATIONS[step](found)
    return found


def _from_1(line: dict[str, Any]) -> dict[str, Any]:
    # Version 1 knew no waits: all of its time was working time.
    usage = {role: Usage.from_json(spent).to_json() for role, spent in line["usage"].items()}
    return line | {"working_s": line.get("seconds", 0.0), "usage": usage}


_MIGRATIONS = {1: _from_1}


def last_records(records: Iterable[Record]) -> dict[Key, Record]:
    """The record that counts for each key: the last one written."""
    return {record.key: record for record in records}


def total_usage(by_role: Mapping[str, Mapping[str, float]]) -> Usage:
    """What all roles spent together."""
    return sum(map(Usage.from_json, by_role.values()), Usage())


def owed(
    planned: Sequence[Key],
    records: Iterable[Record],
    *,
    retry: Collection[str] = (),
    limits: Limits | None = None,
) -> list[Key]:
    """Keys still to run, in planned order.

    A key is settled by its last record, unless that is an error whose boundary is in `retry`, or it
    ended at a limit of the sample that is higher now: with more it might have gone on.
    """
    last = last_records(records)
    return [
        key
        for key in planned
        if (record := last.get(key)) is None
        or (record.error and record.error.boundary in retry)
        or (limits is not None and _has_more(record, limits))
    ]


def _has_more(record: Record, limits: Limits) -> bool:
    """Whether the limit that ended a record is higher now, or gone."""
    if record.limit is None:
        return False
    limit = getattr(limits, LIMIT_NAMES[record.stop])
    return limit is None or record.limit < limit
