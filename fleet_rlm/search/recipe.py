"""The recipe file: what is compiled, on which samples, over which space, and for how much."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fleet_rlm.config import read_toml
from fleet_rlm.errors import UsageError, nearest

Optimizer = Literal["bootstrap", "mipro", "gepa", "settings-only", "joint"]
Source = Literal["demos", "proposals", "reflections"]

SOURCES: dict[Optimizer, tuple[Source, ...]] = {
    "bootstrap": ("demos",),
    "mipro": ("demos", "proposals"),
    "gepa": ("reflections",),
    "settings-only": (),
    "joint": ("demos", "proposals", "reflections"),
}
"""Where the candidates for prompts come from."""

Choice = Annotated[int, Field(strict=True)] | Annotated[str, Field(strict=True)]

SUB_MODEL = "sub_model"
"""The dimension of a space that is a model, not a setting."""

POLICY = re.compile(r"max-score|knee|cheapest-within=(0(\.\d+)?|1)")


class Recipe(BaseModel):
    """One compilation, as `optimize/NAME.toml` describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    optimizer: Optimizer = "joint"
    """Where candidates for prompts come from, see `SOURCES`; the space is searched with each."""

    program: str = "rlm"
    suite: str
    seed: int = 0
    train: Annotated[int, Field(ge=0)] = 16
    """Samples to learn from, in contexts of their own."""

    validation: Annotated[int, Field(ge=2)] = 24
    """Samples that trials are compared on, in contexts of their own."""

    test: Annotated[int, Field(ge=2)]
    """Samples of the sealed test: read once, for baseline and winner, in contexts of their own."""

    trials: Annotated[int, Field(ge=2, le=10_000)] = 24
    """Candidates to try, the baseline among them."""

    batch: Annotated[int, Field(ge=2)] = 8
    """Validation samples of a trial's first rung; each further rung has twice as many."""

    epochs: Annotated[int, Field(ge=1, le=100)] = 1
    """Repetitions of each sample, where scores are noisy."""

    policy: str = "cheapest-within=0.02"
    """Who wins of those that no other beats in score, dollars and latency at once."""

    demos: Annotated[int, Field(ge=1, le=16)] = 3
    """Worked examples in the compiled prompt, at most."""

    proposals: Annotated[int, Field(ge=1, le=100)] = 5
    """Instructions that MIPROv2's proposer writes for each predictor."""

    reflections: Annotated[int, Field(ge=1, le=100)] = 6
    """Rounds in which GEPA's proposer mends an instruction by feedback; each is a training pass."""

    threshold: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Score from which a trajectory may become a worked example."""

    max_usd: Annotated[float, Field(gt=0)] | None = None
    """Cap on the job, in dollars."""

    max_seconds: Annotated[float, Field(gt=0)] | None = None
    """Cap on the job's running time, in seconds."""

    metric: str = ""
    """FILE.py:FUNCTION that scores by (answer, gold, query); the suite's own rule when empty."""

    max_sample_usd: Annotated[float, Field(gt=0)] | None = None
    """What a sample may cost with the winner, in dollars; trials above cannot win."""

    settings: dict[str, int] = Field(default_factory=dict)
    """Settings of the baseline."""

    space: dict[str, list[Choice]] = Field(default_factory=dict)
    """Setting, or `sub_model`, to the values that are tried beside the baseline's."""

    models: dict[Literal["root", "sub", "proposer", "judge"], str] = Field(default_factory=dict)
    """Role to model; flags go before."""

    overrides: dict[str, Any] = Field(default_factory=dict)
    """Suite keys, as `--set` takes them."""

    @field_validator("policy")
    @classmethod
    def _known_policy(cls, policy: str) -> str:
        if not POLICY.fullmatch(policy):
            raise ValueError("must be max-score, knee or cheapest-within=0.02")
        return policy

    @property
    def learns(self) -> bool:
        """Whether training samples are run."""
        return bool(SOURCES[self.optimizer])

    def flags(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Settings for `config.resolve`: the recipe's models, and the flags that were given.

        Args:
            given: flags by name; None where one was not given.
        """
        names = {"root": "model", "sub": "sub_model"}
        own = {names[role]: name for role, name in self.models.items() if role in names}
        return own | {name: value for name, value in given.items() if value is not None}

    def uses(self, source: Source) -> bool:
        """Whether candidates of this kind are made."""
        return source in SOURCES[self.optimizer]


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        UsageError: unreadable, malformed, a misspelt or missing key, a value out of range.
    """
    try:
        raw = read_toml(path)
    except FileNotFoundError:
        raise UsageError(f"No recipe at {path}.", fix="fleet-optimize list") from None
    for key in raw:
        if key not in Recipe.model_fields:
            raise UsageError(f"{path}: unknown key {key!r}. {nearest(key, Recipe.model_fields)}")
    return make_recipe(raw, str(path))


def make_recipe(values: dict[str, Any], where: str) -> Recipe:
    """A recipe of these values.

    Raises:
        UsageError: the first value that does not fit, and where.
    """
    try:
        recipe = Recipe(**values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(f"{where}: {place}: {first['msg']}") from None
    if recipe.learns and recipe.train < 1:
        raise UsageError(
            f"{where}: train = 0 leaves {recipe.optimizer!r} nothing to learn from.",
            fix="train = 16, or optimizer = 'settings-only'",
        )
    return recipe
