"""Who goes on to the next rung: successive halving on paired samples, ties kept. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from fleet_rlm.search.objective import Measured
from fleet_rlm.statistics.clustered import mean_interval

CONFIDENCE = 0.8
"""Of the interval that drops a trial: one that is truly as good goes in one of ten looks."""


def rungs(first: int, total: int) -> list[int]:
    """Samples that a trial has run after each rung.

    >>> rungs(8, 24)
    [8, 16, 24]
    """
    sizes = []
    while first < total:
        sizes.append(first)
        first *= 2
    return [*sizes, total]


def survivors(
    running: Mapping[int, Measured],
    leader: Measured,
    cluster_of: Mapping[str, str],
    *,
    tolerance: float,
) -> list[int]:
    """The trials that go on.

    A trial is dropped when the interval of its paired difference to the leader lies below
    `-tolerance`, or when it is dearer and could not score higher if it had all the rest right. Of
    the others half of all go on: those that fewest others beat in score and
    dollars at once, then those with the higher score. A trial that scores as high as any goes on
    with them: a price is no evidence against it, and on few samples many score alike.

    Args:
        running: trial -> what it did so far; all on the same samples.
        leader: the best of the trials that ran the whole validation.
        cluster_of: sample -> id of its context.
        tolerance: score that may be lost for a lower price.
    """
    alive = [
        number
        for number, found in running.items()
        if found.score
        and not _is_worse(found, leader, cluster_of, tolerance)
        and not _is_vain(found, leader)
    ]
    places = {
        number: (fmean(running[number].score.values()), fmean(running[number].usd.values()))
        for number in alive
    }

    def rank(number: int) -> tuple[int, float, float, int]:
        score, usd = places[number]
        better = sum(s >= score and c <= usd and (s, c) != (score, usd) for s, c in places.values())
        return better, -score, usd, number

    ranked = sorted(alive, key=rank)
    half = max(1, len(running) // 2)
    highest = max((score for score, _ in places.values()), default=0.0)
    return [
        number
        for position, number in enumerate(ranked)
        if position < half or places[number][0] >= highest
    ]


def _is_vain(found: Measured, leader: Measured) -> bool:
    common = found.score.keys() & leader.score.keys()
    ahead = sum(found.score[name] - leader.score[name] for name in common)
    to_gain = sum(1 - score for name, score in leader.score.items() if name not in common)
    dearer = sum(found.usd[name] - leader.usd[name] for name in common)
    return ahead + to_gain <= 0 < dearer


def _is_worse(
    found: Measured, leader: Measured, cluster_of: Mapping[str, str], tolerance: float
) -> bool:
    common: Sequence[str] = sorted(found.score.keys() & leader.score.keys())
    if not common:
        return True
    differences = np.array([found.score[name] - leader.score[name] for name in common])
    interval = mean_interval(differences, [cluster_of[name] for name in common], CONFIDENCE)
    return interval is not None and interval.high < -tolerance
