"""What a comparison of runs says: arms, differences, costs, and what to mind when reading them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from fleet_rlm.report.grid import Grid
from fleet_rlm.report.tables import count, interval, number, short_length
from fleet_rlm.runner.compare import ALL, Row, RunComparison, Side
from fleet_rlm.statistics.paired import FEWEST_CLUSTERS

Form = Literal["text", "markdown"]

EQUAL = "all equal"
"""Shown for an interval without width."""

MARKS = {
    EQUAL: "all contexts show the same, so the interval has no width; that proves nothing of"
    " contexts that were not asked",
    "*": f"fewer than {FEWEST_CLUSTERS} contexts: no difference whatever could reach p < 0.05 here",
}


def render(found: RunComparison, form: Form) -> str:
    """A comparison as text for a terminal, or as Markdown.

    Args:
        found: the comparison.
        form: which of the two.
    """
    parts = [found.label] if found.label else []
    base = found.names[0]
    others = "1 arm" if len(found.names) == 2 else f"{len(found.names) - 1} arms"
    parts.append(f"{found.suite}: {others} against {base}, paired by sample")
    parts.append(_shown(_arms(found), form))
    if tries := repeated_grid(found):
        parts += [_title(REPEATED, form), _shown(tries, form)]
    for name in found.names[1:]:
        rows = [row for row in found.rows if row.arm == name]
        parts.append(_title(f"{name} less {base}", form))
        parts.append(_shown(difference_grid(rows), form))
        parts.append(_title(f"what {name} took and how it ended, against {base}", form))
        parts.append(_shown(cost_grid(rows), form))
    parts.append(notes(found, bullet="* " if form == "markdown" else ""))
    return "\n\n".join(parts)


def notes(found: RunComparison, *, bullet: str) -> str:
    """How the tables are to be read, and what else differs; a line each."""
    marks = [f"{mark}: {text}." for mark, text in _marks(found.rows).items()]
    about = (
        "p: sign flips of contexts; p Holm: for all arms, metrics and tasks, lengths apart."
        " +/-/=: samples better, worse, equal. detects: difference that 80 % of such runs would"
        " show. $, tokens and seconds (waits for a rate limit apart) are of a sample and epoch."
    )
    return "\n".join(bullet + line for line in [about, *marks, *found.notes])


def _title(text: str, form: Form) -> str:
    return f"### {text}" if form == "markdown" else text


def _shown(grid: Grid, form: Form) -> str:
    return grid.to_markdown() if form == "markdown" else grid.to_text()


def _arms(found: RunComparison) -> Grid:
    heads = ("arm", "run", "n", "score", "95% CI", "errors=0", "coverage", "$", "tokens", "p50 s",
             "p95 s", "ended")  # fmt: skip
    rows = [
        (
            arm["name"],
            arm["run"],
            str(arm["samples"]),
            number(arm["score"]),
            interval(arm["ci"]),
            number(arm["with_errors_as_zero"]),
            f"{arm['coverage']:.0%}",
            *_cost(arm["cost"]),
            stops(arm["cost"]["stops"]),
        )
        for arm in found.arms
    ]
    return Grid(heads, rows, words={"arm", "run", "ended"})


def difference_grid(rows: Sequence[Row]) -> Grid:
    """What differs, a row each."""
    heads = ("task", "length", "n", "contexts", "base", "cand", "difference", "95% CI", "p",
             "p Holm", "+/-/=", "detects", "base, cand, errors=0")  # fmt: skip
    return Grid(heads, [_difference(row) for row in rows], words={"task"})


def _difference(row: Row) -> tuple[str, ...]:
    test = row.test
    zeros = (number(side.with_errors_as_zero) for side in (row.baseline, row.candidate))
    return (
        *_place(row),
        str(test.n),
        str(test.clusters),
        number(row.baseline.score),
        number(row.candidate.score),
        f"{test.difference:+.3f}",
        difference_interval(row),
        f"{test.p:.2g}{'*' if test.has_too_few_contexts else ''}",
        f"{row.p_holm:.2g}",
        f"{test.wins}/{test.losses}/{test.ties}",
        number(test.detectable),
        ", ".join(zeros) if row.metric == "score" else "-",
    )


def arms_grid(comparison: RunComparison) -> Grid:
    """Baseline and candidates over all of their samples, a row each."""
    heads = ("arm", "n", "contexts", "score", "95% CI", "errors=0", "coverage", "$ a sample",
             "tokens", "p50 s", "p95 s", "ended")  # fmt: skip
    rows = [
        (
            arm["name"],
            str(arm["samples"]),
            str(arm["contexts"]),
            number(arm["score"]),
            interval(arm["ci"]),
            number(arm["with_errors_as_zero"]),
            f"{arm['coverage']:.0%}",
            f"{arm['cost']['usd']:.4f}",
            count(arm["cost"]["tokens"]),
            f"{arm['cost']['p50_s']:.2f}",
            f"{arm['cost']['p95_s']:.2f}",
            stops(arm["stops"]),
        )
        for arm in comparison.arms
    ]
    return Grid(heads, rows, words={"arm", "ended"})


def cost_grid(rows: Sequence[Row]) -> Grid:
    """What both arms took and how they ended, a row each."""
    pairs = [f"{which} {what}" for what in ("$", "tokens", "p50 s", "p95 s")
             for which in ("base", "cand")]  # fmt: skip
    shown = [
        (*_place(row), *(cell for both in zip(*_both(row), strict=True) for cell in both),
         f"{stops(row.baseline.cost.stops)} | {stops(row.candidate.cost.stops)}")
        for row in rows if row.metric == "score"
    ]  # fmt: skip
    ended = "base | cand ended"
    return Grid(("task", "length", *pairs, ended), shown, words={"task", ended})


REPEATED = "samples tried several times; right: a score of 1"


def repeated_grid(found: RunComparison) -> Grid | None:
    """Whether any of k attempts is right, and whether all are; None where none was repeated."""
    heads = ("arm", "tries", "n", "contexts", "any right (pass@k)", "95% CI",
             "all right (pass^k)", "95% CI")  # fmt: skip
    rows = [
        (
            arm["name"],
            str(row["k"]),
            str(row["n"]),
            str(row["clusters"]),
            number(row["any_right"]),
            interval(row["any_ci"]),
            number(row["all_right"]),
            interval(row["all_ci"]),
        )
        for arm in found.arms
        for row in arm["repeated"]
    ]
    return Grid(heads, rows, words={"arm"}) if rows else None


RECURSION = (
    "Means over answers. repeated: sub-queries that had been asked word for word before. read:"
    " share of the context that a model was shown at most, by distinct sub-model prompts and"
    " printed output. tokens back: printed output that returned to the root's prompt."
)


def recursion_grid(found: RunComparison) -> Grid | None:
    """What RLMs did, an arm a row; None where there is none."""
    heads = ("arm", "answers", "turns", "sub-queries", "repeated", "children", "deepest", "read",
             "code errors", "tokens back")  # fmt: skip
    rows = [
        _recursion(name, outcomes.recursion)
        for name, outcomes in zip(found.names, found.outcomes, strict=True)
        if outcomes.recursion
    ]
    return Grid(heads, rows, words={"arm"}) if rows else None


def _recursion(name: str, found: Sequence[Mapping[str, int]]) -> tuple[str, ...]:
    total = {key: sum(one[key] for one in found) for key in found[0]}
    read = [min(1.0, one["read_chars"] / max(1, one["context_chars"])) for one in found]
    n = len(found)
    return (
        name,
        str(n),
        f"{total['turns'] / n:.1f}",
        f"{total['sub_calls'] / n:.1f}",
        f"{total['duplicates'] / max(1, total['sub_calls']):.1%}",
        f"{total['children'] / n:.1f}",
        str(max(one["depth"] for one in found)),
        f"{sum(read) / n:.0%}",
        f"{total['code_errors'] / max(1, total['blocks']):.1%}",
        f"{total['returned_tokens'] / n:,.0f}",
    )


def _both(row: Row) -> Iterator[tuple[str, ...]]:
    sides: tuple[Side, Side] = (row.baseline, row.candidate)
    for side in sides:
        cost = side.cost
        yield _cost({"usd": cost.usd, "tokens": cost.tokens, "p50_s": cost.p50_s,
                     "p95_s": cost.p95_s})  # fmt: skip


def _cost(cost: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"{cost['usd']:.4f}",
        count(cost["tokens"]),
        f"{cost['p50_s']:.2f}",
        f"{cost['p95_s']:.2f}",
    )


def _place(row: Row) -> tuple[str, str]:
    metric = "" if row.metric == "score" else f" ({row.metric})"
    return f"{row.task}{metric}", ALL if row.length is None else short_length(row.length)


def difference_interval(row: Row) -> str:
    """The interval of a row's difference; said in words where it has none or no width."""
    test = row.test
    if test.ci is None:
        return "one context"
    if test.degenerate:
        return EQUAL
    # Scores lie in [0, 1]: beyond -1 and 1 there is no difference.
    return f"{max(-1.0, test.ci.low):+.3f} to {min(1.0, test.ci.high):+.3f}"


def stops(counted: Mapping[str, int]) -> str:
    """How records ended, most of them first."""
    return ", ".join(f"{stop} {n}" for stop, n in counted.items()) or "none"


def _marks(rows: tuple[Row, ...]) -> dict[str, str]:
    used = {EQUAL: any(row.test.degenerate for row in rows),
            "*": any(row.test.has_too_few_contexts for row in rows)}  # fmt: skip
    return {mark: MARKS[mark] for mark, is_used in used.items() if is_used}
