"""What a job says: its plan, its progress, its trials, what a trial changed, and its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fleet_rlm.report.grid import Grid
from fleet_rlm.report.tables import interval, number, signed
from fleet_rlm.statistics.paired import FEWEST_CLUSTERS

Json = Mapping[str, Any]


def render_plan(plan: Json) -> str:
    """What a job is expected to take, as `fleet-optimize run --dry-run --json` prints it."""
    rows = [
        [stage["name"], f"{stage['samples']:,}", f"{stage['calls']:,.0f}", f"{stage['usd']:.4f}"]
        for stage in plan["stages"]
    ]
    samples = sum(stage["samples"] for stage in plan["stages"])
    rows.append(["all", f"{samples:,}", f"{plan['calls']:,.0f}", f"{plan['usd']:.4f}"])
    heads = ["stage", "samples", "calls", "dollars"]
    lines = {
        "trials": f"{plan['trials']}, the baseline among them; races may spare some samples",
        "basis": plan["basis"],
    }
    return "\n".join([Grid(heads, rows, words={"stage"}).to_text(), *_lines(lines)])


def render_status(status: Json) -> str:
    """How far a job is, as `fleet-optimize status --json` prints it."""
    lines = {
        "job": f"{status['job']}: {status['stage']}",
        "spent": f"${status['usd']:.4f} in {status['calls']:,} calls",
    }
    if "best" in status:
        best = status["best"]
        lines["trials"] = f"{status['trials']} of {status['wanted']}"
        lines["best"] = f"trial {best['trial']}: {_objectives(best)}: {choices(best['params'])}"
        lines["front"] = ", ".join(f"trial {number}" for number in status["front"])
    return "\n".join(_lines(lines))


def render_trials(study: Json) -> str:
    """The trials of a job, the best first, and what explains their scores.

    Args:
        study: the content of `trials.json`.
    """
    front = set(study["front"])

    def marks(row: Json) -> str:
        won = "winner" if row["trial"] == study["winner"] else ""
        return won or ("front" if row["trial"] in front else "")

    names = list(study["trials"][0]["params"])
    rows = [
        [
            str(row["trial"]),
            number(row["score"]),
            "-" if row["usd"] is None else f"{row['usd']:.5f}",
            "-" if row["latency_s"] is None else f"{row['latency_s']:.1f}",
            str(row["samples"]),
            row["outcome"] if row["feasible"] else f"{row['outcome']}, cannot win",
            *(str(row["params"].get(name, "")) for name in names),
            marks(row),
        ]
        for row in sorted(study["trials"], key=lambda row: -(row["score"] or -1.0))
    ]
    heads = ["trial", "score", "$ a sample", "latency s", "samples", "outcome", *names, ""]
    table = Grid(heads, rows, words={"outcome", "", *names}).to_text()
    about = (
        "score, dollars and latency are estimates over the whole validation; of dropped trials from"
        " the samples they ran, paired with the baseline."
    )
    return "\n".join([table, about, *_lines({"matters": importances(study["importances"])})])


def render_diff(found: Json) -> str:
    """What a trial changed, as `fleet-optimize diff --json` prints it."""
    parts = [f"trial {found['trial']} against the baseline"]
    if not found["changes"]:
        return f"{parts[0]}: nothing differs"
    rows = [
        [
            name,
            str(change["baseline"]),
            str(change["trial"]),
            _bought(change, "score", "+.3f"),
            _bought(change, "usd", "+.5f"),
            "/".join(map(str, change["n"])),
        ]
        for name, change in found["changes"].items()
    ]
    heads = ["dimension", "baseline", "trial", "score", "$ a sample", "trials"]
    words = {"dimension", "baseline", "trial"}
    parts.append(Grid(heads, rows, words=words).to_text())
    parts.append(
        "score, $: mean over all trials with the trial's choice less mean over those with the"
        " baseline's, and its 95 % interval as if trials had been drawn at random: a hint where to"
        " look, while the sealed test is the evidence. trials: how many there are of each."
    )
    parts += ["\n".join([name, *lines]) for name, lines in found["instructions"].items()]
    parts += [
        "\n".join(
            [f"worked examples of {name}", *(f"  {d['shows']} ({d['chars']:,} chars)" for d in ds)]
        )
        for name, ds in found["demos"].items()
    ]
    return "\n\n".join(parts)


def _bought(change: Json, value: str, form: str) -> str:
    if change[value] is None:
        return "-"
    shown = format(change[value], form)
    if change[f"{value}_interval"] is None:
        return f"{shown} (no interval)"
    low, high = (format(end, form) for end in change[f"{value}_interval"])
    return f"{shown} ({low} to {high})"


def render_result(result: Json, verdict: str, label: str | None) -> str:
    """How a job ended: baseline and winner on the sealed test, and what the search was like.

    Args:
        result: the content of `result.json`.
        verdict: what the test carries, in words.
        label: the sentence that must stand beside the numbers, if any.
    """
    study, usage, winner = result["study"], result["usage"], result["winner"]
    parts = [label] if label else []
    parts.append(_arms(result))
    lines = {
        "change": _difference(result["test"]),
        "": "{wins} better, {losses} worse, {ties} equal".format(**result["test"]),
        "cost": _change(result["cost"], "+.5f", "$ a sample"),
        "latency": _change(result["latency"], "+.2f", "s a sample"),
        "verdict": verdict,
        "winner": f"trial {winner['trial']} by {study['policy']}: {choices(winner['params'])}",
        "study": f"{study['trials']} trials, {study['complete']} on the whole validation;"
        f" {study['ended']}",
        "noise": f"choosing among them flatters by {study['noise']['optimism']:+.3f};"
        f" {study['noise']['stability']:.0%} of redrawn validations choose the same",
        "matters": importances(study["importances"]),
        "spent": f"${usage['usd']:.4f}, of it ${usage['compile_usd']:.4f} before the test;"
        f" {usage['calls']:,} calls, {usage['seconds']:.0f} s",
    }
    parts += _lines(lines)
    return "\n".join([*parts, *(f"warning   {text}" for text in result["warnings"])])


def choices(params: Json) -> str:
    """A trial's choices in one line."""
    return ", ".join(f"{name} {value}" for name, value in params.items())


def importances(found: Json) -> str:
    """Which dimensions explain the scores."""
    shares = [f"{name} {share:.0%}" for name, share in found.items()]
    return " · ".join(shares) or "too few trials to tell"


def _arms(result: Json) -> str:
    heads = ["sealed test", "n", "score", "95% CI", "$ a sample", "calls a sample", "coverage"]
    rows = []
    for name in ("baseline", "winner"):
        summary = result[name]
        n = max(1, summary["samples"])
        rows.append(
            [
                name,
                str(summary["scored"]),
                number(summary["score"]),
                interval(summary["ci"]),
                f"{summary['usage']['usd'] / n:.5f}",
                f"{summary['usage']['calls'] / n:.1f}",
                f"{summary['coverage']:.0%}",
            ]
        )
    return Grid(heads, rows, words={"sealed test"}).to_text()


def _difference(test: Json) -> str:
    if test["degenerate"]:
        between = "all equal"
    else:
        between = f"95% CI {signed(test['ci'])}" if test["ci"] else "no interval: one context"
    few = " (too few contexts to tell)" if test["clusters"] < FEWEST_CLUSTERS else ""
    return (
        f"{test['difference']:+.3f} on {test['n']} common samples in {test['clusters']} contexts,"
        f" {between}, p = {test['p']:.3g}{few}"
    )


def _change(found: Json, form: str, unit: str) -> str:
    between = ""
    if found["ci"] and not found["degenerate"]:
        low, high = (format(bound, form) for bound in found["ci"])
        between = f", 95% CI {low} to {high}"
    return f"{format(found['difference'], form)} {unit}{between}"


def _objectives(row: Json) -> str:
    return f"{row['score']:.3f} at ${row['usd']:.5f} a sample, {row['latency_s']:.1f} s"


def _lines(lines: Mapping[str, str]) -> Iterator[str]:
    for name, text in lines.items():
        yield f"{name:<9} {text}"
