"""Stored runs on the same samples: what differs from the first, and what luck explains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet_rlm.errors import UsageError
from fleet_rlm.ledger import Usage
from fleet_rlm.lm.simulated import LABEL
from fleet_rlm.runner.outcomes import METRICS, Cost, Metric, Numbers, Outcomes, codes, read_outcomes
from fleet_rlm.runner.stored import Run, open_run
from fleet_rlm.statistics.clustered import mean_interval
from fleet_rlm.statistics.paired import Comparison, Flips, compare_paired, holm
from fleet_rlm.statistics.repeated import repeated

ALL = "all"
"""Name of the row of all tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One arm on the samples of a row."""

    score: float
    """Mean over the samples that both arms have scored."""

    with_errors_as_zero: float
    """Mean over the samples that both were asked, where an error counts as 0."""

    cost: Cost
    """Of the samples that both were asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One candidate against the baseline, on one task and length or on all of them."""

    arm: str
    """Name of the candidate."""

    task: str
    """`ALL` for all of them."""

    length: int | None
    """Target length of the contexts in tokens; None for all of them."""

    metric: Metric
    baseline: Side
    candidate: Side
    test: Comparison
    p_holm: float = 1.0
    """p adjusted for all tests of its kind: over arms and metrics, and over tasks or lengths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunComparison:
    """Candidates against a baseline."""

    groups: tuple[tuple[Run, ...], ...]
    """The runs of the baseline, then those of each candidate; several where seeds are pooled."""

    names: tuple[str, ...]
    """Of the baseline and the candidates: program, and what tells them apart."""

    rows: tuple[Row, ...]
    outcomes: tuple[Outcomes, ...] = field(repr=False)
    """What came of their samples."""

    arms: tuple[dict[str, Any], ...]
    """Baseline and candidates: names, scores, coverage, spending, all of the run."""

    notes: tuple[str, ...] = ()
    """What else differs, in words, and makes a difference of scores hard to read."""

    label: str | None = None
    """The sentence that must stand beside the numbers, if any."""

    @property
    def suite(self) -> str:
        """Name of the suite that all of them ran."""
        return str(self.groups[0][0].lock["suite"]["name"])

    def row(
        self, task: str = ALL, *, arm: int = 0, length: int | None = None, metric: Metric = "score"
    ) -> Row:
        """One row.

        Args:
            task: its name, or `ALL`.
            arm: number of the candidate, from 0.
            length: target length in tokens; None for all.
            metric: which score.

        Raises:
            KeyError: there is none, because no sample of it is common.
        """
        wanted = (self.names[arm + 1], task, length, metric)
        for row in self.rows:
            if (row.arm, row.task, row.length, row.metric) == wanted:
                return row
        raise KeyError(wanted)

    def to_json(self) -> dict[str, Any]:
        """What `fleet-eval compare --json` prints."""
        return {
            "suite": self.suite,
            "label": self.label,
            "notes": list(self.notes),
            "baseline": self.arms[0],
            "candidates": list(self.arms[1:]),
            "rows": [asdict(row) for row in self.rows],
        }


def compare(
    baseline: Run | Path | str,
    *candidates: Run | Path | str,
    allow_mixed: bool = False,
    names: Sequence[str] | None = None,
) -> RunComparison:
    """Compare runs with a baseline, sample by sample.

    Args:
        baseline: a run or its folder.
        candidates: one or more other arms on the same suite.
        allow_mixed: compare although one was answered by a simulated model and another was not.
        names: of the baseline and the candidates; what tells them apart when absent.

    Raises:
        UsageError: a folder is no run, the runs have other data, other scorers or no sample in
            common, or their models are of different kinds.
    """
    if not candidates:
        raise UsageError("A comparison takes a baseline and at least one candidate.")
    runs = [run if isinstance(run, Run) else open_run(run) for run in (baseline, *candidates)]
    return compare_groups(
        [[run] for run in runs], names=names or arm_names(runs), allow_mixed=allow_mixed
    )


def compare_groups(
    groups: Sequence[Sequence[Run]], *, names: Sequence[str], allow_mixed: bool = False
) -> RunComparison:
    """Compare arms that were run several times, on other samples each time: all pooled.

    Args:
        groups: the runs of each arm, those on the same samples at the same place; the baseline's
            first.
        names: of the arms.
        allow_mixed: as in `compare`.

    Raises:
        UsageError: as `compare`.
    """
    base, *others = groups
    for other in others:
        for first, second in zip(base, other, strict=True):
            _check(first, second, allow_mixed=allow_mixed)
    outcomes = [read_outcomes([run.folder for run in runs]) for runs in groups]
    before, rows = outcomes[0], []
    for runs, name, after in zip(others, names[1:], outcomes[1:], strict=True):
        found = list(_Pair.of(name, before, after).rows())
        if not found:
            raise UsageError(
                f"{base[0].folder} and {runs[0].folder} have no scored sample in common."
            )
        rows += found
    every = [run for runs in groups for run in runs]
    return RunComparison(
        groups=tuple(map(tuple, groups)),
        names=tuple(names),
        rows=_adjusted(rows),
        outcomes=tuple(outcomes),
        arms=tuple(map(_arm, groups, outcomes, names)),
        notes=tuple(_notes([runs[0] for runs in groups], names)),
        label=next((LABEL for run in every if _kind(run) == "simulated"), None),
    )


def arm_names(runs: Sequence[Run]) -> list[str]:
    """A name for each run: its program, and whatever else tells it from the others."""
    traits = [_traits(run) for run in runs]
    names = []
    for own in traits:
        # A setting tells runs of one program apart; another program may not have it at all.
        alike = [other for other in traits if other["program"] == own["program"]]
        telling = [
            name
            for key, name in own.items()
            if len({other.get(key) for other in (alike if "=" in name else traits)}) > 1
        ]
        names.append(" ".join(dict.fromkeys([own["program"], *telling])))
    # What the prompts say has no short name of its own, nor has a repetition.
    for apart in ([run.lock["arm"]["digest"][:6] for run in runs], [r.folder.name for r in runs]):
        known = list(zip(names, apart, strict=True))
        names = [
            f"{name} @{more}" if len({m for n, m in known if n == name}) > 1 else name
            for name, more in known
        ]
    return [name if names.index(name) == n else f"{name} #{n + 1}" for n, name in enumerate(names)]


def _traits(run: Run) -> dict[str, str]:
    arm = run.lock["arm"]
    models = {role: arm["models"][role]["name"] for role in ("root", "sub")}
    found = {"program": arm["program"], "root": models["root"]}
    if models["sub"] != models["root"]:
        found["sub"] = f"sub {models['sub']}"
    settings = arm.get("settings") or {}
    return found | {key: f"{key}={value}" for key, value in sorted(settings.items())}


def _kind(run: Run) -> str:
    return str(run.lock["arm"]["model_kind"])


# ---- what may be compared ------------------------------------------------------------------------


def _check(base: Run, cand: Run, *, allow_mixed: bool) -> None:
    was, other = base.lock["suite"], cand.lock["suite"]
    if (was["name"], was["digest"]) != (other["name"], other["digest"]):
        raise UsageError(
            f"{base.folder} and {cand.folder} have different data or scorers:"
            f" {_what_differs(was, other)}",
            fix="compare runs of one suite with the same --set and --corpus",
        )
    judges = [_judge(run) for run in (base, cand)]
    if judges[0] != judges[1]:
        raise UsageError(
            f"{base.folder} and {cand.folder} have different scorers: judge {judges[0]} and"
            f" {judges[1]}",
            fix="fleet-eval run with one --judge",
        )
    kinds = [_kind(run) for run in (base, cand)]
    if kinds[0] != kinds[1] and not allow_mixed:
        raise UsageError(
            f"One run is {kinds[0]} and the other {kinds[1]}: their difference says nothing of"
            " a program.",
            fix="--allow-mixed",
        )


def _what_differs(was: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The parts of two suites that differ, named; at most three of them."""
    first, second = _leaves(was), _leaves(other)
    keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    named = [key for key in keys if key != "suite digest"] or keys
    shown = [f"{key} {_short(first.get(key))} and {_short(second.get(key))}" for key in named[:3]]
    more = f", and {len(named) - 3} more" if len(named) > 3 else ""
    return (
        "; ".join(shown) + more + f" (suite digest {was['digest'][:12]} and {other['digest'][:12]})"
    )


def _leaves(suite: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> value of all that decides which samples there are and how they count."""
    tasks = {task["name"]: task for task in suite["tasks"]}
    found = {f"suite {key}": suite[key] for key in ("name", "version", "seed", "digest")}
    found["digest of the text that is planted in"] = suite["source"]
    for name, task in tasks.items():
        found |= {f"task {name}: {_LEAVES.get(key, key)}": value for key, value in task.items()}
    return found


_LEAVES = {"data": "digest of the data", "manifest": "digest of the manifest", "rule": "scorer"}


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) > 40 and value.isalnum():
        return value[:12]
    return "absent" if value is None else str(value)[:60]


def _judge(run: Run) -> str | None:
    judge = run.lock["arm"]["models"].get("judge")
    return None if judge is None else str(judge["name"])


def _notes(runs: Sequence[Run], names: Sequence[str]) -> Iterator[str]:
    """What differs beside the program, and would be read as its doing."""
    for what, of in _ASIDE.items():
        if len({of(run) for run in runs}) > 1:
            shown = ", ".join(f"{of(r)} ({name})" for r, name in zip(runs, names, strict=True))
            yield f"Not only the program differs: {what} {shown}."


_ASIDE: dict[str, Callable[[Run], str]] = {
    "models": lambda run: " and ".join(
        dict.fromkeys(run.lock["arm"]["models"][role]["name"] for role in ("root", "sub"))
    ),
    "limits": lambda run: (
        ", ".join(f"{name} {value:g}" for name, value in run.lock["arm"]["limits"].items() if value)
        or "none"
    ),
    "epochs": lambda run: str(run.lock["epochs"]),
    "fleet-rlm": lambda run: str(run.lock["lock"]["versions"].get("fleet-rlm", "unknown")),
}


# ---- the rows ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two arms on the samples that both were asked, in one order."""

    name: str
    before: Outcomes
    after: Outcomes
    at_before: Numbers
    at_after: Numbers
    """Positions of those samples in each arm."""

    tasks: NDArray[np.object_]
    lengths: Numbers
    clusters: Numbers
    scores: dict[Metric, tuple[NDArray[np.float64], NDArray[np.float64]]] = field(repr=False)
    flips: Flips = field(repr=False)

    @classmethod
    def of(cls, name: str, before: Outcomes, after: Outcomes) -> _Pair:
        place = {sample: n for n, sample in enumerate(after.samples)}
        both = [(n, place[s]) for n, s in enumerate(before.samples) if s in place]
        # In the order of ids, whatever order the samples ended in: drawn signs fall alike.
        both.sort(key=lambda pair: before.samples[pair[0]])
        first, second = np.array(both, dtype=np.int64).reshape(-1, 2).T
        tasks = np.array(before.tasks, dtype=object)[first]
        lengths = np.array(before.lengths, dtype=np.int64)[first]
        clusters = codes([before.clusters[n] for n in first])
        scores = {m: (before.scores[m][first], after.scores[m][second]) for m in METRICS}
        differences = np.stack([theirs - ours for ours, theirs in scores.values()], axis=1)
        cells = codes(list(zip(tasks, lengths.tolist(), strict=True)))
        flips = Flips(differences, clusters, cells)
        return cls(name, before, after, first, second, tasks, lengths, clusters, scores, flips)

    def rows(self) -> Iterator[Row]:
        """A task's row, then those of its lengths; the rows of all tasks last, the total at the
        very end. Official and robust scores follow where they are not the score itself."""
        tasks = sorted(set(self.tasks.tolist()))
        for task in [*tasks, ALL] if len(tasks) > 1 else tasks:
            inside = np.ones(len(self.tasks), bool) if task == ALL else self.tasks == task
            lengths = np.unique(self.lengths[inside]).tolist()
            for length in lengths if len(lengths) > 1 else ():
                yield from self._row(task, length, "score", inside & (self.lengths == length))
            for metric in METRICS:
                if metric == "score" or self._differs(metric, inside):
                    yield from self._row(task, None, metric, inside)
        if len(tasks) == 1:
            yield from self._row(ALL, None, "score", np.ones(len(self.tasks), bool))

    def _differs(self, metric: Metric, inside: NDArray[np.bool_]) -> bool:
        pairs = zip(self.scores[metric], self.scores["score"], strict=True)
        return any(
            not np.array_equal(other[inside], score[inside], equal_nan=True)
            for other, score in pairs
        )

    def _row(
        self, task: str, length: int | None, metric: Metric, inside: NDArray[np.bool_]
    ) -> Iterator[Row]:
        first, second = self.scores[metric]
        differences = second - first
        paired = inside & ~np.isnan(differences)
        if not paired.any():
            return
        yield Row(
            arm=self.name,
            task=task,
            length=length,
            metric=metric,
            baseline=_side(self.before, self.at_before[inside], first[paired]),
            candidate=_side(self.after, self.at_after[inside], second[paired]),
            test=compare_paired(
                differences[paired],
                self.clusters[paired],
                p=self.flips.p(inside, METRICS.index(metric)),
            ),
        )


def _side(outcomes: Outcomes, asked: Numbers, scores: NDArray[np.float64]) -> Side:
    wanted = np.zeros(len(outcomes.samples), bool)
    wanted[asked] = True
    return Side(
        score=float(scores.mean()),
        with_errors_as_zero=float(outcomes.with_zeros[asked].mean()),
        cost=outcomes.cost(wanted),
    )


def _adjusted(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Holm within each kind of row: all tasks, one task, one length."""
    kinds = [(row.task == ALL, row.length is None) for row in rows]
    found = list(rows)
    for kind in set(kinds):
        places = [n for n, own in enumerate(kinds) if own == kind]
        for n, p in zip(places, holm([rows[n].test.p for n in places]), strict=True):
            found[n] = replace(rows[n], p_holm=p)
    return tuple(found)


def _arm(runs: Sequence[Run], outcomes: Outcomes, name: str) -> dict[str, Any]:
    first = runs[0].summary
    scores = outcomes.scores["score"]
    scored = ~np.isnan(scores)
    clusters = codes(outcomes.clusters)[scored]
    zeros = outcomes.with_zeros
    planned = sum(run.lock["planned"] for run in runs)
    usage = sum((Usage.from_json(run.summary["usage"]) for run in runs), Usage())
    cost = outcomes.cost(np.ones(len(outcomes.samples), bool))
    return {
        "name": name,
        "run": ", ".join(run.folder.name for run in runs),
        **{key: first[key] for key in ("program", "model", "settings")},
        "samples": len(outcomes.samples),
        "contexts": len(set(outcomes.clusters)),
        "errors": cost.records - outcomes.scored,
        "coverage": outcomes.scored / planned if planned else 0.0,
        "score": float(scores[scored].mean()) if scored.any() else None,
        "ci": mean_interval(scores[scored], clusters) if scored.any() else None,
        "with_errors_as_zero": float(zeros.mean()) if len(zeros) else None,
        "curve": list(curve(outcomes)),
        "repeated": [
            asdict(row) for row in repeated(outcomes.attempts, outcomes.right, outcomes.clusters)
        ],
        "cost": asdict(cost),
        "usage": usage.to_json(),
        "wall_s": sum(run.summary["wall_s"] for run in runs),
        "stops": cost.stops,
    }


def curve(outcomes: Outcomes) -> Iterator[dict[str, Any]]:
    """Score by length, of all tasks and of each: `task`, `length`, `n`, `contexts`, `score`, `ci`.

    `ci` is None for one context; of a length without a score there is nothing.
    """
    scores = outcomes.scores["score"]
    scored = ~np.isnan(scores)
    clusters, lengths = codes(outcomes.clusters), np.array(outcomes.lengths)
    tasks = np.array(outcomes.tasks, dtype=object)
    names = sorted(set(outcomes.tasks))
    for task in [ALL, *names] if len(names) > 1 else names:
        inside = scored if task == ALL else scored & (tasks == task)
        for length in np.unique(lengths[inside]).tolist():
            chosen = inside & (lengths == length)
            yield {
                "task": task,
                "length": length,
                "n": int(chosen.sum()),
                "contexts": len(np.unique(clusters[chosen])),
                "score": float(scores[chosen].mean()),
                "ci": mean_interval(scores[chosen], clusters[chosen]),
            }
