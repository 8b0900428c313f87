"""What `fleet-eval calibrate` does."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from fleet_rlm.config import resolve
from fleet_rlm.errors import Exit, UsageError
from fleet_rlm.ledger import Ledger
from fleet_rlm.lm.connect import connect, specify_judge
from fleet_rlm.project import project_dir
from fleet_rlm.runner.attempt import make_judge
from fleet_rlm.scoring.judge import Labelled, calibrate, rubric_text

_COLUMNS = {"query": str, "reference": str, "response": str, "correct": bool}


def calibrate_command(
    labels: Path,
    *,
    judge: str | None,
    rubric: str,
    min_agreement: float,
    api_base: str | None,
    price: str | None,
    as_json: bool,
) -> int:
    """Print how a judge agrees with people; exit code 1 below `min_agreement`."""
    if judge is None:
        raise UsageError("No judge is named.", fix="--judge provider/model")
    labelled = _read(labels)
    rubric_text(rubric)
    resolved = resolve({"api_base": api_base}, os.environ, project_dir(Path.cwd()))
    spec = specify_judge(judge, resolved, os.environ, price=price)
    ledger = Ledger()
    found = calibrate(make_judge(connect(spec, "judge"), ledger), labelled, rubric)
    shown = {
        "judge": judge,
        "rubric": rubric,
        **asdict(found),
        "usage": {role: usage.to_json() for role, usage in ledger.by_role.items()},
    }
    if spec.label:
        print(spec.label, file=sys.stderr)
    if as_json:
        print(json.dumps(shown))
    else:
        print(
            f"{judge} by rubric {rubric}: agrees with {found.agreement:.0%} of {found.samples}"
            f" labels, kappa {found.kappa:.2f}\n"
            f"{found.false_yes} wrong responses taken for correct, {found.false_no} correct ones"
            f" for wrong, {found.unread} replies without a verdict, ${ledger.total.usd:.4f}"
        )
    return Exit.OK if found.agreement >= min_agreement else Exit.GATE_FAILED


def _read(path: Path) -> list[Labelled]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is unreadable: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{path}, line {number}: not JSON: {error}") from error
        for column, kind in _COLUMNS.items():
            if not isinstance(row, dict) or not isinstance(row.get(column), kind):
                raise UsageError(f"{path}, line {number}: {column} should be {kind.__name__}")
        found.append(Labelled(*(row[column] for column in _COLUMNS)))
    return found
