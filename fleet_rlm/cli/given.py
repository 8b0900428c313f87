"""What several commands are given alike: a suite with changes, `--set` keys of several rooms."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fleet_rlm.config import resolve
from fleet_rlm.errors import UsageError, nearest
from fleet_rlm.project import find_content, project_dir
from fleet_rlm.suites.corpus import read_corpus
from fleet_rlm.suites.suite import Suite, load_suite
from fleet_rlm.tracking.lookup import find_run
from fleet_rlm.tracking.store import resolve_uri


def open_suite(project: Path, name: str, corpus: str | None, overrides: Mapping[str, Any]) -> Suite:
    """A suite by name or path, with the command line's changes.

    Raises:
        UsageError: unknown suite or key, malformed file, unreadable corpus.
    """
    suite = load_suite(find_content("evals", name, project).path).override(dict(overrides))
    return suite.with_corpus(read_corpus(corpus)) if corpus is not None else suite


def find_runs(given: Sequence[Path]) -> list[Path]:
    """The folders of runs that are given as folders or as ids of their MLflow runs.

    Raises:
        UsageError: no run has this id, or the store does not answer.
    """
    project = project_dir(Path.cwd())
    config = resolve({}, os.environ, project).config
    uri = resolve_uri(config.mlflow_tracking_uri, project, os.environ)
    runs_dir = project / config.runs_dir
    return [find_run(run, runs_dir=runs_dir, tracking_uri=uri) for run in given]


def sort_overrides(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Split `--set` keys by what they are about; what has no prefix of ours is the suite's."""
    rooms = ("settings", "limits", "program", "modal")
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
