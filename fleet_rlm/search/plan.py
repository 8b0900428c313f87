"""What a job will take before it is started: evaluations, calls and dollars by stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fleet_rlm.runner.estimate import (
    Estimate,
    estimate_from_prior,
    estimate_from_runs,
    find_history,
)
from fleet_rlm.search.job import MARGIN, Compilation
from fleet_rlm.search.race import rungs
from fleet_rlm.search.study import GENERATION
from fleet_rlm.suites.plan import PlannedSample

FEWEST = 3
"""Candidates below which a search is hardly one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One part of a job."""

    name: str
    samples: int
    """To run, epochs counted; of the study at most, as races drop trials earlier."""

    calls: float
    usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """What a job is expected to take."""

    trials: int
    stages: tuple[Stage, ...]
    basis: str
    """Where the figures come from, in words."""

    fits: int | None
    """Candidates that the cap in dollars has room for; None without such a cap."""

    @property
    def warning(self) -> str | None:
        """What to say when the cap is too small for a search."""
        if self.fits is None or self.fits >= FEWEST:
            return None
        return (
            f"The cap has room for {self.fits} candidates beside baseline and sealed test: raise"
            " --max-usd, or lower 'validation' or 'test'."
        )

    def to_json(self) -> dict[str, Any]:
        """By field, with calls and dollars of all stages."""
        return asdict(self) | {
            "calls": sum(stage.calls for stage in self.stages),
            "usd": sum(stage.usd for stage in self.stages),
        }


def plan_job(job: Compilation) -> JobPlan:
    """Count what each stage runs and multiply with what earlier runs of the program took."""
    recipe, parts = job.recipe, job.split
    race = _race(parts.validation, recipe.batch)
    first = 1 + recipe.learns
    tried = max(0, recipe.trials - first)
    passes = 1 + recipe.reflections * recipe.uses("reflections")
    stages = {
        "training": passes * list(parts.train),
        "first trials": first * list(parts.validation),
        "study": [sample for _ in range(-(-tried // GENERATION)) for sample in race],
        "sealed test": 2 * list(parts.test),
    }
    made = {
        name: (len(samples) * recipe.epochs, _estimate(job, samples))
        for name, samples in stages.items()
        if samples
    }
    shown = tuple(
        Stage(name=name, samples=n, calls=found.calls.expected, usd=found.usd.expected)
        for name, (n, found) in made.items()
    )
    usd = {stage.name: stage.usd for stage in shown}
    fits = None
    if job.caps.usd is not None:
        fixed = usd.get("training", 0.0) + usd["first trials"] + MARGIN * usd["sealed test"]
        one = usd["study"] / max(1, tried)
        fits = max(0, min(tried, int((job.caps.usd - fixed) / one))) if one else tried
    basis = next(iter(made.values()))[1].basis
    return JobPlan(trials=recipe.trials, stages=shown, basis=basis, fits=fits)


def _race(samples: Sequence[PlannedSample], batch: int) -> list[PlannedSample]:
    """What one generation runs when only halving drops trials."""
    running, done = GENERATION, 0
    ran: list[PlannedSample] = []
    for size in rungs(batch, len(samples)):
        ran += running * list(samples[done:size])
        running, done = max(1, running // 2), size
    return ran


def _estimate(job: Compilation, samples: Sequence[PlannedSample]) -> Estimate:
    lengths = [sample.length for sample in samples] * job.recipe.epochs
    arm = job.arm
    prices = {"root": arm.root.price, "sub": arm.sub.price}
    sandbox_usd_s = arm.sandbox.usd_per_s if arm.sandbox else 0.0
    history = find_history(job.runs_dir, job.recipe.program, arm.model_kind)
    if history.records:
        return estimate_from_runs(
            lengths,
            history,
            prices,
            concurrency=job.concurrency,
            sandbox_usd_s=sandbox_usd_s,
        )
    kind = "code" if arm.entry.runs_code else "direct"
    own = arm.settings.to_json()
    calls = [own[name] for name in ("max_iters", "max_llm_calls") if name in own]
    return estimate_from_prior(
        lengths, kind, prices, max_calls=sum(calls) or None, sandbox_usd_s=sandbox_usd_s
    )
