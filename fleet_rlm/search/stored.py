"""A stored job as files tell it: how far it is, its trials, what each choice bought. No dspy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from statistics import fmean
from typing import Any

from fleet_rlm.errors import UsageError, nearest
from fleet_rlm.runner.store import read_json
from fleet_rlm.search.spending import SPENDING, read_spending
from fleet_rlm.statistics.unpaired import difference_interval

TRIALS = "trials.json"
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredJob:
    """What the files of a job say."""

    folder: Path
    lock: Mapping[str, Any]
    """The content of `job.json`."""

    study: Mapping[str, Any] | None
    """The content of `trials.json`; None before the baseline is measured."""

    result: Mapping[str, Any] | None
    """The content of `result.json`; None before the end."""

    @property
    def stage(self) -> str:
        """Where the job is."""
        if self.result is not None:
            return "done"
        if (self.folder / "sealed.json").exists():
            return "sealed test"
        if (self.folder / "candidates.json").exists():
            return "study"
        return "candidates"

    @property
    def trials(self) -> Sequence[Row]:
        """One row a trial, as `trials.json` has them.

        Raises:
            UsageError: there is none yet.
        """
        if self.study is None:
            raise UsageError(
                f"{self.folder} has no trial yet: it is at the stage {self.stage!r}.",
                fix="fleet-optimize status",
            )
        rows: Sequence[Row] = self.study["trials"]
        return rows

    def trial(self, number: int | None) -> Row:
        """The trial of this number; the best so far when absent.

        Raises:
            UsageError: there is none.
        """
        rows = self.trials
        number = self.study["winner"] if self.study and number is None else number
        found = [row for row in rows if row["trial"] == number]
        if not found:
            raise UsageError(f"No trial {number} in {self.folder}: it has {len(rows)}, from 0.")
        return found[0]

    @property
    def is_simulated(self) -> bool:
        """Whether a simulated model had a part in it."""
        return bool(self.lock["arm"]["model_kind"] == "simulated")

    def status(self) -> dict[str, Any]:
        """What `fleet-optimize status --json` prints."""
        spent = read_spending(self.folder / SPENDING)
        found: dict[str, Any] = {
            "job": self.folder.name,
            "stage": self.stage,
            "recipe": self.lock["recipe"]["name"],
            "usd": round(spent.usd, 9),
            "calls": spent.calls,
        }
        if self.study is not None:
            ended = [row for row in self.trials if row["outcome"] != "running"]
            found |= {
                "trials": len(ended),
                "wanted": self.study["wanted"],
                "best": dict(self.trial(None)),
                "front": self.study["front"],
            }
        return found


def open_job(name: str, jobs_dir: Path) -> StoredJob:
    """A job by its folder, or by its name in the project.

    Raises:
        UsageError: no such job, or a file of it that cannot be read.
    """
    folder = Path(name) if Path(name, "job.json").is_file() else jobs_dir / name
    lock = read_json(folder / "job.json")
    if lock is None:
        known = sorted(path.parent.name for path in jobs_dir.glob("*/job.json"))
        raise UsageError(
            f"No job {name!r} here or in {jobs_dir}. {nearest(name, known)}",
            fix="fleet-optimize run quickstart",
        )
    study, result = read_json(folder / TRIALS), read_json(folder / "result.json")
    return StoredJob(folder=folder, lock=lock, study=study, result=result)


def diff(job: StoredJob, number: int | None) -> dict[str, Any]:
    """What a trial changed against the baseline, and what each change bought over all trials.

    Args:
        job: a stored job.
        number: of the trial; the winner when absent.

    Returns:
        `trial`; `changes`: for each dimension that differs its `baseline` and `trial` values, and
        `score` and `usd`: mean over trials with the trial's choice less mean over those with the
        baseline's, None where either is empty; `score_interval` and `usd_interval`: 95 % of them
        (`statistics.unpaired`), as if trials had been drawn at random; `n`: how many trials there
        are of either; `instructions`: predictor -> lines of a unified diff; `demos`: predictor ->
        what the trial shows.

    Raises:
        UsageError: no such trial.
    """
    row, base = job.trial(number), job.trial(0)
    candidates = read_json(job.folder / "candidates.json") or {"instructions": {}, "demos": {}}
    texts: dict[str, list[str]] = {}
    for name, found in candidates["instructions"].items():
        before, after = (
            found[_position(params, f"{name}.instruction")]["text"].splitlines()
            for params in (base["params"], row["params"])
        )
        texts[name] = list(unified_diff(before, after, "baseline", f"trial {row['trial']}", "", "",
                                        2, ""))  # fmt: skip
    shown = {
        name: [_outline(demo) for demo in found[_position(row["params"], f"{name}.demos")]]
        for name, found in candidates["demos"].items()
    }
    return {
        "trial": row["trial"],
        "changes": {
            name: _effect(job.trials, name, base["params"][name], value)
            for name, value in row["params"].items()
            if value != base["params"][name]
        },
        "instructions": {name: lines for name, lines in texts.items() if lines},
        "demos": {name: demos for name, demos in shown.items() if demos},
    }


def _position(params: Mapping[str, Any], name: str) -> int:
    return int(params.get(name, 0))


def _effect(rows: Sequence[Row], name: str, before: Any, after: Any) -> dict[str, Any]:
    scored = [row for row in rows if row["score"] is not None]
    sides = [[row for row in scored if row["params"][name] == v] for v in (before, after)]
    found: dict[str, Any] = {"baseline": before, "trial": after, "n": list(map(len, sides))}
    for value in ("score", "usd"):
        less, more = ([row[value] for row in side] for side in sides)
        found[value] = fmean(more) - fmean(less) if less and more else None
        found[f"{value}_interval"] = difference_interval(less, more)
    return found


def _outline(demo: Mapping[str, Any]) -> dict[str, Any]:
    """What a worked example shows, in a few words."""
    text = str(demo.get("reasoning") or next((v for v in demo.values() if isinstance(v, str)), ""))
    return {"shows": text.strip().split("\n")[0][:120], "chars": len(json.dumps(demo))}
