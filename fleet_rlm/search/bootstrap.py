"""Worked examples from a program's own successes, of one pass over the training samples."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import dspy
import orjson
from dspy.primitives.repl_types import REPLEntry, REPLHistory

from fleet_rlm.errors import UsageError
from fleet_rlm.program.context_ref import shorten
from fleet_rlm.program.state import plain
from fleet_rlm.runner.store import write_atomic
from fleet_rlm.search.candidates import Demo, learning_predictors
from fleet_rlm.suites.plan import PlannedSample

SETS = 4
"""Demo sets to draw, beside the baseline's own."""

KEPT_CHARS = 400
"""Characters of an earlier turn's output that a worked example keeps; its code stays whole."""

PREVIEW_CHARS = 200
"""Characters of a long variable's preview that a worked example keeps; one that is no longer than
`KEPT_CHARS`, as a query is, stays whole."""

PREVIEW = re.compile(r"(Preview:\n```\n)(.*)(\n```)\Z", re.S)

LAST_SHARE = 0.5
"""Share of worked examples that are a trajectory's last step, as in DSPy's BootstrapFewShot."""


class Traced(dspy.Module):
    """A program that writes down the steps of each answer, for worked examples.

    Training samples so run like any others, in parallel, stored and resumed; DSPy's own bootstrap
    runs them one after another (stanfordnlp/dspy#8960).

    Args:
        program: what answers.
        folder: where steps are written, a file an answer.
    """

    def __init__(self, program: dspy.Module, folder: Path) -> None:
        super().__init__()
        self.program = program
        self.folder = folder

    def forward(self, context: str, query: str) -> dspy.Prediction:
        """Answer, and leave the steps on disk before the answer is recorded."""
        found = self.program(context=context, query=query)
        names = {id(p): name for name, p in learning_predictors(self.program).items()}
        steps = [
            {"predictor": names[id(predictor)], "demo": _demo(inputs, dict(outputs))}
            for predictor, inputs, outputs in dspy.settings.trace
            if id(predictor) in names
        ]
        self.folder.mkdir(exist_ok=True)
        write_atomic(_place(self.folder, context, query), orjson.dumps(steps))
        return found


class Step(NamedTuple):
    """A worked example and where it comes from."""

    sample: PlannedSample
    is_last: bool
    demo: Demo


def read_steps(
    folder: Path, passed: Sequence[PlannedSample]
) -> Mapping[str, Mapping[str, list[Step]]]:
    """Predictor -> sample -> the steps that the predictor made on its way to a success.

    Args:
        folder: of a `Traced` program.
        passed: the samples whose answers were good enough.

    Raises:
        UsageError: the steps of a sample are missing.
    """
    pool: dict[str, dict[str, list[Step]]] = {}
    for planned in passed:
        sample = planned.build()
        path = _place(folder, sample.context, sample.query)
        try:
            steps = orjson.loads(path.read_bytes())
        except (OSError, ValueError):
            raise UsageError(f"{path} cannot be read.", fix="--out DIR, a new job") from None
        last = {step["predictor"]: position for position, step in enumerate(steps)}
        for position, step in enumerate(steps):
            if _is_failed(step["demo"]):
                continue
            name = step["predictor"]
            mine = pool.setdefault(name, {}).setdefault(planned.id, [])
            mine.append(Step(planned, position == last[name], step["demo"]))
    return pool


def used_predictors(folder: Path) -> set[str]:
    """The predictors that a `Traced` program called, by path."""
    return {
        step["predictor"]
        for path in folder.glob("*.json")
        for step in orjson.loads(path.read_bytes())
    }


def draw_demo_sets(
    pool: Mapping[str, list[Step]], *, size: int, seed: int
) -> list[tuple[Demo, ...]]:
    """Sets of worked examples for one predictor, each from as many kinds of task as there are.

    They are drawn from the shorter half of each task's successes: an example costs in every call.
    The first set has `size` examples, the next ones one, two and so on.

    Args:
        pool: sample -> steps, as `read_steps` gives them.
        size: examples of a set, at most.
        seed: of the draws.
    """
    sets: dict[bytes, tuple[Demo, ...]] = {}
    pool = _shorter_half(pool)
    for number in range(SETS if pool else 0):
        rng = random.Random(f"demos:{seed}:{number}")
        wanted = size if number == 0 else 1 + (number - 1) % size
        drawn = tuple(_pick(pool[sample], rng) for sample in _mixed(pool, rng)[:wanted])
        sets.setdefault(orjson.dumps(drawn, option=orjson.OPT_SORT_KEYS), drawn)
    return [found for found in sets.values() if found]


def _shorter_half(pool: Mapping[str, list[Step]]) -> dict[str, list[Step]]:
    by_task: dict[str, list[str]] = {}
    for name, steps in sorted(pool.items()):
        by_task.setdefault(steps[0].sample.task, []).append(name)

    def length(name: str) -> int:
        return max(len(orjson.dumps(step.demo)) for step in pool[name])

    kept: dict[str, list[Step]] = {}
    for names in by_task.values():
        shortest = sorted(names, key=length)[: -(-len(names) // 2)]
        kept |= {name: pool[name] for name in shortest}
    return kept


def _mixed(pool: Mapping[str, list[Step]], rng: random.Random) -> list[str]:
    """Samples in random order, one of each task before the second of any."""
    names = sorted(pool)
    rng.shuffle(names)
    turns: dict[str, int] = {}
    keyed = []
    for name in names:
        task = pool[name][0].sample.task
        turns[task] = turns.get(task, -1) + 1
        keyed.append((turns[task], name))
    return [name for _, name in sorted(keyed, key=lambda pair: pair[0])]


def _pick(steps: Sequence[Step], rng: random.Random) -> Demo:
    last = [step for step in steps if step.is_last]
    earlier = [step for step in steps if not step.is_last]
    chosen = last if last and (not earlier or rng.random() < LAST_SHARE) else earlier
    return rng.choice(chosen).demo


def _place(folder: Path, context: str, query: str) -> Path:
    text = f"{query}\x1f{context}".encode("utf-8", "surrogatepass")
    return folder / f"{hashlib.blake2b(text, digest_size=12).hexdigest()}.json"


def _demo(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in {**inputs, **outputs}.items() if name != "signature"}
    trimmed = {name: _trim(name, value) for name, value in fields.items()}
    return {
        "augmented": True,
        **{name: plain(value, f"Field {name!r} of a step") for name, value in trimmed.items()},
    }


def _trim(name: str, value: Any) -> Any:
    if isinstance(value, REPLHistory):
        return _trim_history(value)
    if name == "variables_info":
        return [PREVIEW.sub(_shorten_preview, str(one)) for one in value]
    return value


def _shorten_preview(found: re.Match[str]) -> str:
    shown = found[2] if len(found[2]) <= KEPT_CHARS else shorten(found[2], PREVIEW_CHARS)
    return f"{found[1]}{shown}{found[3]}"


def _trim_history(history: REPLHistory) -> REPLHistory:
    entries = [
        REPLEntry(
            reasoning=entry.reasoning, code=entry.code, output=shorten(entry.output, KEPT_CHARS)
        )
        for entry in history
    ]
    return REPLHistory(entries=entries, max_output_chars=history.max_output_chars)


def _is_failed(demo: Mapping[str, Any]) -> bool:
    # A step that follows an error shows how to mend one; a step in a prompt should show none.
    return "[Error]" in str(demo.get("repl_history", ""))
