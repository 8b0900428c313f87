"""Which samples of a run get a trace."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

from fleet_rlm.errors import UsageError, nearest

Trace = Literal["all", "sampled", "none"]
TRACES: tuple[Trace, ...] = get_args(Trace)

SAMPLED = 10
"""Chosen by the hash of their names: the same ones in every arm, so that traces can be compared."""

FAILED = 10
EXTREMES = 5
"""Best, and as many worst."""


def parse_trace(given: str | None) -> Trace:
    """What `--trace` says; "sampled" when it says nothing.

    Raises:
        UsageError: none of `TRACES`.
    """
    for trace in TRACES:
        if given == trace:
            return trace
    if given is not None:
        raise UsageError(f"Unknown --trace {given!r}. {nearest(given, TRACES)}")
    return "sampled"


def chosen(records: Sequence[Mapping[str, object]], trace: Trace) -> list[Mapping[str, object]]:
    """The records whose attempts are shown as traces, in their order.

    Args:
        records: of a run, one per sample and epoch.
        trace: "all", "none", or "sampled": some at random, those that failed, best and worst, at
            most `SAMPLED + FAILED + 2 * EXTREMES` together.
    """
    if trace != "sampled":
        return list(records) if trace == "all" else []
    scored = [record for record in records if isinstance(record.get("score"), int | float)]
    wanted = [
        *sorted(records, key=_hash)[:SAMPLED],
        *[record for record in records if record.get("status") == "error"][:FAILED],
        *sorted(scored, key=_by("score"))[:EXTREMES],
        *sorted(scored, key=_by("score"))[-EXTREMES:],
    ]
    picked = {id(record) for record in wanted}
    return [record for record in records if id(record) in picked]


def _by(name: str) -> Callable[[Mapping[str, object]], tuple[float, str]]:
    return lambda record: (float(str(record[name])), _hash(record))


def _hash(record: Mapping[str, object]) -> str:
    key = f"{record.get('sample')}/{record.get('epoch')}"
    return hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
