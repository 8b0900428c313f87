"""The recipe file: what is compiled, on which samples, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fleet_rlm.config import read_toml
from fleet_rlm.errors import UsageError, nearest


class Recipe(BaseModel):
    """One compilation, as `optimize/NAME.toml` describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    optimizer: Literal["bootstrap"]
    """How candidates are made: "bootstrap" keeps worked examples of the program's successes."""

    program: str = "rlm"
    suite: str
    seed: int = 0
    train: Annotated[int, Field(ge=1)]
    """Samples to learn from, in contexts of their own."""

    test: Annotated[int, Field(ge=2)]
    """Samples of the sealed test: read once, for baseline and winner, in contexts of their own."""

    demos: Annotated[int, Field(ge=1, le=16)] = 3
    """Worked examples in the compiled prompt, at most."""

    threshold: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Score from which a trajectory may become a worked example."""

    settings: dict[str, int] = Field(default_factory=dict)
    """Recursion settings of the program."""

    overrides: dict[str, Any] = Field(default_factory=dict)
    """Suite keys, as `--set` takes them."""


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
    try:
        return Recipe(**raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(f"{path}: {place}: {first['msg']}") from None
