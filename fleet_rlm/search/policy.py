"""Who wins: the front of the trials that no other beats, and the choice among them. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from fleet_rlm.search.objective import Measured, Values

RESAMPLES = 300


def front(values: Mapping[int, Values]) -> list[int]:
    """Trials that no other beats, dearest first."""
    kept = [
        number
        for number, mine in values.items()
        if not any(other.beats(mine) for other in values.values())
    ]
    return sorted(kept, key=lambda number: (-values[number].usd, number))


def choose(values: Mapping[int, Values], policy: str) -> int:
    """The winner among the front of these trials.

    Args:
        values: trial -> objectives; at least one.
        policy: "max-score"; "knee", the point of the front that is furthest from the line between
            its dearest and its cheapest end, score and dollars scaled to the front; or
            "cheapest-within=X", the cheapest whose score is at most X below the highest.
    """
    found = front(values)
    if policy == "knee":
        return _knee(values, found)
    tolerance = tolerance_of(policy)
    best = max(values[number].score for number in found)
    near = [number for number in found if values[number].score >= best - tolerance - 1e-12]
    if policy == "max-score":
        return min(near, key=lambda n: (values[n].usd, values[n].latency_s, n))
    return min(near, key=lambda n: (values[n].usd, -values[n].score, n))


def tolerance_of(policy: str) -> float:
    """Score that a policy gives up for a lower price."""
    return float(policy.partition("=")[2] or 0.0)


def _knee(values: Mapping[int, Values], found: Sequence[int]) -> int:
    scores = [values[number].score for number in found]
    prices = [values[number].usd for number in found]
    wide, tall = max(prices) - min(prices), max(scores) - min(scores)
    if not wide or not tall:
        return max(found, key=lambda n: (values[n].score, -values[n].usd))

    # On the scaled front the line runs from (0, 0) to (1, 1).
    def above(number: int) -> float:
        mine = values[number]
        return (mine.score - min(scores)) / tall - (mine.usd - min(prices)) / wide

    return max(found, key=lambda n: (above(n), values[n].score))


class Noise(NamedTuple):
    """How much of a winner's lead is luck of the draw of validation contexts."""

    optimism: float
    """By how much the winner's validation score is expected to flatter it, in score units."""

    stability: float
    """Share of resampled validations that choose the same winner."""


def selection_noise(
    measured: Mapping[int, Measured],
    cluster_of: Mapping[str, str],
    policy: str,
    *,
    seed: int,
) -> Noise:
    """Choose again on validations whose contexts are drawn anew, with replacement.

    The optimism is the mean, over draws, of the chosen trial's score on the draw less its score on
    the real validation (Efron 1983's bootstrap estimate of optimism).

    Args:
        measured: trial -> what it did on the whole validation.
        cluster_of: sample -> id of its context.
        policy: as in `choose`.
        seed: of the draws.
    """
    common = sorted(set.intersection(*(set(found.score) for found in measured.values())))
    by_cluster: dict[str, list[str]] = {}
    for name in common:
        by_cluster.setdefault(cluster_of[name], []).append(name)
    clusters = sorted(by_cluster)
    rng = random.Random(f"noise:{seed}")
    original = choose({n: _values(found, common) for n, found in measured.items()}, policy)
    optimism, same = [], 0
    for _ in range(RESAMPLES):
        drawn = [name for _ in clusters for name in by_cluster[rng.choice(clusters)]]
        values = {number: _values(found, drawn) for number, found in measured.items()}
        chosen = choose(values, policy)
        optimism.append(values[chosen].score - fmean(measured[chosen].score[n] for n in common))
        same += chosen == original
    return Noise(fmean(optimism), same / RESAMPLES)


def _values(found: Measured, names: Sequence[str]) -> Values:
    return Values(
        score=fmean(found.score[name] for name in names),
        usd=fmean(found.usd[name] for name in names),
        latency_s=fmean(found.seconds[name] for name in names),
    )
