"""What `fleet-eval estimate` does: predict what a run will take."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fleet_rlm.cli.given import open_suite, sort_overrides
from fleet_rlm.config import Config, parse_overrides, resolve
from fleet_rlm.errors import Exit
from fleet_rlm.lm.connect import ModelSpec, kind_of, specify_pair
from fleet_rlm.program.find import find_program, parse_settings
from fleet_rlm.project import project_dir
from fleet_rlm.report.tables import make_console, print_estimate
from fleet_rlm.runner import estimate as estimates
from fleet_rlm.sandbox.levels import MODAL
from fleet_rlm.sandbox.modal_recipe import Recipe
from fleet_rlm.statistics.clustered import detectable_difference


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateRequest:
    """The command line, as given."""

    suite: str
    program: str
    flags: Mapping[str, Any]
    price: str | None
    sub_price: str | None
    corpus: str | None
    overrides: list[str]
    limit: int | None
    epochs: int
    as_json: bool


def estimate_command(request: EstimateRequest) -> int:
    """Print what a run will take."""
    shown = predict(request)
    if request.as_json:
        print(json.dumps(shown))
    else:
        print_estimate(make_console(sys.stdout), shown, shown["label"])
    return Exit.OK


def predict(request: EstimateRequest) -> dict[str, Any]:
    """What a run will take, as `fleet-eval estimate --json` prints it.

    Raises:
        UsageError: unknown names, or data that is not on this machine.
    """
    project = project_dir(Path.cwd())
    overrides = sort_overrides(parse_overrides(request.overrides))
    flags = {**request.flags, "modal": overrides["modal"] or None}
    resolved = resolve(flags, os.environ, project)
    suite = open_suite(project, request.suite, request.corpus, overrides["suite"])
    plan = suite.plan(limit=request.limit)
    root, sub = _models(request)
    lengths = [sample.length for sample in plan] * request.epochs
    prices = {"root": root.price, "sub": sub.price}
    sandbox_usd_s = _sandbox_usd_s(request.program, resolved.config)
    runs_dir = project / resolved.config.runs_dir
    history = estimates.find_history(runs_dir, request.program, kind_of(root, sub))
    if history.records:
        found = estimates.estimate_from_runs(
            lengths,
            history,
            prices,
            concurrency=resolved.config.concurrency,
            sandbox_usd_s=sandbox_usd_s,
        )
    else:
        found = estimates.estimate_from_prior(
            lengths,
            _kind(request.program),
            prices,
            max_calls=_max_calls(request.program, overrides["settings"]),
            sandbox_usd_s=sandbox_usd_s,
        )
    return asdict(found) | {
        "suite": suite.name,
        "program": request.program,
        "models": {"root": root.name, "sub": sub.name},
        "epochs": request.epochs,
        "detects": detectable_difference(len(plan)),
        "label": root.label or sub.label,
    }


def _models(request: EstimateRequest) -> tuple[ModelSpec, ModelSpec]:
    # No call is made, so no key is needed.
    env = {"DSPY_LLM_API_KEY": "none", **os.environ}
    keyed = resolve(request.flags, env, project_dir(Path.cwd()))
    return specify_pair(keyed, env, price=request.price, sub_price=request.sub_price)


def _sandbox_usd_s(program: str, config: Config) -> float:
    # No sandbox is made, so neither a token nor an isolation is needed.
    if config.sandbox != MODAL.name or not find_program(program).runs_code:
        return 0.0
    return Recipe(**config.modal.model_dump()).usd_per_s


def _kind(program: str) -> str:
    if program in {"direct", "truncate", "bm25"}:
        return "direct"
    return program if program in estimates.PRIORS else "code"


def _max_calls(program: str, settings: Mapping[str, Any]) -> int | None:
    spec = find_program(program).settings_type.SPEC
    if not {"max_iters", "max_llm_calls"} <= set(spec):
        return None
    chosen = parse_settings(program, settings)
    return chosen["max_iters"] + chosen["max_llm_calls"]
