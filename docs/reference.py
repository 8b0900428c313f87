"""Fills pages while the site is built: commands from code, names from __all__, notebooks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

import fleet_rlm

COMMANDS = re.compile(r"^<!-- commands of (fleet-\w+) -->$", re.M)
NOTEBOOK = re.compile(r"^<!-- notebook (\S+) -->$", re.M)
NAMES = re.compile(r"^<!-- public names -->$", re.M)
APPS = {"fleet-eval": "eval", "fleet-optimize": "optimize", "fleet-rlm": "fleet"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for every page."""
    markdown = COMMANDS.sub(lambda found: commands(found[1]), markdown)
    markdown = NOTEBOOK.sub(lambda found: notebook(Path(__file__).parent / found[1]), markdown)
    return NAMES.sub(lambda _: names(), markdown)


def notebook(path: Path) -> str:
    """The cells of an executed notebook and what they printed."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(part for cell in cells for part in _parts(cell))


def _parts(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            image = "".join(data["image/png"]).replace("\n", "")
            yield f"![plot of the cell above](data:image/png;base64,{image})"
        else:
            text = "".join(output.get("text", data.get("text/plain", "")))
            yield f"```text\n{text.rstrip()}\n```"


def commands(program: str) -> str:
    """The help of each command of a program, a section each."""
    app = import_module(f"fleet_rlm.cli.{APPS[program]}").app
    return "\n".join(_sections(typer.main.get_command(app), program))


def _sections(group: Any, path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _sections(command, f"{path} {name}")
            continue
        context = command.context_class(command, info_name=f"{path} {name}")
        yield f"## {path} {name}\n\n```text\n{command.get_help(context)}\n```\n"


def names() -> str:
    """A directive of mkdocstrings for each public name of the package."""
    homes = {name: home for name, home in fleet_rlm._HOME.items() if name != "errors"}
    public = [f"{homes[name]}.{name}" for name in sorted(homes, key=str.lower)]
    return "\n\n".join(f"::: {path}" for path in [*public, "fleet_rlm.errors"])
