"""Where content is found: an explicit path, then the project's folder, then what is built in."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fleet_rlm.errors import UsageError, nearest

Kind = Literal["evals", "datasets", "optimize", "experiments"]
Origin = Literal["path", "project", "built in"]

PROJECT_FILE = "fleet.toml"
_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """One TOML file of a project: a suite, a dataset manifest, a recipe or an experiment."""

    name: str
    path: Path
    origin: Origin


def project_dir(start: Path) -> Path:
    """The nearest folder at or above `start` with a fleet.toml or an evals folder, else `start`."""
    for folder in (start, *start.parents):
        if (folder / PROJECT_FILE).is_file() or (folder / "evals").is_dir():
            return folder
    return start


def relative(path: Path) -> Path:
    """`path` as seen from here, where it lies below."""
    try:
        return path.resolve().relative_to(Path.cwd())
    except ValueError:
        return path


def list_content(kind: Kind, project: Path) -> list[Content]:
    """Everything of `kind` that a name can mean, by name; a project's file hides a built-in one."""
    found: dict[str, Content] = {}
    for origin, folder in _roots(kind, project):
        for path in sorted(folder.glob("*/experiment.toml" if kind == "experiments" else "*.toml")):
            name = _name(path)
            found.setdefault(name, Content(name=name, path=path, origin=origin))
    return sorted(found.values(), key=lambda content: content.name)


def find_content(kind: Kind, name: str, project: Path) -> Content:
    """The content that `name` means.

    Args:
        kind: which folder to look in.
        name: a path to a TOML file, or a bare name.
        project: the project's folder.

    Raises:
        UsageError: nothing by that name or path.
    """
    listing = {
        "evals": "fleet-eval list",
        "optimize": "fleet-optimize list",
        "experiments": "fleet-eval experiment list",
    }.get(kind)
    if name.endswith(".toml") or "/" in name:
        path = Path(name).expanduser()
        if not path.is_file():
            raise UsageError(f"No file {name!r}.", fix=listing)
        return Content(name=_name(path), path=path, origin="path")
    known = {content.name: content for content in list_content(kind, project)}
    if name not in known:
        thing = {
            "evals": "suite",
            "datasets": "dataset",
            "optimize": "recipe",
            "experiments": "experiment",
        }[kind]
        hint = nearest(name, known)
        raise UsageError(f"No {thing} {name!r} in ./{kind} or built in. {hint}", fix=listing)
    return known[name]


def _name(path: Path) -> str:
    """An experiment has a folder for itself and its results; anything else is a file."""
    return path.parent.name if path.name == "experiment.toml" else path.stem


def _roots(kind: Kind, project: Path) -> Iterator[tuple[Origin, Path]]:
    yield "project", project / kind
    # An editable install keeps a stale copy of the wheel's folder, so the checkout comes first.
    checkout = _PACKAGE.parent
    if _is_checkout(checkout):
        yield "built in", checkout / kind
    yield "built in", _PACKAGE / "builtin" / kind


def _is_checkout(folder: Path) -> bool:
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return False
    return bool(project.get("project", {}).get("name") == "fleet-rlm")
