"""What becomes of a winner: exported as a bundle, or promoted to an alias if the test allows."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson

from fleet_rlm.errors import FleetError, UsageError, nearest
from fleet_rlm.search.stored import StoredJob
from fleet_rlm.statistics.clustered import unseen_share

ALPHA = 0.05
MAX_LOSS = 0.05
"""Score that a cheaper winner may lose at most, by the lower end of its interval."""

MIN_COVERAGE = 0.8

LOG = "promotions.jsonl"

CHAMPION = "champion"
PREVIOUS = "previous"
"""Alias of the bundle that was the champion before."""


class Verdict(NamedTuple):
    """Whether a sealed test carries a promotion."""

    reason: Literal["better", "cheaper", "unproven"]
    text: str
    """One line with the figures that decided."""


class Promotion(NamedTuple):
    """A bundle that got an alias."""

    path: Path
    """For `--program`, `--bundle` and `fleet_rlm.load`."""

    bundle: str
    verdict: Verdict
    forced: str | None
    """Why it was promoted against the verdict."""


def judge(result: Mapping[str, Any]) -> Verdict:
    """What the sealed test of a job says.

    "better": the score is higher, p < 0.05. "cheaper": the lower end of the score difference's
    interval is not below -0.05, and the whole interval of the difference in dollars lies below 0.
    An interval without width proves nothing beyond the contexts asked: its lower end is then taken
    for minus the share of contexts that may behave otherwise all the same.

    Args:
        result: the content of `result.json`.
    """
    test, cost = result["test"], result["cost"]
    coverage = min(result[side]["coverage"] for side in ("baseline", "winner"))
    if result["winner"]["trial"] == 0:
        return Verdict("unproven", "the winner is the baseline: no trial beat it")
    if coverage < MIN_COVERAGE:
        return Verdict("unproven", f"only {coverage:.0%} of the test has a score")
    shown = f"difference {test['difference']:+.3f}, p = {test['p']:.3g}, n = {test['n']}"
    if test["difference"] > 0 and test["p"] < ALPHA:
        return Verdict("better", shown)
    low = _low(test)
    dollars = cost["ci"]
    if low is not None and low >= -MAX_LOSS and dollars is not None and dollars[1] < 0:
        return Verdict(
            "cheaper", f"{shown}, at least {low:+.3f}; dollars a sample {cost['difference']:+.5f}"
        )
    floor = "no interval" if low is None else f"it may lose {max(0.0, -low):.3f}"
    return Verdict("unproven", f"{shown}: not significant, and {floor} (allowed {MAX_LOSS})")


def _low(test: Mapping[str, Any]) -> float | None:
    if test["ci"] is None:
        return None
    if test["degenerate"]:
        return float(test["difference"] - unseen_share(test["clusters"]))
    return float(test["ci"][0])


def export(job: StoredJob, target: Path) -> Path:
    """Copy the winner's bundle.

    Raises:
        UsageError: the job has none yet, or the target exists and is no bundle.
    """
    _check_exportable(job)
    if target.exists() and not (target / "manifest.json").is_file():
        raise UsageError(f"{target} exists and is not a bundle: choose another path.")
    staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(job.folder / "bundle", staging)
        if target.exists():
            shutil.rmtree(target)
        staging.rename(target)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise UsageError(f"Cannot write {target}: {error.strerror or error}.") from None
    return target


def _check_exportable(job: StoredJob) -> None:
    if job.result is None:
        raise UsageError(
            f"{job.folder} is at the stage {job.stage!r} and has no bundle yet.",
            fix="fleet-optimize run, with the same recipe",
        )
    if not (job.folder / "bundle").exists():
        raise UsageError(
            f"{job.folder} has no bundle: the program is not one of this package's.",
            fix=f"program.load('{job.folder / 'state.json'}')",
        )


def promote(job: StoredJob, bundles_dir: Path, alias: str, *, force: str | None) -> Promotion:
    """Give the winner's bundle an alias, and write down why.

    The bundle is copied to `bundles_dir/RECIPE/ID`, and `bundles_dir/RECIPE/ALIAS` points at it; a
    program that loads the alias has the winner from its next start on.

    Args:
        job: a finished job.
        bundles_dir: where the project keeps bundles.
        alias: "champion", "staging", ...
        force: why to promote without evidence; recorded.

    Raises:
        UsageError: the job is not finished, or the alias is no plain name.
        FleetError: the test does not carry it.
    """
    if not alias.isidentifier():
        raise UsageError(f"--alias must be a plain name, got {alias!r}.", fix="--alias champion")
    if force is not None and not force.strip():
        raise UsageError("--force needs a reason, which is recorded.", fix='--force "why"')
    _check_exportable(job)
    assert job.result is not None
    verdict = judge(job.result)
    if verdict.reason == "unproven" and force is None:
        raise FleetError(f"Not promoted: {verdict.text}.", fix='a larger test, or --force "why"')
    manifest = json.loads((job.folder / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    home = bundles_dir / job.lock["recipe"]["name"]
    target = home / manifest["bundle"]
    if not target.exists():
        export(job, target)
    before = _pointed(home / alias)
    if alias == CHAMPION and before not in (None, target.name):
        _point(home / PREVIOUS, str(before))
    _point(home / alias, target.name)
    found = Promotion(home / alias, manifest["bundle"], verdict, force)
    line = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "alias": alias,
        "bundle": found.bundle,
        "job": job.folder.name,
        "verdict": verdict._asdict(),
        "forced": force,
    }
    _note(home, line)
    return found


def rollback(bundles_dir: Path, recipe: str) -> Path:
    """Point the alias "champion" at the bundle that had it before, and write it down.

    Args:
        bundles_dir: where the project keeps bundles.
        recipe: whose winner was promoted.

    Returns:
        The alias. A second rollback undoes the first.

    Raises:
        UsageError: nothing was promoted, or only once.
    """
    home = bundles_dir / recipe
    now, before = _pointed(home / CHAMPION), _pointed(home / PREVIOUS)
    if now is None or before is None:
        known = sorted(path.parent.name for path in bundles_dir.glob(f"*/{PREVIOUS}"))
        others = f" {nearest(recipe, known)}" if known else ""
        raise UsageError(
            f"{home} has no earlier {CHAMPION} to go back to.{others}",
            fix="fleet-optimize promote JOB",
        )
    _point(home / CHAMPION, before)
    _point(home / PREVIOUS, now)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    _note(home, {"at": at, "alias": CHAMPION, "bundle": before, "rollback": now})
    return home / CHAMPION


def _note(home: Path, line: Mapping[str, Any]) -> None:
    with (home / LOG).open("ab") as file:
        file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


def _pointed(link: Path) -> str | None:
    """The bundle that an alias points at."""
    return str(link.readlink()) if link.is_symlink() else None


def _point(link: Path, name: str) -> None:
    if link.exists() and not link.is_symlink():
        raise UsageError(f"{link} exists and is no alias: choose another --alias.")
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name, target_is_directory=True)
    temporary.replace(link)
