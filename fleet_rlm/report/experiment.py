"""The results page of an experiment, made from the records of its runs alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fleet_rlm.report.comparison import (
    RECURSION,
    REPEATED,
    arms_grid,
    cost_grid,
    difference_grid,
    notes,
    recursion_grid,
    repeated_grid,
)
from fleet_rlm.report.grid import Grid
from fleet_rlm.report.tables import count, interval, number, short_length
from fleet_rlm.runner.compare import ALL, RunComparison
from fleet_rlm.runner.experiment import Experiment
from fleet_rlm.runner.stored import Run


def render_results(
    name: str,
    experiment: Experiment,
    found: Mapping[str, RunComparison],
    *,
    commands: Sequence[str],
    plots: Mapping[str, Sequence[str]],
    jobs: Mapping[str, Mapping[str, Any]],
) -> str:
    """`results.md`.

    Args:
        name: of the experiment.
        experiment: its file.
        found: suite -> its arms, all seeds pooled.
        commands: those that make the runs and print this page.
        plots: suite -> files of its plots, beside the page.
        jobs: run -> what compiled its arm, as `lock` keeps it.
    """
    labels = [comparison.label for comparison in found.values() if comparison.label]
    parts = [f"# {name}", experiment.question]
    if labels:
        parts.append(f"**{labels[0]}**")
    parts += [experiment.about] if experiment.about else []
    parts.append("```bash\n" + "\n".join(commands) + "\n```")
    for suite, comparison in found.items():
        parts += [f"## {suite}", *(f"![{_alt(file)}]({file})" for file in plots.get(suite, ()))]
        parts += _suite(comparison, experiment)
    if jobs:
        parts += ["## What was compiled", COMPILED, _compiled(jobs).to_markdown()]
    parts += ["## What ran", _ran(found).to_markdown()]
    parts.append(
        "Versions, prices, revision and digests of each run: [lock.json](lock.json). Scores are"
        " means over samples with 95 % intervals by context; an error is missing data and lowers"
        " the coverage."
    )
    return "\n\n".join(parts) + "\n"


COMPILED = (
    "Each on samples of its own: none of the contexts above was learned from or chosen by. changed:"
    " what the chosen trial has other than the arm as it is, instructions and worked examples by"
    " number. $: of the whole search."
)


def _compiled(jobs: Mapping[str, Mapping[str, Any]]) -> Grid:
    rows = [
        (
            run,
            job["recipe"],
            job["optimizer"],
            str(job["seed"]),
            str(job["train"]),
            str(job["validation"]),
            str(job["trials"]),
            ", ".join(f"{name} {value}" for name, value in job["chosen"].items()) or "nothing",
            f"{job['calls']:,}",
            f"{job['usd']:.2f}",
        )
        for run, job in jobs.items()
    ]
    heads = ("run", "recipe", "optimizer", "seed", "learned from", "validated on", "trials",
             "changed", "calls", "$")  # fmt: skip
    return Grid(heads, rows, words={"run", "recipe", "optimizer", "changed"})


def render_estimate(
    rows: Sequence[Mapping[str, Any]], published: Mapping[str, float], max_usd: float
) -> str:
    """What an experiment is expected to take.

    Args:
        rows: a run each: an estimate, or the problem that kept it from one.
        published: whose figures -> what they come to in dollars, for the published questions.
        max_usd: cap of the experiment.
    """
    known = [row for row in rows if "usd" in row]
    heads = ("run", "samples", "calls", "tokens", "$", "$ from", "$ to", "basis")
    lines = [
        (row["run"], f"{row['samples']:,}", f"{row['calls'][1]:,.0f}",
         "-" if row["tokens"] is None else count(row["tokens"][1]),
         *(f"{row['usd'][at]:,.2f}" for at in (1, 0, 2)), row["basis"])
        for row in known
    ]  # fmt: skip
    parts = []
    if known:
        parts.append(Grid(heads, lines, words={"run", "basis"}).to_text())
        low, expected, high = (sum(row["usd"][at] for row in known) for at in range(3))
        runs = f"{len(known)} of {len(rows)} runs"
        parts.append(f"${expected:,.2f} for {runs}, from ${low:,.2f} to ${high:,.2f}")
    problems = dict.fromkeys(row["problem"] for row in rows if "problem" in row)
    parts += [f"no estimate for the other runs: {problem}" for problem in problems]
    if published:
        spent = [f"${usd:,.2f}  {whose}" for whose, usd in published.items()]
        total = f"${sum(published.values()):,.2f}  all of these"
        parts.append("\n".join(["at published dollars a question:", *spent, total]))
    parts.append(f"cap of the experiment: ${max_usd:g}")
    return "\n\n".join(parts)


def lock(runs: Mapping[str, Run], jobs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What ran, exactly: run -> its suite, arm and versions, without any path of a machine.

    Args:
        runs: by name.
        jobs: run -> what compiled its arm.
    """
    return {
        name: _locked(run) | ({"compiled": jobs[name]} if name in jobs else {})
        for name, run in runs.items()
    }


def _locked(run: Run) -> dict[str, Any]:
    suite, arm, about = run.lock["suite"], run.lock["arm"], run.lock["lock"]
    return {
        "created": run.lock["created"],
        "suite": {key: suite[key] for key in ("name", "version", "seed", "digest", "source")},
        "arm": {key: value for key, value in arm.items() if key != "sandbox"}
        | {"sandbox": arm["sandbox"]["level"]},
        "epochs": run.lock["epochs"],
        "planned": run.lock["planned"],
        "scored": run.summary["scored"],
        "usd": run.summary["usage"]["usd"],
        **{key: about[key] for key in ("versions", "prices", "hash_seed", "git")},
    }


def _alt(file: str) -> str:
    return file.rpartition("/")[2].rpartition(".")[0].replace("-", " ")


def _suite(comparison: RunComparison, experiment: Experiment) -> Iterator[str]:
    yield arms_grid(comparison).to_markdown()
    yield "Score by length of the context, with its 95 % interval and the number of samples:"
    yield _curves(comparison).to_markdown()
    if tries := repeated_grid(comparison):
        yield REPEATED[0].upper() + REPEATED[1:] + ":"
        yield tries.to_markdown()
    if references := _references(comparison, experiment):
        yield "Published scores beside ours; their samples, prompts and prices are not ours:"
        yield references.to_markdown()
    if recursion := recursion_grid(comparison):
        yield "What the RLMs did. " + RECURSION
        yield recursion.to_markdown()
    for name in comparison.names[1:]:
        rows = [row for row in comparison.rows if row.arm == name]
        yield f"### {name} less {comparison.names[0]}"
        yield difference_grid(rows).to_markdown()
        yield cost_grid(rows).to_markdown()
    yield notes(comparison, bullet="* ")


def _curves(comparison: RunComparison) -> Grid:
    points = {
        (arm["name"], point["task"], point["length"]): point
        for arm in comparison.arms
        for point in arm["curve"]
    }
    tasks = list(dict.fromkeys(task for _, task, _ in points))
    lengths = sorted({length for _, _, length in points})
    rows = [
        (task, name, *(_point(points.get((name, task, length))) for length in lengths))
        for task in tasks
        for name in comparison.names
    ]
    return Grid(("task", "arm", *map(short_length, lengths)), rows, words={"task", "arm"})


def _point(point: Mapping[str, Any] | None) -> str:
    if point is None:
        return "-"
    between = "one context" if point["ci"] is None else interval(point["ci"])
    return f"{point['score']:.3f} ({between}; {point['n']})"


def _references(comparison: RunComparison, experiment: Experiment) -> Grid | None:
    tasks = list(dict.fromkeys(row.task for row in comparison.rows if row.task != ALL))
    found = [r for r in experiment.references if set(r.scores) & set(tasks)]
    if not found:
        return None
    ours = {(row.arm, row.task): row.candidate.score for row in comparison.rows
            if row.length is None and row.metric == "score"}  # fmt: skip
    ours |= {(comparison.names[0], row.task): row.baseline.score for row in comparison.rows
             if row.length is None and row.metric == "score"}  # fmt: skip
    rows = [
        (r.arm, r.source, *(f"{number(r.scores.get(task))} / {number(ours.get((r.arm, task)))}"
                            for task in tasks))
        for r in found
    ]  # fmt: skip
    heads = ("arm", "published", *(f"{task}: theirs / ours" for task in tasks))
    return Grid(heads, rows, words={"arm", "published"})


def _ran(found: Mapping[str, RunComparison]) -> Grid:
    rows = [
        (run.folder.name, run.lock["arm"]["program"], run.lock["arm"]["models"]["root"]["name"],
         run.lock["arm"]["models"]["sub"]["name"], str(run.lock["planned"]),
         f"{run.summary['usage']['usd']:.2f}", run.lock["suite"]["digest"][:12],
         run.lock["arm"]["digest"][:12])
        for comparison in found.values() for group in comparison.groups for run in group
    ]  # fmt: skip
    heads = ("run", "program", "model", "sub-model", "planned", "$", "suite digest",
             "program digest")  # fmt: skip
    return Grid(heads, rows, words={"run", "program", "model", "sub-model"})
