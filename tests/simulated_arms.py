"""Runs quickstart samples on the simulated model: what the tests of that model share."""

from __future__ import annotations

import contextvars
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import dspy

from fleet_rlm import LocalInterpreter
from fleet_rlm.lm.simulated import ORACLE_GUIDANCE, SimulatedEngine
from fleet_rlm.lm.simulated.skill import ABILITIES, elicit, sample_key
from fleet_rlm.program.registry import AnswerQuery
from fleet_rlm.program.rlm import RLM
from fleet_rlm.scoring import score
from fleet_rlm.suites.sample import Sample
from fleet_rlm.suites.suite import load_suite

QUICKSTART = Path(__file__).parents[1] / "evals" / "quickstart.toml"


@dataclass
class Outcome:
    sample: Sample
    answer: Any
    score: float
    trajectory: list[dict[str, str]] = field(default_factory=list)

    @property
    def code(self) -> str:
        return "\n".join(step["code"] for step in self.trajectory)

    @property
    def output(self) -> str:
        return "\n".join(step["output"] for step in self.trajectory)


def make_lm(engine: SimulatedEngine, model: str = "sim", **settings: Any) -> dspy.LM:
    return dspy.LM(model, engine=engine, cache=False, **settings)


def make_samples(*, tasks: Sequence[str] = (), seed: int = 0, **values: Any) -> list[Sample]:
    suite = load_suite(QUICKSTART).override({"seed": seed, **values})
    return [p.build() for p in suite.plan() if not tasks or p.task in tasks]


def make_rlm(guidance: str = "", **settings: Any) -> dspy.Module:
    return RLM(AnswerQuery, guidance=guidance, interpreter_factory=LocalInterpreter, **settings)


def able_seed(samples: Sequence[Sample], guidance: str = ORACLE_GUIDANCE) -> int:
    """A seed with which the model has every ability on all of the samples, and no bad luck."""
    keys = [sample_key(sample.query, sample.context) for sample in samples]
    for seed in range(10_000):
        skills = [elicit(guidance, "", key, seed) for key in keys]
        if all(
            len(s.abilities) == len(ABILITIES) and not s.is_buggy and not s.is_sloppy
            for s in skills
        ):
            return seed
    raise AssertionError("no seed in 10,000 is lucky on all samples")


def judge(sample: Sample, answer: Any) -> Any:
    return score(answer, sample.question, task_rule=sample.task)


def run(
    program: dspy.Module, samples: Sequence[Sample], engine: SimulatedEngine, *, threads: int = 4
) -> list[Outcome]:
    """Answers of a program with `context, query -> answer`, in the order of the samples."""
    lm = make_lm(engine)

    def answer(sample: Sample) -> Outcome:
        with dspy.context(lm=lm, disable_history=True):
            found = program(context=sample.context, query=sample.query)
        return Outcome(
            sample=sample,
            answer=found.answer,
            score=judge(sample, found.answer).robust,
            trajectory=found.get("trajectory", []),
        )

    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(contextvars.copy_context().run, answer, s) for s in samples]
        return [job.result() for job in jobs]


def mean(outcomes: Sequence[Outcome], *, length: int | None = None, task: str = "") -> float:
    return fmean(
        outcome.score
        for outcome in outcomes
        if length in (None, outcome.sample.length) and task in ("", outcome.sample.task)
    )
