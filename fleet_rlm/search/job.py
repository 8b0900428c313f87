"""Runs one compilation: candidates, study, then baseline and winner on the same sealed test."""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import dspy

from fleet_rlm.config import Resolved
from fleet_rlm.errors import UsageError, nearest
from fleet_rlm.ledger import Caps, Limits
from fleet_rlm.lm.connect import ModelSpec, specify_judge, specify_pair
from fleet_rlm.program.bundle import save
from fleet_rlm.program.find import find_program
from fleet_rlm.program.manifest import Evidence, Score
from fleet_rlm.program.rebuild import find_cover
from fleet_rlm.program.recursion import ProgramSettings
from fleet_rlm.program.registry import Entry
from fleet_rlm.program.state import texts
from fleet_rlm.project import find_content
from fleet_rlm.runner.arm import Arm
from fleet_rlm.runner.executor import StopFlag, stop_on_signals
from fleet_rlm.runner.run import Progress, Whole, wall_so_far
from fleet_rlm.runner.sandboxes import specify_sandbox
from fleet_rlm.runner.store import repair_and_read, write_atomic
from fleet_rlm.scoring.judge import check_independent
from fleet_rlm.scoring.own import OwnRule
from fleet_rlm.search.candidates import (
    Candidates,
    as_it_is,
    read_candidates,
    write_candidates,
)
from fleet_rlm.search.lab import PATIENCE_S, Interrupted, Lab
from fleet_rlm.search.leaks import find_leak, know
from fleet_rlm.search.learn import Learning
from fleet_rlm.search.policy import Noise, selection_noise
from fleet_rlm.search.recipe import SUB_MODEL, Recipe
from fleet_rlm.search.space import check_space, make_space
from fleet_rlm.search.spending import SPENDING, JobPurse
from fleet_rlm.search.split import Split, split_suite
from fleet_rlm.search.stored import TRIALS
from fleet_rlm.search.study import Study, StudyResult, TrialResult, hints
from fleet_rlm.search.writer import Writer
from fleet_rlm.statistics.paired import Comparison, compare
from fleet_rlm.suites.suite import Suite, load_suite

MARGIN = 1.5
"""What is held back for the sealed test, as a multiple of what it is expected to take."""

OVERFIT = 0.02
"""Gain that a test may lack of the validation's before it is called overfit, at least."""

UNBOUND = ("description", "trials", "max_usd", "max_seconds")
"""Keys of a recipe that may change while its job is under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """How a job ended."""

    folder: Path
    bundle: Path | None
    """The winner, for `fleet_rlm.load` and `--program`; None for a program that is not this
    package's, whose learned state is `state.json`, for `program.load`."""

    baseline: dict[str, Any]
    """Summary of the sealed test, before."""

    winner: dict[str, Any]
    """Summary of the sealed test, compiled, with the winner's `trial` and `params`."""

    front: list[dict[str, Any]]
    """Trials that no other beats on the validation."""

    study: dict[str, Any]
    """How the search went: trials, why it ended, importances, selection noise."""

    test: Comparison
    """Winner against baseline on the sealed test."""

    cost: Comparison
    """The same in dollars a sample."""

    latency: Comparison
    """The same in seconds a sample; of a simulated model by its calls and tokens."""

    gain: dict[str, float]
    """Winner less baseline on `validation` and on `test`, in score units."""

    warnings: list[str]
    """What to mind when reading the figures."""

    demos: int
    """Worked examples in the compiled prompts."""

    usage: dict[str, float]
    """Of the whole job: `usd`, `calls`, `tokens`, `seconds`, and `compile_usd` without the test."""

    @property
    def compile_usd(self) -> float:
        """US dollars of the job without its sealed test."""
        return self.usage["compile_usd"]

    def to_json(self) -> dict[str, Any]:
        """What `fleet-optimize run --json` prints."""
        scores = {"baseline": self.baseline["score"], "winner": self.winner["score"]}
        return {
            "job": self.folder.name,
            "bundle": str(self.bundle) if self.bundle else None,
            "baseline": self.baseline,
            "winner": self.winner,
            "front": self.front,
            "study": self.study,
            "test": scores | asdict(self.test),
            "cost": asdict(self.cost),
            "latency": asdict(self.latency),
            "gain": self.gain,
            "warnings": self.warnings,
            "demos": self.demos,
            "usage": self.usage,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Compilation:
    """A recipe with everything resolved, ready to run."""

    recipe: Recipe
    suite: Suite
    split: Split
    arm: Arm
    """The baseline."""

    proposer: ModelSpec
    """Writes instructions."""

    models: Mapping[str, ModelSpec]
    """Models that the space names, by name."""

    folder: Path
    runs_dir: Path
    """Where earlier runs are, for estimates."""

    concurrency: int
    caps: Caps = field(default_factory=Caps)
    patience_s: Sequence[float] = PATIENCE_S

    def identity(self) -> dict[str, Any]:
        """What makes it this job: trials and caps may be raised and the job resumed."""
        recipe = self.recipe.model_dump(mode="json", exclude=set(UNBOUND))
        return {"recipe": recipe, "arm": self.arm.identity(), "suite": self.suite.digest}


def prepare(
    recipe: Recipe,
    resolved: Resolved,
    project: Path,
    out: Path | None,
    *,
    program: Entry | None = None,
    suite: Suite | None = None,
) -> Compilation:
    """Check everything that can be checked before a model is called.

    Args:
        recipe: what to do.
        resolved: models, concurrency, sandbox.
        project: where suites are found and jobs stored.
        out: the job's folder; named by recipe and model when absent.
        program: what `recipe.program` names, where it is no name.
        suite: what `recipe.suite` names, where it is no name.

    Raises:
        UsageError: unknown suite, program, setting, metric or model, no key, too few samples.
        SandboxUnavailable: no isolation holds here.
    """
    suite = suite or load_suite(find_content("evals", recipe.suite, project).path)
    suite = suite.override({"seed": recipe.seed, **recipe.overrides})
    entry = program or find_program(recipe.program)
    root, sub = specify_pair(resolved, os.environ)
    settings = make_settings(entry, recipe.program, recipe.settings)
    check_space(recipe.space, settings)
    arm = Arm(
        program=recipe.program,
        entry=entry,
        settings=settings,
        root=root,
        sub=sub,
        sandbox=specify_sandbox(resolved.config) if entry.runs_code else None,
        limits=Limits(),
        judge=_judge(recipe, resolved, {"root": root.name, "sub": sub.name}),
    )
    suite.read_in(os.environ)
    parts = split_suite(
        suite,
        train=recipe.train if recipe.learns else 0,
        validation=recipe.validation,
        test=recipe.test,
        seed=recipe.seed,
    )
    name = f"{recipe.name}--{arm.root.name.replace('/', '-')}"
    return Compilation(
        recipe=recipe,
        suite=suite,
        split=_scored_by(recipe.metric, parts) if recipe.metric else parts,
        arm=arm,
        proposer=_specify(resolved, recipe.models.get("proposer", root.name)),
        models={sub.name: sub}
        | {name: _specify(resolved, name) for name in map(str, recipe.space.get(SUB_MODEL, ()))},
        folder=out or project / resolved.config.runs_dir / "jobs" / name,
        runs_dir=project / resolved.config.runs_dir,
        concurrency=resolved.config.concurrency,
        caps=Caps(usd=recipe.max_usd, seconds=recipe.max_seconds),
    )


def make_settings(entry: Entry, name: str, given: Mapping[str, int]) -> ProgramSettings:
    """A program's settings: its defaults, and what a recipe changes.

    Raises:
        UsageError: it has no such setting, or the value is out of range.
    """
    for key in given:
        if key not in entry.settings_type.SPEC:
            known = nearest(key, entry.settings_type.SPEC)
            raise UsageError(f"Program {name!r} has no setting {key!r}. {known}")
    return entry.settings_type(**given)


def _judge(recipe: Recipe, resolved: Resolved, others: Mapping[str, str]) -> ModelSpec | None:
    name = recipe.models.get("judge")
    if name is None:
        return None
    proposer = recipe.models.get("proposer", others["root"])
    check_independent(name, {**others, "proposer": proposer}, allow_same=False)
    return specify_judge(name, resolved, os.environ)


def _scored_by(metric: str, parts: Split) -> Split:
    if ".py:" not in metric:
        raise UsageError(f"metric = {metric!r} names no function.", fix='metric = "FILE.py:score"')
    OwnRule.parse(metric).load()
    return Split(*([replace(sample, rule=metric) for sample in part] for part in parts))


def _specify(resolved: Resolved, name: str) -> ModelSpec:
    """Another model, by the endpoint and key of the job's."""
    asked = replace(resolved, config=resolved.config.model_copy(update={"sub_model": name}))
    return specify_pair(asked, os.environ)[1]


def run_job(job: Compilation, progress: Mapping[str, Progress]) -> JobResult | None:
    """Candidates, study, sealed test, bundle; what an earlier session has finished is kept.

    Every evaluation is an ordinary run folder inside the job's. The test is opened once, for the
    baseline and the winner, when the winner is chosen and written down.

    Args:
        job: from `prepare`.
        progress: one each for "baseline" and "winner", on the sealed test.

    Returns:
        None when it was interrupted; the same call again goes on.

    Raises:
        UsageError: the folder holds another job or cannot be written, the scorer fails, or the
            space has one point.
        BudgetExhausted: a cap is met before there is a result; a higher one goes on.
        Paused: models or sandboxes keep failing.
    """
    with _opened(job) as purse:
        stop = StopFlag()
        with stop_on_signals(stop, progress["baseline"].say):
            try:
                return _Session(job, purse, stop, progress).run()
            except Interrupted:
                return None


class _Session:
    """One go at a job."""

    def __init__(
        self, job: Compilation, purse: JobPurse, stop: StopFlag, progress: Mapping[str, Progress]
    ) -> None:
        self.job, self.purse, self.progress = job, purse, progress
        self.say = progress["baseline"].say
        self.stop = stop
        program = job.arm.make_program()
        self.lab = Lab(
            folder=job.folder,
            suite=job.suite.part("validation"),
            arm=job.arm,
            models=job.models,
            candidates=as_it_is(program),
            whole=Whole(purse=purse, stop=stop),
            concurrency=job.concurrency,
            epochs=job.recipe.epochs,
            patience_s=job.patience_s,
            say=self.say,
        )

    def run(self) -> JobResult:
        job, recipe = self.job, self.job.recipe
        self.lab = replace(self.lab, candidates=self._candidates())
        space = make_space(recipe, job.arm.settings, job.arm.sub.name, self.lab.candidates)
        best = space.first(self.lab.candidates)
        study = Study(
            self.lab,
            space,
            job.split.validation,
            first=[space.baseline, *([best] if best != space.baseline else [])],
            trials=recipe.trials,
            batch=recipe.batch,
            policy=recipe.policy,
            seed=recipe.seed,
            hints=hints(self.lab.candidates.passes, len(job.split.train)),
            max_sample_usd=recipe.max_sample_usd,
        )
        sealed = job.folder / "sealed.json"
        # Once the test is open, a longer search would choose with it in sight.
        found = study.result() if sealed.exists() else study.run(partial(self._tell, study))
        if self.stop and self.stop.error is None:
            raise Interrupted
        chosen = self._seal(sealed, found)
        return self._test(study, found, chosen)

    def _candidates(self) -> Candidates:
        """What the study may put into prompts: stored before the search, read back after a kill."""
        job, path = self.job, self.job.folder / "candidates.json"
        if (stored := read_candidates(path, job.identity())) is not None:
            return stored
        found = self.lab.candidates
        if job.recipe.learns:
            writer = Writer(job.proposer, self.lab.whole, job.folder / "written.jsonl", self.say)
            spent = partial(getattr, self.purse, "usage")
            lab = replace(self.lab, suite=job.suite.part("train"))
            learning = Learning(lab, job.recipe, job.split.train, writer, spent, self.say)
            found = self._without_leaks(learning.candidates())
        write_candidates(path, found, job.identity())
        return found

    def _without_leaks(self, found: Candidates) -> Candidates:
        """The candidates that hold nothing of validation or test."""
        train, validation, test = self.job.split
        own = as_it_is(self.job.arm.make_program())
        known = know(
            (planned.build() for planned in train),
            (planned.build() for planned in (*validation, *test)),
            (text for _, text in texts(own.to_json())),
        )
        clean, leaks = found.where(
            lambda texts, is_instruction: find_leak(texts, known, check_gold=is_instruction)
        )
        for leak in leaks:
            self.say(f"Left out: {leak}.")
        return clean

    def _store(self, study: Study, found: StudyResult, ended: str) -> None:
        """What `status`, `trials` and `diff` read."""
        content = {
            "wanted": study.wanted,
            "ended": ended,
            "winner": found.winner,
            "front": list(found.front),
            "importances": study.importances(),
            "history": self._history(found),
            "trials": [self._row(trial) for trial in found.trials],
        }
        _write(self.job.folder / TRIALS, content)

    def _history(self, found: StudyResult) -> list[dict[str, Any]]:
        """What was best after each generation, and what had been spent by then."""
        path = self.job.folder / TRIALS
        known = json.loads(path.read_text(encoding="utf-8"))["history"] if path.exists() else []
        before = [row for row in known if row["trials"] < found.done]
        if len(known) > len(before):  # a resumed job looks at this generation again
            return list(known)
        spent = self.purse.usage
        now = {"trials": found.done, "best": found.winner}
        return [*before, now | {"calls": spent.calls, "usd": round(spent.usd, 9)}]

    def _row(self, trial: TrialResult) -> dict[str, Any]:
        values = trial.values
        objectives: dict[str, Any] = dict.fromkeys(("score", "usd", "latency_s"))
        return {
            "trial": trial.number,
            "outcome": trial.outcome,
            "feasible": trial.is_feasible,
            "samples": trial.samples,
            "failed": trial.measured.failed,
            **(objectives if values is None else asdict(values)),
            "params": dict(trial.params),
            "run": str(self.lab.folder_of(trial.params).relative_to(self.job.folder)),
        }

    def _tell(self, study: Study, found: StudyResult) -> None:
        self._store(study, found, "")
        self._hold(found)
        done, of = found.done, study.wanted
        best, cap = found.trial(found.winner), self.purse.caps.usd
        values = best.values
        assert values is not None
        self.say(
            f"study  {done}/{of} trials  best {values.score:.3f} at"
            f" ${values.usd:.4f} a sample (trial {best.number})  front {len(found.front)}"
            f"  ${self.purse.usage.usd:.4f}" + ("" if cap is None else f" of {cap:g}")
        )

    def _hold(self, found: StudyResult) -> None:
        """Hold back what the sealed test will take: both arms, the dearest and slowest so far."""
        complete = [trial for trial in found.trials if trial.outcome == "complete"]
        samples = 2 * len(self.job.split.test) * self.job.recipe.epochs
        usd = max(fmean(trial.measured.usd.values()) for trial in complete)
        first = self.lab.folder_of(complete[0].params)
        clock = [record.working_s for record in repair_and_read(first / "records.jsonl")]
        # A session that was killed left no wall time, and one that was throttled little work.
        seconds = max(
            fmean(clock) / min(self.job.concurrency, samples), wall_so_far(first) / len(clock)
        )
        self.purse.held = Caps(usd=MARGIN * samples * usd, seconds=MARGIN * samples * seconds)

    def _seal(self, path: Path, found: StudyResult) -> TrialResult:
        """Write the winner down before the test is opened; afterwards it stays the winner."""
        if not path.exists():
            opened = datetime.now(UTC).isoformat(timespec="seconds")
            content = {
                "winner": found.winner,
                "opened": opened,
                "test": self.job.split.seal,
                "ended": found.ended,
                "compile": self.purse.usage.to_json(),
            }
            _write(path, content)
        return found.trial(json.loads(path.read_text(encoding="utf-8"))["winner"])

    def _test(self, study: Study, found: StudyResult, chosen: TrialResult) -> JobResult:
        job, recipe = self.job, self.job.recipe
        self.purse.held = Caps()
        # A study that a cap ended has stopped what shared its flag; the test starts afresh.
        stop = StopFlag()
        whole = replace(self.lab.whole, stop=stop)
        self.lab = replace(self.lab, whole=whole, suite=job.suite.part("test"))
        with stop_on_signals(stop, self.say):
            arms = {"baseline": job.arm, "winner": self.lab.arm_of(chosen.params)}
            summaries = {}
            for name in ("baseline", "winner") if chosen.number else ("baseline",):
                summaries[name] = self.lab.run(
                    arms[name], job.split.test, job.folder / name, progress=self.progress[name]
                ).summary
        sealed = json.loads((job.folder / "sealed.json").read_text(encoding="utf-8"))
        self._store(study, found, sealed["ended"])
        learned = self._learned(found, chosen)
        before, after = summaries["baseline"], summaries.get("winner", summaries["baseline"])
        program = arms["winner"].make_program()
        compared = self._compare(arms, "winner" if chosen.number else "baseline")
        result = JobResult(
            folder=job.folder,
            bundle=self._export(program, arms["winner"], chosen, before, after),
            baseline=before,
            winner=after | {"trial": chosen.number, "params": dict(chosen.params)},
            front=[_shown(found.trial(number)) for number in found.front],
            study={
                "trials": len(found.trials),
                "complete": sum(trial.outcome == "complete" for trial in found.trials),
                "ended": sealed["ended"],
                "policy": recipe.policy,
                "importances": study.importances(),
                "noise": self._noise(found)._asdict(),
            },
            test=compared["score"],
            cost=compared["usd"],
            latency=compared["seconds"],
            gain={"validation": learned.difference, "test": compared["score"].difference},
            warnings=_warnings(learned, compared["score"], before, after),
            demos=sum(len(predictor.demos) for predictor in program.predictors()),
            usage=self._usage(sealed["compile"]["usd"]),
        )
        stored = job.folder / "result.json"
        if not stored.exists():
            _write(stored, result.to_json())
        return result

    def _learned(self, found: StudyResult, chosen: TrialResult) -> Comparison:
        """Winner against baseline on the validation that chose it."""
        cluster_of = {sample.id: sample.cluster for sample in self.job.split.validation}
        learned = compare(found.trial(0).measured.score, chosen.measured.score, cluster_of)
        assert learned is not None
        return learned

    def _usage(self, compile_usd: float) -> dict[str, float]:
        path = self.job.folder / "result.json"
        if path.exists():  # looking at a finished job again takes none of its time
            stored: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))["usage"]
            return stored
        spent = self.purse.usage
        return {
            "usd": round(spent.usd, 9),
            "calls": spent.calls,
            "tokens": spent.tokens,
            "seconds": round(spent.seconds, 3),
            "compile_usd": compile_usd,
        }

    def _noise(self, found: StudyResult) -> Noise:
        able = {
            trial.number: trial.measured
            for trial in found.trials
            if trial.outcome == "complete" and trial.is_feasible
        }
        cluster_of = {sample.id: sample.cluster for sample in self.job.split.validation}
        recipe = self.job.recipe
        return selection_noise(able, cluster_of, recipe.policy, seed=recipe.seed)

    def _export(
        self,
        program: dspy.Module,
        arm: Arm,
        chosen: TrialResult,
        before: dict[str, Any],
        after: dict[str, Any],
    ) -> Path | None:
        job = self.job
        folder = job.folder / "bundle"
        if folder.exists():
            return folder
        try:
            find_cover(program, None)
        except UsageError as error:
            self.say(f"No bundle: {error.message} Its learned state is in state.json.")
            program.save(job.folder / "state.json")
            return None
        evidence = Evidence(
            model_kind=arm.root.kind,
            models={"root": arm.root.name, "sub": arm.sub.name},
            suite=job.suite.name,
            before=_score(before),
            after=_score(after),
            data={"suite": job.suite.digest},
            optimizer=job.recipe.optimizer,
            seed=job.recipe.seed,
            job=job.folder.name,
            trial=chosen.number,
        )
        return save(program, folder, evidence=evidence)

    def _compare(self, arms: Mapping[str, Arm], winner: str) -> dict[str, Comparison]:
        """Winner against baseline on the sealed test: by "score", "usd" and "seconds"."""
        job = self.job
        ids = [sample.id for sample in job.split.test]
        before, after = (
            self.lab.measure(arms[name], job.folder / name, ids) for name in ("baseline", winner)
        )
        cluster_of = {sample.id: sample.cluster for sample in job.split.test}
        found = {}
        for value in ("score", "usd", "seconds"):
            compared = compare(getattr(before, value), getattr(after, value), cluster_of)
            if compared is None:
                raise UsageError(
                    f"No sample of the test was scored both before and after: see {job.folder}.",
                    fix="the same command again",
                )
            found[value] = compared
        return found


@contextmanager
def _opened(job: Compilation) -> Iterator[JobPurse]:
    """The job's folder, for this process alone.

    Raises:
        UsageError: it holds another job, is in use, or cannot be written.
    """
    folder = job.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise UsageError(f"Cannot write {folder}: {error.strerror}.", fix="--out DIR") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"Job folder {folder} is in use by another process; wait, or use --out."
            ) from None
        path, identity = folder / "job.json", job.identity()
        if not path.exists():
            _write(path, identity)
        elif (was := json.loads(path.read_text(encoding="utf-8"))) != identity:
            differs = [key for key in identity if was.get(key) != identity[key]]
            raise UsageError(
                f"{folder} holds another job: {' and '.join(differs)} differ.",
                fix="--out DIR with a new folder",
            )
        purse = JobPurse(folder / SPENDING, job.caps)
        try:
            yield purse
        finally:
            purse.close()


def _warnings(
    learned: Comparison, test: Comparison, before: Mapping[str, Any], after: Mapping[str, Any]
) -> list[str]:
    found = []
    lost = learned.difference - test.difference
    noise = math.hypot(learned.stderr or 0.0, test.stderr or 0.0)
    if lost > max(OVERFIT, 2 * noise):
        found.append(
            f"overfit: the winner gained {learned.difference:+.3f} on the validation that chose it"
            f" and {test.difference:+.3f} on the test"
        )
    for name, summary in (("baseline", before), ("winner", after)):
        if summary["coverage"] < 1:
            found.append(f"{name}: {summary['errors']} samples of the test have no score")
    return found


def _shown(trial: TrialResult) -> dict[str, Any]:
    assert trial.values is not None
    return {"trial": trial.number, **asdict(trial.values), "params": dict(trial.params)}


def _score(summary: dict[str, Any]) -> Score | None:
    if summary["score"] is None:
        return None
    n = summary["samples"]
    return Score(
        score=summary["score"],
        n=summary["scored"],
        ci=None if summary["ci"] is None else tuple(summary["ci"]),
        usd=summary["usage"]["usd"] / n,
        seconds=summary["wall_s"] / n,
    )


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_atomic(path, (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode())
