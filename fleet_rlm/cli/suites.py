"""What `fleet-eval list` and `show` print."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from fleet_rlm.cli.given import open_suite
from fleet_rlm.cli.listing import print_content
from fleet_rlm.config import parse_overrides
from fleet_rlm.errors import Exit, UsageError
from fleet_rlm.project import Content, project_dir
from fleet_rlm.report.tables import print_suites, short_length
from fleet_rlm.suites.fetched import FetchedTask
from fleet_rlm.suites.plan import PlannedSample
from fleet_rlm.suites.sample import AnyQuestion, Sample
from fleet_rlm.suites.suite import Suite, Task, load_suite
from fleet_rlm.suites.table import CardTable

PREVIEW_CHARS = 240


def print_list(start: Path, *, as_json: bool) -> int:
    """Print every suite; gives the exit code."""

    def describe(content: Content) -> dict[str, Any]:
        return _row(load_suite(content.path))

    return print_content("evals", start, describe, print_suites, as_json=as_json)


def print_suite(
    start: Path,
    name: str,
    previews: int,
    corpus: str | None,
    overrides: list[str],
    out: Path | None,
) -> int:
    """Print a suite's tasks and the first samples of its plan, gold answers included.

    With `out` the samples' contexts are streamed to files in that folder.
    """
    suite = open_suite(project_dir(start), name, corpus, parse_overrides(overrides))
    row = _row(suite)
    print(f"{suite.name} (version {suite.version}): {suite.description}")
    if suite.is_ready:
        print(f"{row['samples']} samples in {row['contexts']} contexts, digest {suite.digest[:12]}")
    for task in suite.tasks:
        print(f"  {task.name}: {_in_words(task)}")
    if suite.card:
        _print_card(suite.card)
    if not suite.is_ready:
        print(f"\nnot on this machine yet: fleet-eval fetch {name}")
        return Exit.OK
    for planned in suite.plan(limit=previews) if previews > 0 else ():
        if planned.is_sealed:
            print(f"\n{planned.id}  sealed: its texts are opened in a run's memory only")
        elif out is None:
            _print_sample(planned.build())
        else:
            _write_sample(planned, out)
    return Exit.OK


def _in_words(task: Task | FetchedTask) -> str:
    lengths = ", ".join(map(short_length, task.lengths))
    if isinstance(task, FetchedTask):
        chosen = [f"{tag} = {value}" for tag, value in task.where.items()]
        chosen += [f"lengths {lengths} tokens"] if lengths else []
        chosen += [f"at most {task.samples} samples"] if task.samples else []
        told = ["dataset " + task.manifest.name, *chosen, f"rule {Path(task.rule).name}"]
        return ", ".join([*told, f"headline {task.headline}"])
    return (
        f"generator {task.generator}, lengths {lengths} tokens,"
        f" {task.windows} contexts a length, {task.questions} questions a context"
    )


def _print_card(card: CardTable) -> None:
    print()
    for name, text in (
        ("measures", card.measures),
        ("licence", card.licence),
        ("size", card.size),
        ("source", card.source),
        ("floors", card.floors),
        ("arms", ", ".join(card.arms)),
    ):
        if text:
            print(_wrapped(name, text))
    for defect in card.defects:
        print(_wrapped("defect", defect))
    for row, figures in card.reference.items():
        shown = ", ".join(f"{task} {value}" for task, value in figures.items())
        print(_wrapped("reference", f"{row}: {shown}"))


def _wrapped(name: str, text: str) -> str:
    indent = " " * 12
    return textwrap.fill(f"{name:<10}{text}", 100, initial_indent="  ", subsequent_indent=indent)


def _row(suite: Suite) -> dict[str, Any]:
    # What is not fetched yet can be named, not counted.
    plan = suite.plan() if suite.is_ready else None
    return {
        "name": suite.name,
        "version": suite.version,
        "description": suite.description,
        "samples": None if plan is None else len(plan),
        "contexts": None if plan is None else len({planned.cluster for planned in plan}),
        "lengths": sorted({planned.length for planned in plan or ()}),
        "tasks": [task.name for task in suite.tasks],
    }


def _print_sample(sample: Sample) -> None:
    start = " ".join(sample.context[:PREVIEW_CHARS].split())
    print(f"\n{sample.id}  {sample.tokens:,} tokens, {len(sample.context):,} characters")
    print(f"  context  {start}…")
    _print_question(sample.question)


def _write_sample(planned: PlannedSample, out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"No contexts can be written to {out}: {error.strerror}.") from error
    target = out / f"{planned.cluster}.txt"
    question = planned.write_context(target)
    print(f"\n{planned.id}  {target.stat().st_size:,} bytes")
    print(f"  context  {target}")
    _print_question(question)


def _print_question(question: AnyQuestion) -> None:
    print(f"  query    {question.query}")
    print(f"  gold     {', '.join(question.gold)}")
