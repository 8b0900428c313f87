"""What `--program` can name: a program of the registry, a bundle, a file of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dspy

from fleet_rlm.errors import UsageError, nearest
from fleet_rlm.program.bundle import load
from fleet_rlm.program.manifest import MANIFEST
from fleet_rlm.program.own import is_own, load_factory
from fleet_rlm.program.recursion import ProgramSettings, RecursionSettings
from fleet_rlm.program.registry import Entry, parse_name


def find_program(name: str) -> Entry:
    """The entry of a program.

    Args:
        name: "rlm", with its task and version or without ("rlm.qa@1"); the folder of a bundle; or a
            user's own "path/to/file.py:make_program", whose file is loaded.

    Raises:
        UsageError: no such program, another version, or a file that gives no program.
    """
    if is_own(name):
        return _own_entry(name)
    if "/" in name or (Path(name or "-") / MANIFEST).is_file():
        return find_bundle(name)
    return parse_name(name).entry


def find_bundle(name: str) -> Entry:
    """The entry of a bundle, by whatever `load` takes.

    Raises:
        UsageError: it cannot be loaded.
    """
    loaded = load(name)

    def make(guidance: str, _: ProgramSettings) -> dspy.Module:
        if guidance:
            raise UsageError(f"{name} has instructions: program.guidance is for names.")
        return loaded.deepcopy()

    return Entry(
        summary=f"bundle {name}",
        runs_code=any(isinstance(part, dspy.RLM) for _, part in loaded.named_sub_modules()),
        make=make,
    )


def _own_entry(name: str) -> Entry:
    factory = load_factory(name)

    def make(guidance: str, settings: ProgramSettings) -> dspy.Module:
        if guidance:
            raise UsageError(f"{name} brings its own instructions: program.guidance is for names.")
        return factory.make(settings.part(RecursionSettings))

    return Entry(
        summary=f"your own: {name}",
        runs_code=True,  # nothing tells before it runs
        make=make,
        settings_type=RecursionSettings if factory.takes_settings else ProgramSettings,
        source_sha256=factory.source_sha256,
    )


def parse_settings(program: str, values: Mapping[str, Any]) -> ProgramSettings:
    """Settings for `program`.

    Raises:
        UsageError: one that the program does not have, or a value out of range.
    """
    kind = find_program(program).settings_type
    for name in values:
        if name not in kind.SPEC:
            hint = nearest(name, kind.SPEC)
            raise UsageError(f"Program {program!r} has no setting {name!r}. {hint}")
    return kind(**values)
