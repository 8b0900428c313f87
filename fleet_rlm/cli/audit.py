"""What `fleet-eval audit` does: checks a suite, searches attempts for its gold, asks blindly."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fleet_rlm.cli.given import open_suite
from fleet_rlm.config import Resolved, parse_overrides, resolve
from fleet_rlm.errors import Exit, UsageError
from fleet_rlm.ledger import Limits
from fleet_rlm.lm.connect import specify_pair
from fleet_rlm.program.find import find_program, parse_settings
from fleet_rlm.project import project_dir
from fleet_rlm.runner.arm import Arm
from fleet_rlm.runner.leaks import search_leaks
from fleet_rlm.runner.progress import make_progress
from fleet_rlm.runner.run import Effort, Plan, make_bench, run_arm
from fleet_rlm.runner.sandboxes import specify_sandbox
from fleet_rlm.sandbox.redact import Redactor
from fleet_rlm.scoring import is_judged
from fleet_rlm.suites.audit import Check, audit
from fleet_rlm.suites.plan import limited
from fleet_rlm.suites.suite import Suite


def audit_command(
    start: Path,
    name: str,
    overrides: list[str],
    limit: int,
    attempts: int,
    flags: Mapping[str, Any],
    *,
    as_json: bool,
) -> int:
    """Print every check of a suite; gives exit code 1 when one fails."""
    if limit < 0 or attempts < 0:
        raise UsageError("--limit and --attempts must not be negative.")
    project = project_dir(start)
    suite = open_suite(project, name, None, parse_overrides(overrides))
    blind = _arm("blind", resolve(flags, os.environ, project))
    checks = []
    for check in _checks(suite, project, limit or None, attempts, blind):
        checks.append(check)
        _print(check, as_json=as_json)
    failed = sum(not check.passed for check in checks)
    if as_json:
        shown = [check._asdict() for check in checks]
        print(json.dumps({"suite": suite.name, "failed": failed, "checks": shown}))
    else:
        print(f"{len(checks) - failed} of {len(checks)} checks passed")
    return Exit.GATE_FAILED if failed else Exit.OK


def _print(check: Check, *, as_json: bool) -> None:
    if not as_json:
        mark = "ok  " if check.passed else "FAIL"
        print(f"{mark}  {check.task:<16}{check.name:<12}{check.detail}", flush=True)


def _checks(
    suite: Suite, project: Path, limit: int | None, attempts: int, blind: Arm
) -> Iterator[Check]:
    yield from audit(suite, limit)
    if attempts:
        yield _search(suite, project, attempts)
    yield from _probe(suite, limit, blind)


def _arm(program: str, resolved: Resolved) -> Arm:
    entry = find_program(program)
    root, sub = specify_pair(resolved, os.environ)
    return Arm(
        program=program,
        entry=entry,
        settings=parse_settings(program, {}),
        root=root,
        sub=sub,
        sandbox=specify_sandbox(resolved.config) if entry.runs_code else None,
        limits=Limits(),
    )


def _probe(suite: Suite, limit: int | None, blind: Arm) -> Iterator[Check]:
    """Asks a model without the text: above the floor, it knew the answers or the question told."""
    plan = suite.plan()
    by_task = {task.name: [s for s in plan if s.task == task.name] for task in suite.tasks}
    samples = [s for mine in by_task.values() for s in (limited(mine, limit) if limit else mine)]
    if any(is_judged(sample.rule) for sample in samples):
        yield Check("all", "blind", True, "judged: run it with --program blind and a judge")
        return
    with TemporaryDirectory(prefix="fleet-audit-") as folder:
        silent = make_progress("none", suite.name)
        plan_of_run = Plan(suite=suite, samples=samples)
        finished = run_arm(
            blind, plan_of_run, Path(folder) / "run", effort=Effort(workers=1), progress=silent
        )
    kind = "simulated" if blind.root.kind == "simulated" else blind.root.name
    for task, found in finished.summary["tasks"].items():
        yield _beyond_floor(task, found, kind)


def _beyond_floor(task: str, found: Mapping[str, Any], model: str) -> Check:
    """Whether a score without the text lies above the floor beyond chance."""
    if found["score"] is None:
        return Check(task, "blind", False, f"the model answered nothing ({model})")
    told = f"{found['score']:.2f} without the text, floor {found['floor']:.2f} ({model})"
    if found["ci"] is None:
        return Check(task, "blind", True, f"{told}: too few contexts to judge")
    return Check(task, "blind", found["ci"][0] <= found["floor"], told)


def _search(suite: Suite, project: Path, attempts: int) -> Check:
    arm = _arm("rlm", resolve({"model": "sim"}, os.environ, project))
    samples = [sample for sample in suite.plan() if sample.is_filled]
    if not samples:
        return Check("all", "leaks", True, "fetched: gold is kept apart from the start")
    found = search_leaks(limited(samples, attempts), make_bench(arm, Redactor.from_env(os.environ)))
    told = asdict(found)
    if found.leaks:
        return Check("all", "leaks", False, f"gold reached {found.leaks[0]}")
    detail = (
        "gold in none of {prompts} prompts, {cells} cells, {traces} traces, {chars:,} characters"
        " (simulated)"
    )
    return Check("all", "leaks", True, detail.format(**told))
