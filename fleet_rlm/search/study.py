"""The joint study: generations of trials are proposed, racing decides what each may cost."""

from __future__ import annotations

import hashlib
import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from fleet_rlm.errors import BudgetExhausted, UsageError
from fleet_rlm.search.lab import Lab
from fleet_rlm.search.objective import Measured, Values, estimate, violations
from fleet_rlm.search.policy import choose, front, tolerance_of
from fleet_rlm.search.race import rungs, survivors
from fleet_rlm.search.space import Params, Space
from fleet_rlm.search.surrogate import RATES, Seen, propose
from fleet_rlm.suites.plan import PlannedSample

DIRECTIONS: tuple[Literal["maximize", "minimize"], ...] = ("maximize", "minimize", "minimize")
"""Score, dollars a sample, latency."""

GENERATION = 4
"""Trials that are proposed together and race against each other. Part of the result: a study asks
for the next generation only when it knows the last one. The additive model of `surrogate` proposes
one for each of its rates, TPE, which sees what works only together, the last."""

STARTUP = 6
"""Trials that TPE draws at random before it models what it saw."""

REDRAWS = 10
"""Draws for a trial that was not tried yet; then one of the rest is drawn."""

HINT = 0.5
"""What a training sample says of an instruction beside a validation sample: it may be one of those
that the instruction was written from."""

LARGEST = 100_000
"""Points up to which a space is listed to find those that were not tried."""

JOURNAL = "study.log"

Outcome = Literal["complete", "dropped", "failed", "running"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """One trial of a study."""

    number: int
    """0 is the baseline."""

    params: Params
    outcome: Outcome
    """"complete" ran the whole validation, "dropped" lost a race, "failed" has no score."""

    samples: int
    """Validation samples that it ran."""

    values: Values | None
    """Estimated from fewer samples where it was dropped; None without a score."""

    is_feasible: bool
    """Whether it may win: few failures, no score far below the baseline's."""

    measured: Measured


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """How a study ended."""

    trials: tuple[TrialResult, ...]
    winner: int
    front: tuple[int, ...]
    """Trials that no other beats, of those that ran the whole validation and may win."""

    ended: str
    """Why: all trials done, the space exhausted, or a cap."""

    def trial(self, number: int) -> TrialResult:
        """The trial of this number, 0 for the baseline's."""
        return self.trials[number]

    @property
    def done(self) -> int:
        """Trials that have ended."""
        return sum(trial.outcome != "running" for trial in self.trials)


class Study:
    """A study in a job's folder: the journal is the only state, and each step is a function of it.

    Args:
        lab: measures candidates.
        space: what is varied.
        first: trials that run the whole validation before any race, the baseline first.
        samples: the validation, in racing order.
        trials: to try, the baseline among them.
        batch: samples of the first rung.
        policy: who wins.
        seed: of the proposals.
        hints: what the training samples say of instructions.
        max_sample_usd: what a sample may cost with the winner.
    """

    def __init__(
        self,
        lab: Lab,
        space: Space,
        samples: Sequence[PlannedSample],
        *,
        first: Sequence[Params],
        trials: int,
        batch: int,
        policy: str,
        seed: int,
        hints: Sequence[Seen] = (),
        max_sample_usd: float | None = None,
    ) -> None:
        self._hints = hints
        self._max_sample_usd = max_sample_usd
        self._lab, self._space, self._samples = lab, space, samples
        self._first = first
        self._wanted = min(trials, space.size)
        self._rungs = rungs(batch, len(samples))
        self._policy, self._seed = policy, seed
        self._cluster_of = {sample.id: sample.cluster for sample in samples}
        self._study = _open(lab.folder / JOURNAL)

    def run(self, on_generation: Callable[[StudyResult], None]) -> StudyResult:
        """Race generation after generation; a study that was killed goes on where it was.

        Args:
            on_generation: called after each generation with what is known by then.

        Raises:
            BudgetExhausted: a cap was met before any trial but the baseline was complete.
            Paused: models or sandboxes keep failing.
            UsageError: as `Lab.run_trials`.
            Interrupted: the user stopped the job.
        """
        ended = f"all {self._wanted} trials are done"
        generation = 0
        while self._size(generation) > 0:
            members = self._members(generation)
            if not members:
                ended = "every point that could be drawn was tried"
                break
            try:
                self._race(members, generation)
            except BudgetExhausted as error:
                if sum(trial.outcome == "complete" for trial in self.result().trials) < 2:
                    raise
                ended = f"the budget of the study is used up: {error.message}"
                break
            on_generation(self.result())
            generation += 1
        return self.result(ended)

    @property
    def wanted(self) -> int:
        """Trials to try."""
        return self._wanted

    @property
    def _frozen(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def result(self, ended: str = "") -> StudyResult:
        """What is known so far."""
        trials = [self._result_of(trial) for trial in self._frozen]
        able = {
            trial.number: trial.values
            for trial in trials
            if trial.outcome == "complete" and trial.is_feasible and trial.values is not None
        }
        return StudyResult(
            trials=tuple(trials),
            winner=choose(able, self._policy) if able else 0,
            front=tuple(front(able)),
            ended=ended,
        )

    def importances(self) -> dict[str, float]:
        """Dimension -> share of the variance of scores that it explains.

        Empty with fewer than four scored trials, or when all score alike. Source: PED-ANOVA,
        Watanabe, Bansal, Hutter 2023, arXiv 2304.10255, by Optuna.
        """
        scored = [trial for trial in self._frozen if trial.state == TrialState.COMPLETE]
        if len(scored) < 4 or len({trial.values[0] for trial in scored}) < 2:
            return {}
        with _quiet():
            found = optuna.importance.get_param_importances(
                self._study,
                evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
                # It explains what makes its target small.
                target=lambda trial: -trial.values[0],
            )
        return {name: float(share) for name, share in found.items()}

    def _result_of(self, trial: FrozenTrial) -> TrialResult:
        size = int(trial.user_attrs.get("samples", 0))
        measured = self._lab.measured(trial.params, self._samples[:size])
        values = None
        if trial.state == TrialState.COMPLETE:
            score, usd, latency_s = trial.values
            values = Values(score=score, usd=usd, latency_s=latency_s)
        outcome: Outcome = trial.user_attrs.get("outcome", "running")
        return TrialResult(
            number=trial.number,
            params=dict(trial.params),
            outcome=outcome if trial.state.is_finished() else "running",
            samples=size,
            values=values,
            is_feasible=all(value <= 0 for value in trial.constraints.values()),
            measured=measured,
        )

    def _members(self, generation: int) -> list[FrozenTrial]:
        """The trials of a generation, proposed as far as they are not in the journal yet."""
        of_it = [t for t in self._frozen if t.user_attrs["generation"] == generation]
        for trial in of_it:
            if trial.state == TrialState.RUNNING:
                self._fix(Trial(self._study, trial._trial_id))
            elif trial.state == TrialState.WAITING:
                self._fix(self._study.ask())
        for _ in range(self._size(generation) - len(of_it)):
            params = self._propose()
            if params is None:
                break
            # One line in the journal: after a kill the trial is there with all of its choices.
            self._study.enqueue_trial(dict(params), user_attrs={"generation": generation})
            self._fix(self._study.ask())
        return [t for t in self._frozen if t.user_attrs["generation"] == generation]

    def _size(self, generation: int) -> int:
        """Trials of a generation, 0 or below after the last one."""
        if generation == 0:
            return len(self._first)
        return min(GENERATION, self._wanted - len(self._first) - (generation - 1) * GENERATION)

    def _seen(self, frozen: Sequence[FrozenTrial]) -> list[Seen]:
        """What training passes and ended trials say, as differences to the baseline."""
        found = list(self._hints)
        if not frozen or frozen[0].state != TrialState.COMPLETE:
            return found
        base = frozen[0].values
        for trial in frozen[1:]:
            if trial.state != TrialState.COMPLETE:
                continue
            score, usd, latency_s = trial.values
            found.append(
                Seen(
                    params=trial.params,
                    samples=trial.user_attrs["samples"],
                    score=score - base[0],
                    usd=_doublings(usd, base[1]),
                    latency=_doublings(latency_s, base[2]),
                )
            )
        return found

    def _fix(self, trial: Trial) -> None:
        for name, choices in self._space.choices.items():
            trial.suggest_categorical(name, choices)

    def _propose(self) -> Params | None:
        """Choices for the next trial: a function of the journal and the seed, nothing else."""
        frozen = self._frozen
        if len(frozen) < len(self._first):
            return self._first[len(frozen)]
        tried = [trial.params for trial in frozen]
        for redraw in range(REDRAWS):
            params = self._draw(frozen, redraw)
            if params not in tried:
                return params
        rest = [params for params in self._space.points(LARGEST) if params not in tried]
        return random.Random(f"{self._seed}:{len(frozen)}").choice(rest) if rest else None

    def _draw(self, frozen: Sequence[FrozenTrial], redraw: int) -> dict[str, Any]:
        key = f"{self._seed}:{len(frozen)}:{redraw}".encode()
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big")
        place = (len(frozen) - len(self._first)) % GENERATION
        if place < len(RATES):
            return propose(self._space, self._seen(frozen), RATES[place], seed)
        with _quiet():
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=STARTUP, multivariate=True, constant_liar=True
            )
            copy = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
            copy.add_trials(frozen)
            trial = copy.ask()
            self._fix(trial)
        return dict(trial.params)

    def _race(self, members: Sequence[FrozenTrial], generation: int) -> None:
        """Run a generation up the rungs, then tell all of it.

        Told at the end only: a generation whose race was cut off is raced again, from stored
        records, against the same leader.
        """
        running = {trial.number: trial.params for trial in members}
        ended: dict[int, tuple[Outcome, int]] = {}
        for size in self._rungs if generation else self._rungs[-1:]:
            batch = self._samples[:size]
            self._lab.run_trials(list(running.values()), batch)
            if size == len(self._samples):
                break
            found = {number: self._lab.measured(p, batch) for number, p in running.items()}
            kept = survivors(
                found,
                self._leader(generation),
                self._cluster_of,
                tolerance=tolerance_of(self._policy),
            )
            ended |= {number: ("dropped", size) for number in running if number not in kept}
            running = {number: running[number] for number in sorted(kept)}
            if not running:
                break
        ended |= dict.fromkeys(running, ("complete", len(self._samples)))
        for trial in members:
            self._tell(trial, *ended[trial.number])

    def _leader(self, generation: int) -> Measured:
        """The highest score among earlier generations' trials that ran the whole validation."""
        able = [
            trial
            for trial, frozen in zip(self.result().trials, self._frozen, strict=True)
            if trial.outcome == "complete"
            and trial.is_feasible
            and frozen.user_attrs["generation"] < generation
        ]
        best = max(able, key=lambda trial: trial.values.score if trial.values else -1.0)
        return best.measured

    def _tell(self, member: FrozenTrial, outcome: Outcome, size: int) -> None:
        if member.state.is_finished():
            return
        found = self._lab.measured(member.params, self._samples[:size])
        trial = Trial(self._study, member._trial_id)
        trial.set_user_attr("samples", size)
        base_params = self._frozen[0].params
        baseline = self._lab.measured(base_params, self._samples)
        if not found.score.keys() & baseline.score.keys():
            if member.number == 0:
                raise UsageError(
                    "The baseline has no score on any validation sample, so nothing can be"
                    f" compared with it: see {self._lab.folder_of(member.params)}.",
                    fix="fleet-eval samples on that folder",
                )
            trial.set_user_attr("outcome", "failed")
            self._study.tell(member.number, state=TrialState.FAIL)
            return
        values = estimate(found, baseline)
        broken = violations(found, values, estimate(baseline, baseline), self._max_sample_usd)
        for name, value in broken.items():
            # The baseline may always win: then nothing is promoted.
            trial.set_constraint(name, value if member.number else min(value, 0.0))
        trial.set_user_attr("outcome", outcome)
        self._study.tell(member.number, [values.score, values.usd, values.latency_s])


def hints(passes: Sequence[Mapping[str, Any]], samples: int) -> list[Seen]:
    """What passes over the training samples say of instructions before the study.

    Args:
        passes: of `Candidates`, the baseline's first.
        samples: of each.
    """
    return [
        Seen(params=one["params"], samples=HINT * samples, score=one["score"] - passes[0]["score"])
        for one in passes[1:]
    ]


def _doublings(value: float, base: float) -> float | None:
    return math.log2(value / base) if value > 0 and base > 0 else None


def _open(path: Path) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        directions=DIRECTIONS,
        storage=JournalStorage(JournalFileBackend(str(path))),
        study_name="job",
        load_if_exists=True,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "PedAnovaImportanceEvaluator computes")
        yield
