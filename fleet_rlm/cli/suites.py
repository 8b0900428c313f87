"""What `fleet-eval list` and `show` print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fleet_rlm.cli.listing import print_content
from fleet_rlm.cli.run import open_suite
from fleet_rlm.config import parse_overrides
from fleet_rlm.errors import Exit
from fleet_rlm.project import Content, project_dir
from fleet_rlm.report.tables import print_suites, short_length
from fleet_rlm.suites.sample import Sample
from fleet_rlm.suites.suite import Suite, load_suite

PREVIEW_CHARS = 240


def print_list(start: Path, *, as_json: bool) -> int:
    """Print every suite; gives the exit code."""

    def describe(content: Content) -> dict[str, Any]:
        return _row(load_suite(content.path))

    return print_content("evals", start, describe, print_suites, as_json=as_json)


def print_suite(
    start: Path, name: str, previews: int, corpus: str | None, overrides: list[str]
) -> int:
    """Print a suite's tasks and the first samples of its plan, gold answers included."""
    suite = open_suite(project_dir(start), name, corpus, parse_overrides(overrides))
    row = _row(suite)
    print(f"{suite.name} (version {suite.version}): {suite.description}")
    print(f"{row['samples']} samples in {row['contexts']} contexts, digest {suite.digest[:12]}")
    for task in suite.tasks:
        lengths = ", ".join(map(short_length, task.lengths))
        print(
            f"  {task.name}: generator {task.generator}, lengths {lengths} tokens,"
            f" {task.windows} contexts a length, {task.questions} questions a context"
        )
    for planned in suite.plan(limit=previews) if previews > 0 else ():
        _print_sample(planned.build())
    return Exit.OK


def _row(suite: Suite) -> dict[str, Any]:
    plan = suite.plan()
    return {
        "name": suite.name,
        "version": suite.version,
        "description": suite.description,
        "samples": len(plan),
        "contexts": len({planned.cluster for planned in plan}),
        "lengths": sorted({planned.length for planned in plan}),
        "tasks": [task.name for task in suite.tasks],
    }


def _print_sample(sample: Sample) -> None:
    start = " ".join(sample.context[:PREVIEW_CHARS].split())
    print(f"\n{sample.id}  {sample.tokens:,} tokens, {len(sample.context):,} characters")
    print(f"  context  {start}…")
    print(f"  query    {sample.query}")
    print(f"  gold     {', '.join(sample.question.gold)}")
