"""Makes the candidates of a job from its training samples: reflections, worked examples, proposals.

Every pass over the training samples is a run folder, and every text that a model wrote is stored
at once: a job that is killed here goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import dspy

from fleet_rlm.errors import UsageError
from fleet_rlm.ledger import Usage
from fleet_rlm.program.recursion import ProgramSettings
from fleet_rlm.runner.arm import Arm
from fleet_rlm.runner.record import Record, last_records
from fleet_rlm.runner.store import read_records, read_trajectory
from fleet_rlm.runner.summary import sample_means
from fleet_rlm.search.bootstrap import Step, Traced, draw_demo_sets, read_steps, used_predictors
from fleet_rlm.search.candidates import Candidates
from fleet_rlm.search.feedback import reflective_examples
from fleet_rlm.search.lab import Lab
from fleet_rlm.search.recipe import Recipe
from fleet_rlm.search.space import INSTRUCTION, Params
from fleet_rlm.search.writer import Writer
from fleet_rlm.suites.plan import PlannedSample
from fleet_rlm.suites.sample import Sample


@dataclass(frozen=True, slots=True)
class _Pass:
    """One pass of a program over the training samples."""

    folder: Path
    params: Params
    records: Sequence[Record]
    calls: int
    """Of the job, when it ended."""

    @property
    def score(self) -> float:
        scores = sample_means(self.records)
        return fmean(scores.values()) if scores else 0.0


class Learning:
    """Makes candidates.

    Args:
        lab: measures programs; its candidates are the program's own prompts.
        recipe: which candidates, and how many.
        samples: to learn from.
        writer: the model that writes instructions.
        spent: what the job has spent so far.
        say: told of each step.
    """

    def __init__(
        self,
        lab: Lab,
        recipe: Recipe,
        samples: Sequence[PlannedSample],
        writer: Writer,
        spent: Callable[[], Usage],
        say: Callable[[str], None],
    ) -> None:
        self._spent = spent
        self._lab, self._recipe, self._samples = lab, recipe, samples
        self._writer, self._say = writer, say
        self._passes: list[_Pass] = []

    def candidates(self) -> Candidates:
        """Everything that the recipe asks for, the program's own prompts first."""
        recipe = self._recipe
        self._say(f"Learning from {len(self._samples)} training samples.")
        first = self._run(self._lab.arm_of({}), {}, "0")
        found = self._lab.candidates.only(used_predictors(first.folder / "steps"))
        if recipe.uses("reflections"):
            found = self._with_reflections(found, first)
        if recipe.uses("demos"):
            found = self._with_demos(found)
        if recipe.uses("proposals"):
            found = self._with_proposals(found)
        passes = [
            {"params": dict(one.params), "score": one.score, "calls": one.calls}
            for one in self._passes
        ]
        return replace(found, passes=tuple(passes))

    def _with_reflections(self, found: Candidates, first: _Pass) -> Candidates:
        """A chain: each round mends the instruction that did best so far, a predictor in turn."""
        best = first
        for number in range(self._recipe.reflections):
            name = found.predictors[number % len(found.predictors)]
            examples = self._examples(best, number)
            if not examples:
                break
            current = found.instructions[name][int(best.params.get(name + INSTRUCTION, 0))].text
            text = self._writer.reflect(name, number, current=current, examples=examples)
            found, position = found.with_instruction(name, text, f"reflection {number + 1}")
            if position is None:
                continue
            params = {**best.params, name + INSTRUCTION: position}
            lab = replace(self._lab, candidates=found)
            tried = self._run(lab.arm_of(params), params, str(number + 1))
            self._say(
                f"reflection {number + 1} on {name}: {tried.score:.3f} on the training samples,"
                f" before {best.score:.3f}"
            )
            best = tried if tried.score >= best.score else best
        positions = {name: int(best.params.get(name + INSTRUCTION, 0)) for name in found.predictors}
        return replace(found, best=positions if best.score > first.score else {})

    def _with_demos(self, found: Candidates) -> Candidates:
        pool: dict[str, dict[str, list[Step]]] = {}
        for one in self._passes:
            scores = sample_means(one.records)
            passed = [s for s in self._samples if scores.get(s.id, 0.0) >= self._recipe.threshold]
            for name, steps in read_steps(one.folder / "steps", passed).items():
                # What a better instruction brought out takes the place of an earlier success.
                pool.setdefault(name, {}).update(steps)
        demos = dict(found.demos)
        for name in found.predictors:
            drawn = draw_demo_sets(
                pool.get(name, {}), size=self._recipe.demos, seed=self._recipe.seed
            )
            demos[name] = (*demos[name], *drawn)
            self._say(
                f"worked examples of {name}: {len(drawn)} sets, from {len(pool.get(name, {}))} of"
                f" {len(self._samples)} samples that scored {self._recipe.threshold:g} or more"
            )
        return replace(found, demos=demos)

    def _with_proposals(self, found: Candidates) -> Candidates:
        program = self._lab.arm.make_program()
        about = self._about()
        for name in found.predictors:
            for number in range(self._recipe.proposals):
                text = self._writer.propose(
                    name,
                    number,
                    program=program,
                    about=about,
                    demo_sets=found.demos[name],
                    seed=self._recipe.seed,
                )
                found, _ = found.with_instruction(name, text, f"proposal {number + 1}")
            self._say(f"instructions of {name}: {len(found.instructions[name])}, its own included")
        return found

    def _run(self, arm: Arm, params: Params, name: str) -> _Pass:
        folder = self._lab.folder / "train" / name
        traced = partial(_traced, arm.entry.make, folder / "steps")
        self._lab.run(replace(arm, entry=replace(arm.entry, make=traced)), self._samples, folder)
        ids = {sample.id: position for position, sample in enumerate(self._samples)}
        last = last_records(read_records(folder / "records.jsonl")).values()
        # In planned order: which sample ended first is chance, and must choose no example.
        mine = sorted((r for r in last if r.sample in ids), key=lambda r: (ids[r.sample], r.epoch))
        found = _Pass(folder, params, mine, self._spent().calls)
        if not sample_means(found.records):
            raise UsageError(
                f"No training sample has a score, so nothing can be learned: see {folder}.",
                fix=f"fleet-eval samples {folder} --failed",
            )
        self._passes.append(found)
        return found

    def _examples(self, one: _Pass, number: int) -> list[dict[str, Any]]:
        built: Mapping[str, Sample] = {planned.id: planned.build() for planned in self._samples}
        steps = {
            record.sample: read_trajectory(one.folder, record)["steps"]
            for record in one.records
            if record.trajectory
        }
        known = [record for record in one.records if record.sample in steps]
        return reflective_examples(
            known, steps, built, seed=f"reflect:{self._recipe.seed}:{number}"
        )

    def _about(self) -> str:
        """Task and program, in words: what a proposer needs to know, and no context."""
        suite, arm = self._lab.suite, self._lab.arm
        queries: dict[str, str] = {}
        for planned in self._samples:
            queries.setdefault(planned.task, planned.build().query)
        lengths = sorted({planned.length for planned in self._samples})
        lines = [
            suite.description,
            f"Contexts have {lengths[0]:,} to {lengths[-1]:,} tokens. One query of each task:",
            *(f"- {task}: {query}" for task, query in queries.items()),
            f"The program is a {arm.entry.summary}.",
        ]
        if arm.entry.runs_code:
            lines.append(
                "It writes Python in a REPL that holds the context as a variable; functions there"
                " ask a sub-model, and another submits the answer. How to call them is added to"
                " each prompt, so an instruction holds guidance for the task only."
            )
        return "\n".join(lines)


def _traced(
    make: Callable[[str, ProgramSettings], dspy.Module],
    folder: Path,
    guidance: str,
    settings: ProgramSettings,
) -> dspy.Module:
    return Traced(make(guidance, settings), folder)
