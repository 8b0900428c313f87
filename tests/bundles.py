"""Bundles for tests: a program compiled on the simulated model, and ways to tamper with files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import dspy

from fleet_rlm import RLM, LocalInterpreter
from fleet_rlm.lm.connect import connect, specify
from fleet_rlm.program.manifest import MANIFEST, PROGRAM, encode, identify
from fleet_rlm.program.registry import AnswerQuery
from fleet_rlm.scoring import score
from fleet_rlm.suites.suite import load_suite

ROOT = Path(__file__).parents[1]


class Compiled(NamedTuple):
    """A program with demos of its own successes, and examples that it has not seen."""

    program: RLM
    unseen: list[dspy.Example]


@contextmanager
def simulated():
    """The simulated model and a real sandbox for the programs called inside."""
    lm, sub = connect(specify("sim", env={}), "root"), connect(specify("sim-mini", env={}), "sub")
    with dspy.context(lm=lm, fleet_sub_lm=sub, interpreter_factory=LocalInterpreter, trace=[]):
        yield


def compile_rlm() -> Compiled:
    """Two demos by dspy's BootstrapFewShot from small samples of the quickstart suite."""
    suite = load_suite(ROOT / "evals" / "quickstart.toml")
    plan = suite.override({"lengths": [2000], "windows": 2}).plan()
    planned = {sample.id: sample for sample in plan}

    def metric(example: dspy.Example, prediction: dspy.Prediction, _trace: Any = None) -> float:
        sample = planned[example.sample]
        return score(prediction.answer, sample.build().question, task_rule=sample.rule).robust

    examples = []
    for sample in (planned.build() for planned in plan):
        example = dspy.Example(context=sample.context, query=sample.query, sample=sample.id)
        examples.append(example.with_inputs("context", "query"))
    optimizer = dspy.BootstrapFewShot(
        metric=metric, metric_threshold=0.9, max_bootstrapped_demos=2, max_labeled_demos=0
    )
    program = optimizer.compile(RLM(AnswerQuery, max_iters=7), trainset=examples[:6])
    return Compiled(program, examples[6:9])


def read(folder: Path, name: str) -> Any:
    """One file of a bundle."""
    return json.loads((folder / name).read_text(encoding="utf-8"))


def rewrite(
    source: Path,
    target: Path,
    *,
    manifest: Callable[[Any], Any] = lambda _: None,
    program: Callable[[Any], Any] = lambda _: None,
) -> Path:
    """A copy with changed contents whose digests and id are right again, as an attacker would."""
    target.mkdir()
    state, head = read(source, PROGRAM), read(source, MANIFEST)
    program(state)
    data = encode(state)
    head["files"][PROGRAM] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest(head)
    head["bundle"] = identify(head)
    (target / PROGRAM).write_bytes(data)
    (target / MANIFEST).write_bytes(encode(head))
    return target
