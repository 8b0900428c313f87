"""From a bundle's registry name to a fresh program, and what a bundle of a program would lose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.predict.parameter import Parameter

from fleet_rlm.errors import ProgramError, UsageError, boundary, nearest
from fleet_rlm.program.agent.agent import RLMReActChatAgent
from fleet_rlm.program.fields import describe, make_signature
from fleet_rlm.program.manifest import FieldSpec, sha256
from fleet_rlm.program.recursion import ProgramSettings
from fleet_rlm.program.registry import PROGRAMS, AnswerQuery, Entry, parse_name
from fleet_rlm.program.state import ROOT, has_signature, parts, signatures

BUILDABLE: Mapping[str, Entry] = {
    **PROGRAMS,
    "predict": Entry(
        summary="one prompt: dspy.Predict",
        runs_code=False,
        make=lambda _guidance, _settings: dspy.Predict(AnswerQuery),
        over=lambda signature, _: dspy.Predict(signature),
    ),
    "chat": Entry(
        summary="the chat agent itself, which answers a user rather than a suite",
        runs_code=True,
        make=lambda _guidance, _settings: RLMReActChatAgent(),
        roles=("root", "sub"),
        task="user",
    ),
}
"""What a bundle can hold: the programs of the registry, a plain predictor, the chat agent."""

_SHOWN_ONLY = {"verbose"}
"""Attributes that change what is logged and nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cover:
    """A registry name that rebuilds a program."""

    name: str
    """ "rlm.qa@1": with the package's own fields. "rlm@1": with fields that the manifest lists."""

    entry: Entry
    tools: Mapping[str, dspy.Tool]


def rebuild(
    name: str,
    *,
    fields: Sequence[FieldSpec],
    tools: Sequence[dspy.Tool] = (),
) -> dspy.Module:
    """A fresh program by its name in a bundle; only this package's own programs are built.

    Args:
        name: "rlm.qa@1" or "rlm@1".
        fields: of the program's own signature, for names without a task.
        tools: given to programs that take tools.

    Raises:
        UsageError: an unknown name, another version, or fields that the program refuses.
    """
    named = parse_name(name, BUILDABLE)
    entry = named.entry
    if named.version is None or (named.task is None and entry.over is None):
        raise UsageError(f"{name!r} names no program that a bundle can hold.")
    if entry.over is None:
        return entry.make("", entry.settings_type())
    signature = AnswerQuery if named.task else make_signature(fields)
    try:
        with boundary(ProgramError, f"building {name}"):
            return entry.over(signature, tools)
    except ProgramError as error:
        raise UsageError(error.message) from error.__cause__


def find_cover(program: dspy.Module, name: str | None) -> Cover:
    """The registry name that rebuilds `program`, checked by doing it.

    Args:
        name: the only name to try; every name when None.

    Raises:
        UsageError: none does; says what a bundle would lose.
    """
    reason, near = "", set()
    for candidate in [name] if name else _names():
        named = parse_name(candidate, BUILDABLE)
        tools = dict(named.entry.tools_of(program))
        try:
            built = rebuild(
                candidate,
                fields=describe(program.signature).fields if has_signature(program) else (),
                tools=list(tools.values()),
            )
        except UsageError as error:
            lost: str | None = error.message
        else:
            lost = difference(program, built)
            if type(built) is type(program):
                near.add(named.program)
        if lost is None:
            return Cover(name=candidate, entry=named.entry, tools=tools)
        if name or named.program in near:
            reason = lost
    kind = f"{type(program).__module__}.{type(program).__qualname__}"
    reason = reason or f"its class {kind} is not that of a program here ({', '.join(_names())})"
    raise UsageError(f"This program cannot be rebuilt from a bundle: {reason.rstrip('.')}.")


def difference(program: dspy.Module, built: dspy.Module) -> str | None:
    """The first thing about `program` that a bundle would lose; None when there is none."""
    mine, theirs = parts(program), parts(built)
    for path, part in mine.items():
        if path not in theirs:
            return f"its part {path!r} is unknown there"
        if type(part) is not type(theirs[path]):
            kinds = [f"{type(p).__module__}.{type(p).__qualname__}" for p in (part, theirs[path])]
            return f"{path!r} is a {kinds[0]}, not a {kinds[1]}"
    if missing := sorted(theirs.keys() - mine.keys()):
        return f"its part {missing[0]!r} is missing"
    fields = signatures(built)
    for path, spec in signatures(program).items():
        if spec != fields[path]:
            shown = [
                ", ".join(f"{f.name}: {f.type}" for f in s.fields) for s in (spec, fields[path])
            ]
            return f"{path!r} has the fields ({shown[0]}), not ({shown[1]})"
    losses = (_loss(path, part, theirs[path]) for path, part in mine.items())
    return next(filter(None, losses), None)


def as_tool(given: Any) -> dspy.Tool:
    """A tool from what an application hands over.

    Raises:
        UsageError: it is no function.
    """
    if isinstance(given, dspy.Tool):
        return given
    if not callable(given):
        raise UsageError(f"A tool must be a function or a dspy.Tool, not {type(given).__name__}.")
    return dspy.Tool(given)


def tool_digest(tool: dspy.Tool) -> str:
    """sha256 over a tool's name and its arguments' schemas; its description may be reworded."""
    return sha256([tool.name, tool.args or {}])


def check_tools(required: Mapping[str, str], given: Sequence[dspy.Tool]) -> None:
    """Compare the tools that a bundle needs with those that it is given.

    Raises:
        UsageError: one is missing, unknown, or takes other arguments than it was learned with.
    """
    found = {tool.name: tool for tool in given}
    if missing := sorted(required.keys() - found.keys()):
        names = ", ".join(sorted(required))
        raise UsageError(f"Tool {missing[0]!r} is missing.", fix=f"load(path, tools=[{names}])")
    for name, tool in found.items():
        if name not in required:
            raise UsageError(f"Tool {name!r} is not one of the bundle. {nearest(name, required)}")
        if tool_digest(tool) != required[name]:
            raise UsageError(f"Tool {name!r} takes other arguments than when it was saved.")


def _names() -> list[str]:
    own = [f"{name}.{entry.task}@{entry.version}" for name, entry in BUILDABLE.items()]
    return own + [f"{name}@{e.version}" for name, e in BUILDABLE.items() if e.over is not None]


def _loss(path: str, part: Any, built: Any) -> str | None:
    if isinstance(part, dspy.Predict):
        if part.config != built.config:
            return f"predictor {path!r} has call settings of its own: set them on the model"
        if part.fields != built.fields:
            return f"predictor {path!r} has decision settings of its own"
        return None
    if isinstance(part, Parameter) and not isinstance(part, ProgramSettings):
        return f"{path!r} is a {type(part).__name__}, a parameter that bundles do not store"
    for name, value in _plain_attributes(built):
        if getattr(part, name, None) != value:
            where = name if path == ROOT else f"{path}.{name}"
            return f"its attribute {where!r} is not what the package sets, and is not stored"
    return None


def _plain_attributes(part: Any) -> Iterator[tuple[str, Any]]:
    for name, value in vars(part).items():
        plain = value is None or isinstance(value, bool | int | float | str)
        if plain and not name.startswith("_") and name not in _SHOWN_ONLY:
            yield name, value
