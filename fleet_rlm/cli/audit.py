"""What `fleet-eval audit` does: checks a suite, then searches real attempts for its gold."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from fleet_rlm.cli.given import open_suite
from fleet_rlm.config import parse_overrides, resolve
from fleet_rlm.errors import Exit, UsageError
from fleet_rlm.ledger import Limits
from fleet_rlm.lm.connect import specify_pair
from fleet_rlm.program.find import find_program, parse_settings
from fleet_rlm.project import project_dir
from fleet_rlm.runner.arm import Arm
from fleet_rlm.runner.leaks import search_leaks
from fleet_rlm.runner.run import make_bench
from fleet_rlm.sandbox import levels
from fleet_rlm.sandbox.redact import Redactor
from fleet_rlm.suites.audit import Check, audit
from fleet_rlm.suites.plan import limited
from fleet_rlm.suites.suite import Suite


def audit_command(
    start: Path, name: str, overrides: list[str], limit: int, attempts: int, *, as_json: bool
) -> int:
    """Print every check of a suite; gives exit code 1 when one fails."""
    if limit < 0 or attempts < 0:
        raise UsageError("--limit and --attempts must not be negative.")
    project = project_dir(start)
    suite = open_suite(project, name, None, parse_overrides(overrides))
    checks = []
    for check in audit(suite, limit or None):
        checks.append(check)
        _print(check, as_json=as_json)
    if attempts:
        checks.append(_search(suite, project, attempts))
        _print(checks[-1], as_json=as_json)
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


def _search(suite: Suite, project: Path, attempts: int) -> Check:
    resolved = resolve({"model": "sim"}, os.environ, project)
    root, sub = specify_pair(resolved, os.environ)
    arm = Arm(
        program="rlm",
        entry=find_program("rlm"),
        settings=parse_settings("rlm", {}),
        root=root,
        sub=sub,
        sandbox=levels.choose(resolved.config.sandbox),
        limits=Limits(),
    )
    samples = [sample for sample in suite.plan() if sample.is_filled]
    if not samples:
        return Check("all", "leaks", True, "fetched: gold is kept apart from the start")
    found = search_leaks(limited(samples, attempts), make_bench(arm, Redactor.from_env(os.environ)))
    told = asdict(found)
    if found.leaks:
        return Check("all", "leaks", False, f"gold reached {found.leaks[0]}")
    detail = "gold in none of {prompts} prompts, {cells} cells, {chars:,} characters (simulated)"
    return Check("all", "leaks", True, detail.format(**told))
