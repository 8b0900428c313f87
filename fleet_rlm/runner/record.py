"""One line of a run: what happened to one sample in one epoch. Written once, never edited."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

Status = Literal["scored", "limit", "error"]


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

    tokens: int = 0
    """Length of the context in tokens."""

    turns: int = 0
    """Turns with the REPL; 0 for a program without one."""

    seconds: float = 0.0
    usage: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Role -> calls, input_tokens, output_tokens and usd of this attempt."""

    error: ErrorInfo | None = None
    trajectory: str | None = None
    """Path of the trajectory inside the run folder."""

    @property
    def key(self) -> Key:
        return Key(self.sample, self.epoch)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Record:
        """Read one line back.

        Raises:
            TypeError: a field is missing or unknown.
        """
        error = line.get("error")
        return cls(**{**line, "error": ErrorInfo(**error) if error else None})


def last_records(records: Iterable[Record]) -> dict[Key, Record]:
    """The record that counts for each key: the last one written."""
    return {record.key: record for record in records}


def owed(
    planned: Sequence[Key], records: Iterable[Record], *, retry: Collection[str] = ()
) -> list[Key]:
    """Keys still to run, in planned order.

    A key is settled by its last record, unless that is an error whose boundary is in `retry`.
    """
    last = last_records(records)
    return [
        key
        for key in planned
        if (record := last.get(key)) is None or (record.error and record.error.boundary in retry)
    ]
