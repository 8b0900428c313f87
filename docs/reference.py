"""Fills the reference pages while the site is built: commands from code, names from __all__."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import typer

import fleet_rlm

COMMANDS = re.compile(r"^<!-- commands of (fleet-\w+) -->$", re.M)
NAMES = re.compile(r"^<!-- public names -->$", re.M)
APPS = {"fleet-eval": "eval", "fleet-optimize": "optimize", "fleet-rlm": "fleet"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for every page."""
    markdown = COMMANDS.sub(lambda found: commands(found[1]), markdown)
    return NAMES.sub(lambda _: names(), markdown)


def commands(program: str) -> str:
    """The help of each command of a program, a section each."""
    app = import_module(f"fleet_rlm.cli.{APPS[program]}").app
    group: Any = typer.main.get_command(app)
    parts = []
    for name, command in group.commands.items():
        context = command.context_class(command, info_name=f"{program} {name}")
        parts.append(f"## {program} {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def names() -> str:
    """A directive of mkdocstrings for each public name of the package."""
    homes = {name: home for name, home in fleet_rlm._HOME.items() if name != "errors"}
    public = [f"{homes[name]}.{name}" for name in sorted(homes, key=str.lower)]
    return "\n\n".join(f"::: {path}" for path in [*public, "fleet_rlm.errors"])
