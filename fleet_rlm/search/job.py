"""Runs one compilation: the baseline and the compiled program on the same sealed test."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fleet_rlm.config import Resolved
from fleet_rlm.errors import UsageError
from fleet_rlm.ledger import Ledger, Limits
from fleet_rlm.lm.connect import specify_pair
from fleet_rlm.program.bundle import save
from fleet_rlm.program.find import find_program, parse_settings
from fleet_rlm.program.manifest import Evidence, Score
from fleet_rlm.project import find_content
from fleet_rlm.runner.arm import Arm
from fleet_rlm.runner.record import last_records
from fleet_rlm.runner.run import Effort, Plan, Progress, make_bench, run_arm
from fleet_rlm.runner.store import repair_and_read, write_atomic
from fleet_rlm.runner.summary import sample_means
from fleet_rlm.sandbox import levels
from fleet_rlm.sandbox.redact import Redactor
from fleet_rlm.search.bootstrap import bootstrap
from fleet_rlm.search.recipe import Recipe
from fleet_rlm.search.split import Split, split
from fleet_rlm.statistics.paired import Comparison, compare
from fleet_rlm.suites.suite import Suite, load_suite


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """How a job ended."""

    folder: Path
    bundle: Path
    """The compiled program, for `fleet_rlm.load` and `--program`."""

    baseline: dict[str, Any]
    """Summary of the sealed test, before."""

    winner: dict[str, Any]
    """Summary of the sealed test, compiled."""

    test: Comparison
    """Winner against baseline on the sealed test."""

    demos: int
    """Worked examples in the compiled prompts."""

    compile_usd: float

    def to_json(self) -> dict[str, Any]:
        return {
            "job": self.folder.name,
            "bundle": str(self.bundle),
            "baseline": self.baseline,
            "winner": self.winner,
            "test": asdict(self.test),
            "demos": self.demos,
            "usage": {"compile_usd": self.compile_usd},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Compilation:
    """A recipe with everything resolved, ready to run."""

    recipe: Recipe
    suite: Suite
    split: Split
    arm: Arm
    """The baseline."""

    folder: Path
    concurrency: int


def prepare(recipe: Recipe, resolved: Resolved, project: Path, out: Path | None) -> Compilation:
    """Check everything that can be checked before a model is called.

    Raises:
        UsageError: unknown suite, program or model, no key, too few samples.
        SandboxUnavailable: no isolation holds here.
    """
    suite = load_suite(find_content("evals", recipe.suite, project).path)
    suite = suite.override({"seed": recipe.seed, **recipe.overrides})
    entry = find_program(recipe.program)
    root, sub = specify_pair(resolved, os.environ)
    arm = Arm(
        program=recipe.program,
        entry=entry,
        settings=parse_settings(recipe.program, recipe.settings),
        root=root,
        sub=sub,
        sandbox=levels.choose(resolved.config.sandbox) if entry.runs_code else None,
        limits=Limits(),
    )
    name = f"{recipe.name}--{arm.root.name.replace('/', '-')}"
    return Compilation(
        recipe=recipe,
        suite=suite,
        split=split(suite.plan(), train=recipe.train, test=recipe.test, seed=recipe.seed),
        arm=arm,
        folder=out or project / resolved.config.runs_dir / "jobs" / name,
        concurrency=resolved.config.concurrency,
    )


def run_job(job: Compilation, progress: Mapping[str, Progress]) -> JobResult | None:
    """Baseline on the sealed test, compile on the training samples, winner on the same test.

    Both evaluations are ordinary run folders inside the job's, so the same call again resumes them.

    Args:
        job: from `prepare`.
        progress: one each for "baseline" and "winner".

    Returns:
        None when it was interrupted; the same call again goes on.
    """
    plan = Plan(suite=job.suite, samples=job.split.test)
    baseline = run_arm(
        job.arm,
        plan,
        job.folder / "baseline",
        effort=Effort(concurrency=job.concurrency),
        progress=progress["baseline"],
    )
    if baseline.interrupted:
        return None
    progress["winner"].say(
        f"Compiling with {job.recipe.optimizer} on {len(job.split.train)} training samples."
    )
    state, compile_usd = _compiled_state(job)
    winner = run_arm(
        replace(job.arm, state=state),
        plan,
        job.folder / "winner",
        effort=Effort(concurrency=job.concurrency),
        progress=progress["winner"],
    )
    if winner.interrupted:
        return None
    result = JobResult(
        folder=job.folder,
        bundle=_export(job, state, baseline.summary, winner.summary),
        baseline=baseline.summary,
        winner=winner.summary,
        test=_compare(job),
        demos=sum(len(part.get("demos", ())) for part in state.values()),
        compile_usd=compile_usd,
    )
    _write(job.folder / "result.json", result.to_json())
    return result


def _compiled_state(job: Compilation) -> tuple[dict[str, Any], float]:
    """The compiled program's state, read back when an earlier session already paid for it."""
    path = job.folder / "compiled.json"
    wanted = {"recipe": job.recipe.model_dump(mode="json"), "arm": job.arm.identity()}
    if path.exists():
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if stored["for"] == wanted:
            return stored["state"], stored["usd"]
    ledger = Ledger()
    bench = make_bench(job.arm, Redactor.from_env(os.environ))
    compiled = bootstrap(bench, job.split.train, job.recipe, ledger)
    state = compiled.dump_state(json_mode=True)
    usd = ledger.total.usd
    _write(path, {"for": wanted, "state": state, "usd": usd})
    return state, usd


def _export(
    job: Compilation, state: dict[str, Any], before: dict[str, Any], after: dict[str, Any]
) -> Path:
    program = replace(job.arm, state=state).make_program()
    evidence = Evidence(
        model_kind=job.arm.root.kind,
        models={"root": job.arm.root.name, "sub": job.arm.sub.name},
        suite=job.suite.name,
        before=_score(before),
        after=_score(after),
        data={"suite": job.suite.digest},
        optimizer=job.recipe.optimizer,
        seed=job.recipe.seed,
        job=job.folder.name,
    )
    return save(program, job.folder / "bundle", evidence=evidence)


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


def _compare(job: Compilation) -> Comparison:
    baseline, winner = (
        last_records(repair_and_read(job.folder / name / "records.jsonl")).values()
        for name in ("baseline", "winner")
    )
    cluster_of = {sample.id: sample.cluster for sample in job.split.test}
    found = compare(sample_means(baseline), sample_means(winner), cluster_of)
    if found is None:
        raise UsageError(
            f"No sample of the test was scored both before and after: see {job.folder}.",
            fix="the same command again",
        )
    return found


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode())
