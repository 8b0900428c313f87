"""What a study varies: instructions, demos, settings and models, each a dimension of choices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product

from fleet_rlm.errors import UsageError, nearest
from fleet_rlm.program.recursion import ProgramSettings
from fleet_rlm.search.candidates import Candidates
from fleet_rlm.search.recipe import SUB_MODEL, Recipe

Params = Mapping[str, int | str]
"""Dimension -> the choice of one trial."""

INSTRUCTION, DEMOS = ".instruction", ".demos"
"""Ends of the names of dimensions that are positions in a table of candidates."""


@dataclass(frozen=True, slots=True)
class Space:
    """The dimensions of a study."""

    choices: Mapping[str, tuple[int | str, ...]]
    """By dimension; the baseline's choice first."""

    @property
    def baseline(self) -> Params:
        """The point of the program as it is."""
        return {name: choices[0] for name, choices in self.choices.items()}

    @property
    def size(self) -> int:
        """Points in the space."""
        return math.prod(len(choices) for choices in self.choices.values())

    def first(self, candidates: Candidates) -> Params:
        """What learning found best: its best instructions, else its first worked examples.

        The baseline where it found neither.
        """
        ending, positions = INSTRUCTION, candidates.best
        if not positions:
            ending, positions = DEMOS, dict.fromkeys(candidates.predictors, 1)
        found = {name + ending: position for name, position in positions.items()}
        known = {name: position for name, position in found.items() if name in self.choices}
        return {**self.baseline, **known}

    def points(self, limit: int) -> Iterator[dict[str, int | str]]:
        """The first `limit` points."""
        for values in islice(product(*self.choices.values()), limit):
            yield dict(zip(self.choices, values, strict=True))


def make_space(
    recipe: Recipe, settings: ProgramSettings, sub_model: str, candidates: Candidates
) -> Space:
    """The space of a recipe over a program and the candidates for its prompts.

    Dimensions with one choice are left out.

    Raises:
        UsageError: there is only one point.
    """
    choices: dict[str, tuple[int | str, ...]] = {}
    for name in candidates.predictors:
        choices[name + INSTRUCTION] = tuple(range(len(candidates.instructions[name])))
        choices[name + DEMOS] = tuple(range(len(candidates.demos[name])))
    for name, values in recipe.space.items():
        own = sub_model if name == SUB_MODEL else settings[name]
        choices[name] = tuple(dict.fromkeys([own, *values]))
    space = Space({name: found for name, found in choices.items() if len(found) > 1})
    if space.size < 2:
        why = (
            "nothing was learned from the training samples"
            if recipe.learns
            else "its [space] has no value beside the baseline's"
        )
        raise UsageError(
            f"Recipe {recipe.name!r} has one point to search: {why}.",
            fix="a second value in [space], as max_iters = [10, 20]"
            + (", a lower 'threshold' or a larger 'train'" if recipe.learns else ""),
        )
    return space


def check_space(space: Mapping[str, Sequence[int | str]], settings: ProgramSettings) -> None:
    """Refuse dimensions that the program does not have.

    Raises:
        UsageError: an unknown setting, or a value that it cannot take.
    """
    for name, values in space.items():
        if not values:
            raise UsageError(f"Dimension {name!r} of [space] is empty.", fix=f"{name} = [1, 2]")
        if name == SUB_MODEL:
            if any(not isinstance(value, str) for value in values):
                raise UsageError(f"[space] {SUB_MODEL} lists names of models, got {values!r}.")
            continue
        if name not in settings.SPEC:
            known = [*settings.SPEC, SUB_MODEL]
            raise UsageError(f"Unknown dimension {name!r} in [space]. {nearest(name, known)}")
        for value in values:
            type(settings)().update({name: value})
