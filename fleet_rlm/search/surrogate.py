"""What each choice is worth, and the point that looks best: an additive model. Pure.

A study has a few dozen trials and hundreds of points, and what an instruction, a worked example or
a setting is worth depends little on the others. So the difference to the baseline, in score and in
the logarithms of dollars and latency, is taken for a sum over the choices of a point. Points are
drawn as Thompson (1933) does: the best by one draw from the posterior, so that what is uncertain is
tried and what is known to be poor is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet_rlm.search.space import Params, Space

Vector = NDArray[np.float64]

RATES = (0.0, 0.02, 0.05)
"""Score that half the dollars and seconds are worth, by turns: the ends and the middle of a front,
as Knowles (2006, ParEGO) draws weights."""


class Scale(NamedTuple):
    """What is expected of an objective before it is seen; standard deviations."""

    dimension: float
    """Of what leaving the baseline's choice does, whichever choice is taken."""

    choice: float
    """Of what a choice does beside that."""

    sample: float
    """Of the difference on one sample."""


SCORE = Scale(0.2, 0.1, 0.3)
COST = Scale(0.7, 0.5, 0.5)
"""In powers of two."""


CALM = (1.0, 0.25, 0.06, 0.015)
"""Parts of the variance on one sample that may be all there is; the likeliest is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was seen of a point, as differences to the baseline."""

    params: Params
    samples: float
    """That it rests on."""

    score: float
    usd: float | None = None
    """Power of two; None where it was not measured."""

    latency: float | None = None


def propose(space: Space, seen: Sequence[Seen], rate: float, seed: int) -> dict[str, int | str]:
    """The best point by one draw from what is known.

    Args:
        space: of the study.
        seen: trials and training passes so far, the baseline left out.
        rate: one of `RATES`.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    features = _Features(space)
    score = features.draw(seen, [one.score for one in seen], SCORE, rng)
    costs = [
        features.draw(seen, [getattr(one, name) for one in seen], COST, rng)
        for name in ("usd", "latency")
    ]
    worth = score - rate * (costs[0] + costs[1]) / 2
    return features.best(worth)


def _evidence(rows: Vector, found: Vector, prior: Vector, noise: Vector) -> float:
    """Logarithm of the likelihood of what was found, up to a constant."""
    covariance = (rows * prior**2) @ rows.T + np.diag(noise)
    return float(-found @ np.linalg.solve(covariance, found) - np.linalg.slogdet(covariance)[1])


class _Features:
    """Points as rows: for each dimension whether it is changed, and to what."""

    def __init__(self, space: Space) -> None:
        self._choices = space.choices
        self._starts: dict[str, int] = {}
        self._size = 0
        for name, choices in space.choices.items():
            self._starts[name] = self._size
            self._size += len(choices)

    def draw(
        self,
        seen: Sequence[Seen],
        values: Sequence[float | None],
        scale: Scale,
        rng: np.random.Generator,
    ) -> Vector:
        """What each feature adds, drawn from the posterior of a Bayesian linear regression."""
        prior = np.full(self._size, scale.choice)
        prior[list(self._starts.values())] = scale.dimension
        known = [(one, value) for one, value in zip(seen, values, strict=True) if value is not None]
        rows = np.array([self._row(one.params) for one, _ in known]).reshape(-1, self._size)
        found = np.array([value for _, value in known])
        noise = np.array([scale.sample**2 / one.samples for one, _ in known])
        noise = noise * max(CALM, key=lambda part: _evidence(rows, found, prior, noise * part))
        weighted = rows.T / noise
        precision = np.diag(prior**-2.0) + weighted @ rows
        spread = np.linalg.cholesky(np.linalg.inv(precision))
        mean = np.linalg.solve(precision, weighted @ found)
        drawn: Vector = mean + spread @ rng.standard_normal(self._size)
        return drawn

    def best(self, worth: Vector) -> dict[str, int | str]:
        """The choice of each dimension that adds most; the baseline's adds nothing."""
        point: dict[str, int | str] = {}
        for name, choices in self._choices.items():
            start = self._starts[name]
            added = [0.0, *(worth[start] + worth[start + 1 : start + len(choices)])]
            point[name] = choices[int(np.argmax(added))]
        return point

    def _row(self, params: Params) -> Vector:
        row = np.zeros(self._size)
        for name, choices in self._choices.items():
            position = choices.index(params.get(name, choices[0]))
            if position:
                row[self._starts[name]] = row[self._starts[name] + position] = 1.0
        return row
