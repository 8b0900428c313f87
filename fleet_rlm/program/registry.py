"""The programs that `--program` can name, and what each needs to run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import dspy

from fleet_rlm.errors import UsageError, nearest
from fleet_rlm.program.agent.program import AgentProgram
from fleet_rlm.program.baselines import BASELINES
from fleet_rlm.program.reader import TextProgram
from fleet_rlm.program.recursion import ProgramSettings, RecursionSettings
from fleet_rlm.program.rlm import RLM


class AnswerQuery(dspy.Signature):
    """Answer the query from the context."""

    context: str = dspy.InputField(desc="the text to answer from")
    query: str = dspy.InputField(desc="the question, with the form that the answer must have")
    answer: str = dspy.OutputField(desc="the answer alone, in the form that the query asks for")


NAME = re.compile(r"(?P<program>[a-z][a-z0-9_]*)(\.(?P<task>[a-z]+))?(@(?P<version>[0-9]{1,4}))?")
"""A program's name: "rlm", "rlm.qa", "rlm.qa@1"; in bundles also "rlm@1", over other fields."""


def _no_tools(_: Any) -> Mapping[str, dspy.Tool]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One program by name."""

    summary: str
    runs_code: bool
    """Whether it needs a sandbox."""

    make: Callable[[str, ProgramSettings], dspy.Module]
    """Guidance and settings -> the program."""

    settings_type: type[ProgramSettings] = ProgramSettings
    """What may be set."""

    roles: tuple[str, ...] = ("root",)
    """Models that it calls."""

    task: str = "qa"
    """What its own fields are about; the second part of its name in a bundle."""

    version: int = 1
    """The last part of its name in a bundle: raised when older bundles cannot be rebuilt."""

    over: Callable[[type[dspy.Signature], Sequence[dspy.Tool]], dspy.Module] | None = None
    """The program over other fields and with tools; None when it has its own fields only."""

    tools_of: Callable[[Any], Mapping[str, dspy.Tool]] = _no_tools
    """The tools that the program was given, by name."""

    source_sha256: str | None = None
    """Digest of the file that it was loaded from; None for programs of this package."""


def _make_rlm(guidance: str, settings: ProgramSettings) -> dspy.Module:
    return RLM(AnswerQuery, guidance=guidance, recursion=settings.part(RecursionSettings))


def _text_program(kind: type[TextProgram]) -> Entry:
    return Entry(
        summary=kind.summary,
        runs_code=kind.runs_code,
        make=lambda guidance, settings: kind(AnswerQuery, guidance=guidance, settings=settings),
        settings_type=kind.settings_type,
        roles=kind.roles,
        over=lambda signature, _: kind(signature),
    )


PROGRAMS: Mapping[str, Entry] = {
    "rlm": Entry(
        summary="recursive language model: writes code over the context, asks sub-models",
        runs_code=True,
        make=_make_rlm,
        settings_type=RecursionSettings,
        roles=("root", "sub"),
        over=lambda signature, tools: RLM(signature, tools=list(tools)),
        tools_of=lambda program: getattr(program, "_user_tools", {}),
    ),
    **{name: _text_program(kind) for name, kind in BASELINES.items()},
    "agent": _text_program(AgentProgram),
}


class Named(NamedTuple):
    """What a name of this package's programs says."""

    program: str
    task: str | None
    version: str | None
    entry: Entry


def parse_name(name: str, known: Mapping[str, Entry] = PROGRAMS) -> Named:
    """What a name means, of the programs in `known` only.

    Raises:
        UsageError: no such program, or not in this version.
    """
    found = NAME.fullmatch(name)
    entry = known.get(found["program"]) if found else None
    if found is None or entry is None:
        shown = name if len(name) <= 100 else f"{name[:100]}..."
        raise UsageError(f"No program {shown!r}. {nearest(name, known)}")
    named = Named(found["program"], found["task"], found["version"], entry)
    if named.task not in (None, entry.task) or named.version not in (None, str(entry.version)):
        full = f"{named.program}.{entry.task}@{entry.version}"
        raise UsageError(f"No program {name!r}: this version of fleet-rlm has {full}.")
    return named
