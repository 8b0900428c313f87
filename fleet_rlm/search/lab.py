"""Runs candidates on samples: an ordinary run folder each, side by side, under one cap."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import dspy

from fleet_rlm.errors import Paused, UsageError
from fleet_rlm.lm.connect import ModelSpec
from fleet_rlm.program.recursion import ProgramSettings
from fleet_rlm.runner.arm import Arm
from fleet_rlm.runner.progress import SilentProgress
from fleet_rlm.runner.record import Record, last_records
from fleet_rlm.runner.run import Effort, Finished, Plan, Progress, Whole, run_arm
from fleet_rlm.runner.store import repair_and_read
from fleet_rlm.search.candidates import Candidates
from fleet_rlm.search.objective import Measured, measure
from fleet_rlm.search.recipe import SUB_MODEL
from fleet_rlm.search.space import DEMOS, INSTRUCTION, Params
from fleet_rlm.suites.plan import PlannedSample
from fleet_rlm.suites.suite import Suite

OUTAGES = ("provider", "sandbox")
"""Owners of failures that say nothing of a candidate."""

RETRIED = (*OUTAGES, "scorer", "data")
"""Owners of failures that the same command tries again."""

PATIENCE_S = (2.0, 10.0, 30.0)
"""Waits before samples that an outage took are run again; then the job pauses."""

POLL_S = 0.2


class Interrupted(Exception):
    """The user stopped the job; the same command goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """What every measurement of a job shares."""

    folder: Path
    suite: Suite
    """That the samples are of: a job's, with its banks' part for them."""

    arm: Arm
    """The baseline."""

    models: Mapping[str, ModelSpec]
    """Those that may take a sub-model's place, by name."""

    candidates: Candidates
    whole: Whole
    concurrency: int
    epochs: int
    patience_s: Sequence[float] = PATIENCE_S
    say: Callable[[str], None] = field(default=print)

    def arm_of(self, params: Params) -> Arm:
        """The arm of a trial: the baseline with its choices."""
        learned = {
            name: {
                "instruction": self.candidates.instructions[name][
                    int(params.get(name + INSTRUCTION, 0))
                ].text,
                "demos": self.candidates.demos[name][int(params.get(name + DEMOS, 0))],
            }
            for name in self.candidates.predictors
        }
        own = self.arm.settings
        changed = {name: int(value) for name, value in params.items() if name in own.SPEC}
        return replace(
            self.arm,
            entry=replace(self.arm.entry, make=partial(_make, self.arm.entry.make, learned)),
            settings=type(own)(**{**own.to_json(), **changed}),
            sub=self.models[str(params[SUB_MODEL])] if SUB_MODEL in params else self.arm.sub,
        )

    def folder_of(self, params: Params) -> Path:
        """A trial's run folder: equal candidates share one and are paid for once."""
        arm = self.arm_of(params)
        identity = json.dumps(arm.identity(), sort_keys=True).encode()
        return self.folder / "trials" / hashlib.blake2b(identity, digest_size=6).hexdigest()

    def measured(self, params: Params, samples: Sequence[PlannedSample]) -> Measured:
        """What a trial's stored records say of these samples."""
        ids = [sample.id for sample in samples]
        return self.measure(self.arm_of(params), self.folder_of(params), ids)

    def measure(self, arm: Arm, folder: Path, samples: Sequence[str]) -> Measured:
        """What the stored records of an arm say of samples, by their ids."""
        return measure(
            last_records(self._records(folder)).values(),
            samples,
            workers=_workers(arm.settings),
            is_simulated=arm.model_kind == "simulated",
        )

    def run_trials(self, trials: Sequence[Params], samples: Sequence[PlannedSample]) -> None:
        """Bring the stored records of these trials up to these samples, side by side.

        Raises:
            BudgetExhausted: a cap is met.
            Paused: models or sandboxes keep failing.
            UsageError: the scorer fails, or a model refused its configuration.
            Interrupted: the user stopped the job.
        """
        folders = {self.folder_of(params): params for params in trials}
        share = max(1, -(-self.concurrency // len(folders)))
        pool = ThreadPoolExecutor(len(folders), "fleet-trial")
        try:
            running = [
                pool.submit(self.run, self.arm_of(params), samples, folder, concurrency=share)
                for folder, params in folders.items()
            ]
            # The main thread must be free to take signals while trials run.
            while wait(running, timeout=POLL_S, return_when=FIRST_EXCEPTION).not_done:
                if any(done.done() and done.exception() for done in running):
                    self.whole.stop.set("another trial failed")
                    break
            wait(running)
        finally:
            pool.shutdown()
        # What stopped the others comes first: an interruption is only what followed.
        errors = [error for future in running if (error := future.exception())]
        for error in sorted(errors, key=lambda error: isinstance(error, Interrupted)):
            raise error

    def run(
        self,
        arm: Arm,
        samples: Sequence[PlannedSample],
        folder: Path,
        *,
        concurrency: int | None = None,
        progress: Progress | None = None,
    ) -> Finished:
        """Run an arm on samples; those that an outage took again, after a wait.

        Raises:
            as `run_trials`.
        """
        plan = Plan(suite=self.suite, samples=samples, epochs=self.epochs)
        for wait_s in (*self.patience_s, None):
            finished = run_arm(
                arm,
                plan,
                folder,
                effort=Effort(
                    concurrency=concurrency or self.concurrency, workers=1, retry=RETRIED
                ),
                # Trials side by side would talk over each other.
                progress=progress or SilentProgress(io.StringIO()),
                whole=self.whole,
            )
            if finished.budget is not None:
                raise finished.budget
            if finished.interrupted:
                raise Interrupted
            failed = self._failed(folder, samples)
            if not failed:
                return finished
            self._wait(failed, wait_s)
        raise AssertionError("the last wait raises")

    def _failed(self, folder: Path, samples: Sequence[PlannedSample]) -> list[Record]:
        """Records whose failure is not the candidate's."""
        wanted = {sample.id for sample in samples}
        last = last_records(self._records(folder)).values()
        return [r for r in last if r.sample in wanted and r.error and r.error.boundary in RETRIED]

    def _wait(self, failed: Sequence[Record], wait_s: float | None) -> None:
        error = failed[0].error
        assert error is not None
        what = f"{len(failed)} samples failed ({error.boundary}): {error.message}"
        if error.boundary not in OUTAGES:
            raise UsageError(what, fix="mend it, then the same command: what is scored is kept")
        if wait_s is None:
            raise Paused(
                f"The job pauses: {what} Nothing is scored 0 for it.",
                fix="the same command when the service is back",
            )
        self.say(f"{what} Trying again in {wait_s:g} s.")
        until = time.monotonic() + wait_s
        while time.monotonic() < until:
            if self.whole.stop:
                raise Interrupted
            time.sleep(min(POLL_S, wait_s))

    def _records(self, folder: Path) -> list[Record]:
        return repair_and_read(folder / "records.jsonl")


def _make(
    make: Callable[[str, ProgramSettings], dspy.Module],
    learned: Mapping[str, Mapping[str, Any]],
    guidance: str,
    settings: ProgramSettings,
) -> dspy.Module:
    program = make(guidance, settings)
    predictors = dict(program.named_predictors())
    for name, given in learned.items():
        predictor = predictors[name]
        predictor.signature = predictor.signature.with_instructions(given["instruction"])
        predictor.demos = [dspy.Example(dict(demo)) for demo in given["demos"]]
    return program


def _workers(settings: ProgramSettings) -> int:
    return settings["batch_workers"] if "batch_workers" in settings.SPEC else 1
