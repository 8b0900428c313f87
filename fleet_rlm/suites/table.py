"""The tables of a suite file as TOML holds them, checked in shape."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
)

from fleet_rlm.errors import UsageError, nearest
from fleet_rlm.suites.generators import GENERATORS
from fleet_rlm.suites.generators.base import Params

Headline = Literal["robust", "official"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class Table(BaseModel):
    """Base of all tables: no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", strict=True)


class SuiteTable(Table):
    """`[suite]`."""

    name: Name
    version: int = 1
    description: str = ""
    seed: int = 0


def _as_list(value: object) -> object:
    return [value] if type(value) is int else value


class TaskTable(Table):
    """One of `[[tasks]]`; the fields mean what those of `suite.Task` mean."""

    name: Name
    generator: str
    lengths: Annotated[list[int], BeforeValidator(_as_list), Field(min_length=1)]
    windows: int = Field(default=1, ge=1, le=100_000)
    questions: int = Field(default=1, ge=1)
    headline: Headline = "robust"
    params: dict[str, Any] = {}


class FetchedTable(Table):
    """One of `[[tasks]]` on a dataset; the fields mean what those of `fetched.FetchedTask` mean."""

    name: Name
    dataset: str
    where: dict[str, str | int | bool | list[str] | list[int]] = Field(default_factory=dict)
    lengths: Annotated[list[int], BeforeValidator(_as_list)] = Field(default_factory=list)
    samples: int | None = Field(default=None, ge=1)
    rule: str | None = None
    headline: Headline | None = None


class CardTable(Table):
    """`[card]`: what a reviewer must know before quoting a score of the suite."""

    measures: str
    """What a high score shows."""

    licence: str
    size: str = ""
    source: str = ""
    defects: list[str] = Field(default_factory=list)
    """Known defects of the original, and what is done about each."""

    floors: str = ""
    """What knowing nothing is worth."""

    arms: list[str] = Field(default_factory=list)
    """Programs that a comparison on it needs."""

    reference: dict[str, dict[str, float | str]] = Field(default_factory=dict)
    """Published figures: row -> task -> score. From others' runs: not comparable unless equal."""


def _table_of(raw: object) -> str:
    has_dataset = isinstance(raw, FetchedTable) or (isinstance(raw, dict) and "dataset" in raw)
    return _FETCHED if has_dataset else _GENERATED


_FETCHED, _GENERATED = "(fetched)", "(generated)"  # pydantic puts them into the places of errors
AnyTask = Annotated[
    Annotated[TaskTable, Tag(_GENERATED)] | Annotated[FetchedTable, Tag(_FETCHED)],
    Discriminator(_table_of),
]


class SuiteFile(Table):
    """The whole file."""

    suite: SuiteTable
    tasks: list[AnyTask] = Field(min_length=1)
    card: CardTable | None = None


def check_file(raw: dict[str, Any], origin: str) -> SuiteFile:
    """`raw` as tables.

    Raises:
        UsageError: naming `origin`, the key and, for an unknown one, the nearest valid name.
    """
    try:
        return SuiteFile.model_validate(raw)
    except ValidationError as error:
        raise explain(error, origin, raw, ()) from error


def check_params(raw: dict[str, Any], index: int, origin: str) -> Params:
    """The parameters of task number `index` as its generator reads them.

    Raises:
        UsageError: as `check_file`; an unknown generator.
    """
    table = raw["tasks"][index]
    generator = GENERATORS.get(table["generator"])
    if generator is None:
        where = _dotted(("tasks", index, "generator"), raw)
        hint = nearest(table["generator"], GENERATORS)
        raise UsageError(f"{origin}: {where}: no generator {table['generator']!r}. {hint}")
    try:
        return generator.params.model_validate(table.get("params", {}))
    except ValidationError as error:
        raise explain(error, origin, raw, ("tasks", index, "params")) from error


def explain(
    error: ValidationError,
    origin: str,
    raw: dict[str, Any],
    prefix: tuple[str | int, ...] = (),
    keys: Callable[[tuple[str | int, ...], dict[str, Any]], list[str]] | None = None,
) -> UsageError:
    """The first thing wrong, a misspelt key before the key that it leaves missing.

    Args:
        error: of the check.
        origin: the file's name.
        raw: what was checked.
        prefix: where in `raw` that was.
        keys: the keys that are valid beside the last one of a place; those of suites when absent.
    """
    problems = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    problem = problems[0]
    place = (*prefix, *(part for part in problem["loc"] if part not in (_FETCHED, _GENERATED)))
    where = f"{origin}: {_dotted(place, raw)}"
    if problem["type"] == "extra_forbidden":
        known = (keys or _keys)(place, raw)
        return UsageError(
            f"{where}: unknown key. {nearest(str(place[-1]), known)}", fix="correct the key there"
        )
    if problem["type"] == "missing":
        return UsageError(f"{where}: is missing", fix="add it there")
    message = re.sub(r"^\w+ should", "should", problem["msg"])
    return UsageError(
        f"{where}: {message}, found {problem['input']!r}", fix="correct the value there"
    )


def _dotted(place: tuple[str | int, ...], raw: dict[str, Any]) -> str:
    parts = [str(part) for part in place]
    if len(place) > 1 and place[0] == "tasks" and isinstance(place[1], int):
        table = raw["tasks"][place[1]]
        name = table.get("name") if isinstance(table, dict) else None
        parts[:2] = [f"tasks.{name}" if isinstance(name, str) else f"tasks[{place[1]}]"]
    return ".".join(parts)


def _keys(place: tuple[str | int, ...], raw: dict[str, Any]) -> list[str]:
    """The keys that are valid beside the last one of `place`."""
    match place:
        case ("suite", _):
            return list(SuiteTable.model_fields)
        case ("tasks", int(index), _):
            is_fetched = _table_of(raw["tasks"][index]) == _FETCHED
            return list((FetchedTable if is_fetched else TaskTable).model_fields)
        case ("card", _):
            return list(CardTable.model_fields)
        case ("tasks", int(index), "params", _):
            return list(GENERATORS[raw["tasks"][index]["generator"]].params.model_fields)
        case _:
            return list(SuiteFile.model_fields)
