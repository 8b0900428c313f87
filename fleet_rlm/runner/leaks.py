"""Proves that no gold answer leaves the host: real attempts with a marked gold, all of it searched.

Each sample's gold is replaced by a marker that no text can hold. The simulated model then answers
it with real code in a real sandbox, and whatever went to a model, into the sandbox or into the
stored trajectory is searched for the marker, and so are the spans that MLflow would get.
Records may hold it only in their answer's score.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback

from fleet_rlm.runner.attempt import Attempt, Bench, Job, Outcome
from fleet_rlm.suites.generators.base import Draft
from fleet_rlm.suites.plan import PlannedSample, WindowCache
from fleet_rlm.suites.sample import Question
from fleet_rlm.tracking.spans import About, answer_span


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What was searched, and where the marker was found."""

    prompts: int
    cells: int
    traces: int
    chars: int
    leaks: tuple[str, ...]


def search_leaks(samples: Sequence[PlannedSample], bench: Bench) -> Search:
    """Answer each of `samples` with its gold marked, and search what left the host for the mark.

    Args:
        samples: of generated tasks.
        bench: with the program, models and sandbox of an arm.
    """
    watch = _Watch()
    leaks: list[str] = []
    chars = traces = 0
    for planned in samples:
        marker = _marker(planned.id)
        marked = replace(planned, write=_marking(planned, marker), windows=WindowCache())
        watch.texts.clear()
        with _watched(watch, bench) as watched:
            outcome = Attempt(Job(marked, 0), watched).run()
        watch.texts.append(("trajectory", json.dumps(outcome.trajectory, default=str)))
        if outcome.record:
            traces += 1
            watch.texts.append(("trace", _trace(outcome)))
        chars += sum(len(text) for _, text in watch.texts)
        leaks += [f"{planned.id}: {where}" for where, text in watch.texts if marker in text]
    return Search(
        prompts=watch.prompts, cells=watch.cells, traces=traces, chars=chars, leaks=tuple(leaks)
    )


def _trace(outcome: Outcome) -> str:
    """Every span that a mirror of this answer has, in full."""
    assert outcome.record is not None
    about = About(suite="audit", program="rlm", models={})
    span = answer_span(about, outcome.record.to_json(), outcome.trajectory or {})
    return json.dumps(asdict(span), default=str)


def _marker(name: str) -> str:
    # Digits alone, so that every rule can read it as an answer.
    return str(int(hashlib.sha256(name.encode()).hexdigest(), 16))[:18]


def _marking(planned: PlannedSample, marker: str) -> Callable[[], Draft]:
    def write() -> Draft:
        draft = planned.write()
        questions = tuple(
            replace(question, gold=(marker,)) if isinstance(question, Question) else question
            for question in draft.questions
        )
        return replace(draft, questions=questions)

    return write


class _Watch(BaseCallback):
    """Keeps what goes to models and into sandboxes."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []
        self.prompts = self.cells = 0

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.prompts += 1
        self.texts.append(("prompt", str(inputs)))

    def cell(self, code: str, variables: dict[str, Any] | None) -> None:
        self.cells += 1
        self.texts.append(("sandbox", f"{code}\n{variables}"))


@contextmanager
def _watched(watch: _Watch, bench: Bench) -> Iterator[Bench]:
    """`bench` with every prompt and every cell told to `watch`."""
    make = bench.interpreter_factory

    def factory(*arguments: Any, **settings: Any) -> Any:
        assert make is not None
        made = make(*arguments, **settings)
        execute = made.execute

        def told(code: str, variables: dict[str, Any] | None = None) -> Any:
            watch.cell(code, variables)
            return execute(code, variables)

        made.execute = told
        return made

    factory.execution_instructions = getattr(make, "execution_instructions", "")  # type: ignore[attr-defined]
    with dspy.context(callbacks=[*dspy.settings.callbacks, watch]):
        yield replace(bench, interpreter_factory=factory if make else None)
