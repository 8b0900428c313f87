"""What `fleet-rlm run` does: one question about one file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet_rlm.config import resolve
from fleet_rlm.errors import Exit, UsageError
from fleet_rlm.ledger import Ledger, Limits
from fleet_rlm.lm.connect import specify_pair
from fleet_rlm.program.find import find_bundle, find_program
from fleet_rlm.program.registry import Entry
from fleet_rlm.project import project_dir
from fleet_rlm.runner.arm import Arm
from fleet_rlm.runner.attempt import ask
from fleet_rlm.runner.run import make_bench
from fleet_rlm.runner.sandboxes import specify_sandbox
from fleet_rlm.sandbox.redact import Redactor


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """The command line, as given."""

    context: Path
    query: str
    program: str
    bundle: str | None
    flags: Mapping[str, Any]
    price: str | None
    wall_s: float
    trace: bool
    as_json: bool


def ask_command(request: Ask) -> int:
    """Answer and print; gives the exit code.

    Raises:
        UsageError: the file cannot be read, or model, key or program are unknown.
        SampleError: the model's service or the sandbox failed.
    """
    program, entry = _choose(request)
    text = _read(request.context)
    if not request.query.strip():
        raise UsageError("--query is empty.", fix="--query 'Who wrote the letter?'")
    resolved = resolve(request.flags, os.environ, project_dir(Path.cwd()))
    root, sub = specify_pair(resolved, os.environ, price=request.price)
    arm = Arm(
        program=program,
        entry=entry,
        settings=entry.settings_type(),
        root=root,
        sub=sub,
        sandbox=specify_sandbox(resolved.config) if entry.runs_code else None,
        limits=Limits(working_s=None, wall_s=request.wall_s),
    )
    if arm.label:
        print(arm.label, file=sys.stderr)
    bench = make_bench(arm, Redactor.from_env(os.environ))
    ledger = Ledger(arm.limits)
    reply = ask(bench, {"context": text, "query": request.query}, ledger)
    if request.trace:
        _print_steps(reply.steps)
    if request.as_json:
        shown = {
            "answer": reply.answer,
            "stop": reply.stop,
            "turns": len(reply.steps),
            "usage": {role: usage.to_json() for role, usage in ledger.by_role.items()},
        }
        print(json.dumps(shown))
    else:
        print(reply.answer)
    return Exit.OK


def _choose(request: Ask) -> tuple[str, Entry]:
    if request.bundle is None:
        return request.program, find_program(request.program)
    if request.program != "rlm":
        raise UsageError("--bundle and --program both name the program.", fix="--bundle alone")
    return request.bundle, find_bundle(request.bundle)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text.", fix="convert it to text first") from None
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from None


def _print_steps(steps: list[dict[str, Any]]) -> None:
    for number, step in enumerate(steps, 1):
        print(f"--- turn {number}\n{step.get('reasoning', '')}", file=sys.stderr)
        print(f"{step.get('code', '')}\n>>> {step.get('output', '')}", file=sys.stderr)
