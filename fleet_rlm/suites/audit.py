"""Whether a generated suite can be trusted: gold found again, no leak of it, balance, floors."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from math import sqrt
from pathlib import Path
from typing import NamedTuple

from fleet_rlm.errors import DataError, FleetError, boundary
from fleet_rlm.scoring import blind_scores, floor, score
from fleet_rlm.suites.plan import PlannedSample, limited
from fleet_rlm.suites.sample import AnyQuestion, Sample
from fleet_rlm.suites.suite import Suite, Task
from fleet_rlm.suites.tokens import count_tokens

LOCAL = frozenset({"codeqa"})
"""Generators whose text is this machine's."""

_FLOOR = 0.75
"""A task on which knowing nothing is worth more than this measures too little."""

_UNEVEN = 1.949
"""Kolmogorov's bound at alpha 0.001, times the root of n: sqrt(-ln(alpha / 2) / 2). Above it,
positions are not spread evenly over the text (Smirnov 1948)."""

_ENOUGH = 8
"""Samples of a task from which positions and floors can be judged."""


class Check(NamedTuple):
    """One finding of an audit."""

    task: str
    name: str
    passed: bool
    detail: str


class Seen(NamedTuple):
    """One sample of a task with its text."""

    planned: PlannedSample
    sample: Sample


def audit_task(task: Task, samples: Sequence[PlannedSample]) -> Iterator[Check]:
    """All checks of one generated task that need no model.

    Args:
        task: of the suite.
        samples: of that task.
    """
    try:
        seen = [Seen(planned, planned.build()) for planned in samples]
        yield _check(task, "gold", _wrong_gold(task, seen), "recomputed from the text")
        yield _check(task, "oracle", _lost_by_oracle(seen), "robust and headline score 1")
        yield _check(task, "length", _wrong_length(seen), "tokens as counted, 95 to 100 %")
        yield _check(task, "duplicates", _duplicates(seen), "all contexts and questions differ")
        yield _check(task, "repeat", _unlike(seen), "built again, the same text and gold")
        yield _positions(task, seen)
        yield _floors(task, seen)
    except FleetError as error:
        yield Check(task.name, "build", False, error.message)


def oracle_answer(question: AnyQuestion) -> str:
    """The gold answer in the form that the question asks for."""
    gold = question.gold
    match question.answer_type:
        case "text":
            return gold[0]
        case "pairs" | "lines":
            return "\n".join(gold)
        case "label" if "'Label: " in question.query:
            return f"Label: {gold[0]}"
        case "user":
            return f"User: {gold[0]}"
        case "comparison":
            return f"Answer: {gold[0]}"
        case "set" if "'Final Answer: " in question.query:
            return f"Final Answer: [{', '.join(gold)}]"
        case _:
            return ", ".join(gold)


def _check(task: Task, name: str, wrong: list[str], right: str) -> Check:
    return Check(task.name, name, not wrong, f"{len(wrong)}: {wrong[0]}" if wrong else right)


def _wrong_gold(task: Task, seen: Sequence[Seen]) -> list[str]:
    wrong = []
    for planned, sample in seen:
        with boundary(DataError, f"solving {planned.id}"):
            found = task.writer.solve(task.params, sample.context, sample.query)
        if found != sample.question.gold:
            wrong.append(planned.id)
    return wrong


def _lost_by_oracle(seen: Sequence[Seen]) -> list[str]:
    wrong = []
    for planned, sample in seen:
        found = score(oracle_answer(sample.question), sample.question, task_rule=planned.rule)
        headline = found.official if planned.headline == "official" else found.robust
        if min(headline, found.robust) < 1:
            wrong.append(f"{planned.id} official {found.official:.2f} robust {found.robust:.2f}")
    return wrong


def _wrong_length(seen: Sequence[Seen]) -> list[str]:
    one_each = {sample.cluster: (planned, sample) for planned, sample in seen}
    return [
        planned.cluster
        for planned, sample in one_each.values()
        if count_tokens(sample.context) != sample.tokens
        or not 0.95 * planned.length <= sample.tokens <= planned.length
    ]


def _duplicates(seen: Sequence[Seen]) -> list[str]:
    texts = {sample.cluster: sample.context for _, sample in seen}
    twice = [f"context {cluster}" for cluster, n in _repeated(texts) if n > 1]
    asked = Counter((sample.cluster, sample.query) for _, sample in seen)
    return twice + [f"question on {cluster}" for (cluster, _), n in asked.items() if n > 1]


def _repeated(texts: dict[str, str]) -> list[tuple[str, int]]:
    counts = Counter(texts.values())
    return [(cluster, counts[text]) for cluster, text in texts.items()]


def _unlike(seen: Sequence[Seen]) -> list[str]:
    planned, sample = seen[0]
    window = planned.write().window()
    same = window.context == sample.context
    same &= window.questions[planned.question].gold == sample.question.gold
    return [] if same else [planned.id]


def _positions(task: Task, seen: Sequence[Seen]) -> Check:
    places = [s.question.position for _, s in seen if s.question.position is not None]
    if len(places) < _ENOUGH:
        return Check(task.name, "positions", True, f"{len(places)} known: too few to judge")
    quarters = [sum(q / 4 <= p < (q + 1) / 4 or p == q + 1 == 4 for p in places) for q in range(4)]
    apart = _distance_from_even(places)
    balanced = apart * sqrt(len(places)) <= _UNEVEN
    shown = "/".join(map(str, quarters))
    told = f"{shown} in the quarters, {apart:.2f} from even"
    return Check(task.name, "positions", balanced, told)


def _distance_from_even(places: Sequence[float]) -> float:
    """Largest distance between the shares of places and of text up to a point (Kolmogorov's D)."""
    ordered, n = sorted(places), len(places)
    return max(max((k + 1) / n - p, p - k / n) for k, p in enumerate(ordered))


def _floors(task: Task, seen: Sequence[Seen]) -> Check:
    blind = [blind_scores(sample.question, task_rule=planned.rule) for planned, sample in seen]
    value = floor(blind)
    enough = len(seen) >= _ENOUGH
    told = f"{value:.2f} by the best fixed answer" + ("" if enough else ": too few to judge")
    return Check(task.name, "floor", value <= _FLOOR or not enough, told)


def digests(suite: Suite) -> dict[str, str]:
    """sha256 of the context, queries and gold of each task's first window of its shortest length.

    `golden.json` holds those of the shipped suites; a difference means that published samples
    changed, which raises the generator's version. Texts that depend on the machine have none.
    """
    found = {}
    for task in suite.tasks:
        if isinstance(task, Task) and task.generator not in LOCAL:
            first = [s for s in suite.plan() if s.task == task.name and s.window == 0]
            shortest = min(first, key=lambda sample: sample.length)
            window = shortest.write().window()
            asked = [[question.query, question.gold] for question in window.questions]
            content = f"{window.context}\0{json.dumps(asked)}"
            found[shortest.cluster] = hashlib.sha256(content.encode()).hexdigest()
    return found


def _golden(suite: Suite) -> Iterator[Check]:
    """Compares what is written here with what was when the suite was published."""
    path = Path(__file__).with_name("golden.json")
    known: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    made = digests(suite)
    told = [cluster for cluster in made if cluster in known]
    wrong = [cluster for cluster in told if made[cluster] != known[cluster]]
    detail = wrong[0] if wrong else f"{len(told)} of {len(made)} texts have a published digest"
    if made:
        yield Check("all", "golden", not wrong, detail)


def audit(suite: Suite, limit: int | None) -> Iterator[Check]:
    """Audit every generated task of a suite.

    Args:
        suite: to audit.
        limit: samples per task at most, spread over its lengths; all when None.
    """
    plan = suite.plan()
    for task in suite.tasks:
        mine = [sample for sample in plan if sample.task == task.name]
        if not isinstance(task, Task):
            yield Check(task.name, "gold", True, "fetched: its gold is the dataset's own")
            continue
        yield from audit_task(task, mine if limit is None else limited(mine, limit))
    yield from _golden(suite)
