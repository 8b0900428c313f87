"""What `fleet-eval gate` does."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fleet_rlm.config import resolve
from fleet_rlm.errors import Exit, UsageError
from fleet_rlm.lm.simulated import LABEL
from fleet_rlm.project import project_dir
from fleet_rlm.runner.gate import gate_drop, gate_score
from fleet_rlm.runner.stored import open_run

CODES = {"passed": Exit.OK, "failed": Exit.GATE_FAILED, "indecisive": Exit.COVERAGE}


def gate_command(
    run: Path,
    *,
    minimum: float | None,
    baseline: Path | None,
    max_drop: float | None,
    only_proven: bool,
    allow_mixed: bool,
    flags: Mapping[str, Any],
    as_json: bool,
) -> int:
    """Decide on a run and print why; gives the exit code of the verdict."""
    example = "fleet-eval gate RUN --min 0.8, or --baseline RUN --max-drop 0.02"
    if (minimum is None) == (baseline is None) or (baseline is None) != (max_drop is None):
        raise UsageError("A gate takes --min, or --baseline with --max-drop.", fix=example)
    floor = resolve(flags, os.environ, project_dir(Path.cwd())).config.min_coverage
    if baseline is None or max_drop is None:
        assert minimum is not None  # one of the two rules was given, as checked above
        found = gate_score(run, minimum, min_coverage=floor, only_proven=only_proven)
    else:
        found = gate_drop(
            run,
            baseline,
            max_drop,
            min_coverage=floor,
            only_proven=only_proven,
            allow_mixed=allow_mixed,
        )
    how = "fails only what is proven worse" if only_proven else "passes only what is proven"
    if found.degenerate:
        how = "no proof: no context differed from another"
    if as_json:
        print(json.dumps(asdict(found) | {"only_proven": only_proven}))
    else:
        if open_run(run).lock["arm"]["model_kind"] == "simulated":
            print(LABEL, file=sys.stderr)
        print(f"{found.verdict}: {found.reason} ({how})")
    return CODES[found.verdict]
