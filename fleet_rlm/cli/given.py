"""What several commands are given alike: a suite with changes, `--set` keys of several rooms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleet_rlm.errors import UsageError, nearest
from fleet_rlm.project import find_content
from fleet_rlm.suites.corpus import read_corpus
from fleet_rlm.suites.suite import Suite, load_suite


def open_suite(project: Path, name: str, corpus: str | None, overrides: Mapping[str, Any]) -> Suite:
    """A suite by name or path, with the command line's changes.

    Raises:
        UsageError: unknown suite or key, malformed file, unreadable corpus.
    """
    suite = load_suite(find_content("evals", name, project).path).override(dict(overrides))
    return suite.with_corpus(read_corpus(corpus)) if corpus is not None else suite


def sort_overrides(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Split `--set` keys by what they are about; what has no prefix of ours is the suite's."""
    rooms = ("settings", "limits", "program")
    sorted_out: dict[str, dict[str, Any]] = {room: {} for room in (*rooms, "suite")}
    for key, value in given.items():
        room, dot, rest = key.partition(".")
        if dot and room in rooms:
            sorted_out[room][rest] = value
        else:
            sorted_out["suite"][key] = value
    for key in sorted_out["program"]:
        if key != "guidance":
            raise UsageError(f"Unknown key 'program.{key}'. {nearest(key, ['guidance'])}")
    return sorted_out
