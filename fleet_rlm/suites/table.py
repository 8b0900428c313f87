"""The tables of a suite file as TOML holds them, checked in shape."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fleet_rlm.errors import UsageError, nearest
from fleet_rlm.suites.generators import GENERATORS
from fleet_rlm.suites.generators.base import Params

Headline = Literal["robust", "official"]
_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class Table(BaseModel):
    """Base of all tables: no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", strict=True)


class SuiteTable(Table):
    """`[suite]`."""

    name: _Name
    version: int = 1
    description: str = ""
    seed: int = 0


def _as_list(value: object) -> object:
    return [value] if type(value) is int else value


class TaskTable(Table):
    """One of `[[tasks]]`; the fields mean what those of `suite.Task` mean."""

    name: _Name
    generator: str
    lengths: Annotated[list[int], BeforeValidator(_as_list), Field(min_length=1)]
    windows: int = Field(default=1, ge=1, le=100_000)
    questions: int = Field(default=1, ge=1)
    headline: Headline = "robust"
    params: dict[str, Any] = {}


class SuiteFile(Table):
    """The whole file."""

    suite: SuiteTable
    tasks: list[TaskTable] = Field(min_length=1)


def check_file(raw: dict[str, Any], origin: str) -> SuiteFile:
    """`raw` as tables.

    Raises:
        UsageError: naming `origin`, the key and, for an unknown one, the nearest valid name.
    """
    try:
        return SuiteFile.model_validate(raw)
    except ValidationError as error:
        raise _explain(error, origin, raw, ()) from error


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
        raise _explain(error, origin, raw, ("tasks", index, "params")) from error


def _explain(
    error: ValidationError, origin: str, raw: dict[str, Any], prefix: tuple[str | int, ...]
) -> UsageError:
    """The first thing wrong, a misspelt key before the key that it leaves missing."""
    problems = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    problem = problems[0]
    place = (*prefix, *problem["loc"])
    where = f"{origin}: {_dotted(place, raw)}"
    if problem["type"] == "extra_forbidden":
        return UsageError(f"{where}: unknown key. {nearest(str(place[-1]), _keys(place, raw))}")
    if problem["type"] == "missing":
        return UsageError(f"{where}: is missing")
    message = re.sub(r"^\w+ should", "should", problem["msg"])
    return UsageError(f"{where}: {message}, found {problem['input']!r}")


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
        case ("tasks", int(), _):
            return list(TaskTable.model_fields)
        case ("tasks", int(index), "params", _):
            return list(GENERATORS[raw["tasks"][index]["generator"]].params.model_fields)
        case _:
            return list(SuiteFile.model_fields)
