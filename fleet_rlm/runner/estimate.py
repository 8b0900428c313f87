"""What a run will take before it is started: calls, tokens, dollars and time, with a range."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fleet_rlm.errors import UsageError
from fleet_rlm.ledger import Usage
from fleet_rlm.lm.prices import Price
from fleet_rlm.runner.record import Record, last_records
from fleet_rlm.runner.store import read_records
from fleet_rlm.runner.stored import open_run

DRAWS = 2_000
"""Runs drawn from the earlier samples for the range."""

LOW, HIGH = 0.05, 0.95
"""Quantiles of those runs that bound the range."""


class Range(NamedTuple):
    """An expectation and the bounds around it."""

    low: float
    expected: float
    high: float


class Spending(NamedTuple):
    """What one sample took, or is assumed to take."""

    calls: float
    root_in: float
    root_out: float
    sub_in: float
    sub_out: float
    seconds: float
    sandbox_s: float = 0.0
    """Life of its sandbox, where that is paid for."""


PRIORS: Mapping[str, tuple[Spending, Spending, Spending]] = {
    # Few, usual and many calls; the part of the context that sub-queries read is a share of it.
    "code": (
        Spending(3, 5_000, 600, 0.0, 0, 0.0, 15),
        Spending(12, 15_000, 1_800, 0.5, 600, 0.0, 120),
        Spending(60, 90_000, 8_000, 2.0, 5_000, 0.0, 600),
    ),
    "mapreduce": (
        Spending(2, 1_500, 100, 1.0, 200, 0.0),
        Spending(10, 3_000, 200, 1.1, 2_000, 0.0),
        Spending(40, 10_000, 800, 1.3, 8_000, 0.0),
    ),
    "direct": (
        Spending(1, 500, 20, 0.9, 0, 0.0),
        Spending(1, 1_000, 100, 1.0, 0, 0.0),
        Spending(1, 2_000, 1_000, 1.1, 0, 0.0),
    ),
}
"""Kind of program -> assumptions for one sample, where no run of it is known. `sub_in` is the share
of the context that is read; `direct` reads it with the root model. They are assumptions, made so
wide that a first real run should end within them; the next estimate is made from that run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What to expect of a run."""

    samples: int
    calls: Range
    tokens: Range
    usd: Range
    """Models and sandboxes."""

    sandbox_usd: Range | None
    """Of it for sandboxes; None where they are not paid for."""

    wall_s: Range | None
    """None where no earlier run of such a model tells how long a sample takes."""

    basis: str
    """Where the figures come from, in words."""


class History(NamedTuple):
    """Samples that ended with a score in earlier runs of a program."""

    records: list[Record]
    runs: int
    other_kind: str | None
    """Kind of their models, where no run with a model of the kind asked for is stored."""

    @property
    def basis(self) -> str:
        """Where an estimate from them comes from, in words."""
        runs = "1 earlier run" if self.runs == 1 else f"{self.runs} earlier runs"
        models = f" of {self.other_kind} models, whose time says nothing of this one's"
        return f"{len(self.records)} samples of {runs}" + (models if self.other_kind else "")


def find_history(runs_dir: Path, program: str, kind: str) -> History:
    """Earlier samples of a program.

    Args:
        runs_dir: where runs are stored.
        program: its name.
        kind: of the model asked for; runs with models of another kind count if there are no others.
    """
    by_kind: dict[str, list[list[Record]]] = {}
    for folder in sorted(runs_dir.glob("*/")):
        if folder.is_symlink() or not (folder / "run.json").is_file():
            continue
        try:
            arm = open_run(folder).lock["arm"]
            if arm["program"] != program:
                continue
            found = last_records(read_records(folder / "records.jsonl")).values()
        except UsageError:
            continue  # a folder that cannot be read says nothing
        scored = [record for record in found if record.status != "error" and record.usage]
        if scored:
            by_kind.setdefault(arm["model_kind"], []).append(scored)
    known = kind if kind in by_kind else next(iter(by_kind), kind)
    runs = by_kind.get(known, [])
    return History(list(chain.from_iterable(runs)), len(runs), None if known == kind else known)


def estimate_from_runs(
    lengths: Sequence[int],
    history: History,
    prices: Mapping[str, Price],
    *,
    concurrency: int,
    sandbox_usd_s: float = 0.0,
    seed: int = 0,
) -> Estimate:
    """Draw whole runs from earlier samples, each from those whose context was nearest in length.

    Args:
        lengths: context of each sample to run, in tokens; epochs repeat.
        history: earlier samples of the same program.
        prices: role -> price of the models asked for now.
        concurrency: samples in flight.
        sandbox_usd_s: dollars a second of a sample's sandbox.
        seed: of the draws.

    Returns:
        Means over the draws, with the 5 % and 95 % quantiles: how much such runs vary when samples
        are like the earlier ones. Another model may behave otherwise.
    """
    by_length: dict[int, list[Spending]] = {}
    for record in history.records:
        by_length.setdefault(record.length, []).append(_spending(record))
    known = np.array(sorted(by_length))
    rng = np.random.default_rng(seed)
    totals = np.zeros((DRAWS, len(Spending._fields)))
    for length, count in sorted(Counter(lengths).items()):
        nearest = int(known[np.argmin(np.abs(np.log(known / length)))])
        pool = np.array(by_length[nearest])
        picked = rng.integers(len(pool), size=(DRAWS, count))
        totals += pool[picked].sum(axis=1)
    sandboxes = totals[:, Spending._fields.index("sandbox_s")] * sandbox_usd_s
    seconds = totals[:, Spending._fields.index("seconds")] / min(concurrency, len(lengths))
    return Estimate(
        samples=len(lengths),
        calls=_range(totals[:, 0]),
        tokens=_range(totals[:, 1:5].sum(axis=1)),
        usd=_range(_dollars(totals.T, prices) + sandboxes),
        sandbox_usd=_range(sandboxes) if sandbox_usd_s else None,
        wall_s=None if history.other_kind else _range(seconds),
        basis=history.basis,
    )


def estimate_from_prior(
    lengths: Sequence[int],
    kind: str,
    prices: Mapping[str, Price],
    *,
    max_calls: int | None,
    sandbox_usd_s: float = 0.0,
) -> Estimate:
    """Multiply assumptions: see `PRIORS`.

    Args:
        lengths: context of each sample, in tokens.
        kind: a key of `PRIORS`.
        prices: role -> price.
        max_calls: turns and sub-queries that the settings allow a sample; None for no such limit.
        sandbox_usd_s: dollars a second of a sample's sandbox.
    """
    sums = []
    for assumed in PRIORS[kind]:
        calls = assumed.calls if max_calls is None else min(assumed.calls, max_calls)
        read = assumed.sub_in * sum(lengths)
        n = len(lengths)
        root_in = assumed.root_in * n + (read if kind == "direct" else 0)
        sub_in = 0.0 if kind == "direct" else read
        total = Spending(calls * n, root_in, assumed.root_out * n, sub_in, assumed.sub_out * n, 0.0)
        sandboxes = assumed.sandbox_s * n * sandbox_usd_s
        sums.append((total, float(_dollars(np.array(total), prices)) + sandboxes, sandboxes))
    return Estimate(
        samples=len(lengths),
        calls=Range(*(total.calls for total, _, _ in sums)),
        tokens=Range(*(sum(total[1:5]) for total, _, _ in sums)),
        usd=Range(*(usd for _, usd, _ in sums)),
        sandbox_usd=Range(*(usd for _, _, usd in sums)) if sandbox_usd_s else None,
        wall_s=None,
        basis="assumptions: no earlier run of this program is stored",
    )


def _spending(record: Record) -> Spending:
    root, sub = (Usage.from_json(record.usage.get(role, {})) for role in ("root", "sub"))
    return Spending(
        root.calls + sub.calls,
        root.input_tokens,
        root.output_tokens,
        sub.input_tokens,
        sub.output_tokens,
        record.working_s,
        # a box of this machine lived about as long as one on Modal would
        Usage.from_json(record.usage.get("sandbox", {})).seconds or record.working_s,
    )


def _dollars(spent: np.ndarray, prices: Mapping[str, Price]) -> np.ndarray:
    """Shape (fields,) or (fields, runs) -> dollars of models; cached input is not foreseen."""
    root, sub = prices["root"], prices["sub"]
    a_million = np.array((root.input, root.output, sub.input, sub.output))
    found: np.ndarray = a_million @ spent[1:5] / 1e6
    return found


def _range(values: np.ndarray) -> Range:
    low, high = np.quantile(values, (LOW, HIGH))
    return Range(float(low), float(values.mean()), float(high))
