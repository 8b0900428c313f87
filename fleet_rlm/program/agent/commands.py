"""Named commands of a chat: the same tools, called by a user instead of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fleet_rlm.program.agent.roots import Refused


@dataclass(frozen=True, slots=True)
class Command:
    """A command and the tool behind it."""

    tool: str
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


_CHUNK = ("size", "overlap", "pattern")
_LONG = ("alias", "include_trajectory")

COMMAND_DISPATCH: Mapping[str, Command] = {
    "load_document": Command("load_document", ("path",), ("alias",)),
    "set_active_document": Command("set_active_document", ("alias",)),
    "list_documents": Command("list_documents"),
    "list_files": Command("list_files", (), ("path", "pattern")),
    "read_file_slice": Command("read_file_slice", ("path",), ("start_line", "num_lines")),
    "find_files": Command("find_files", ("pattern",), ("path", "include")),
    "chunk_host": Command("chunk_host", ("strategy",), ("alias", *_CHUNK)),
    "chunk_sandbox": Command(
        "chunk_sandbox", ("strategy",), ("variable_name", "buffer_name", *_CHUNK)
    ),
    "parallel_semantic_map": Command(
        "parallel_semantic_map", ("query",), ("chunk_strategy", "max_chunks", "buffer_name")
    ),
    "analyze_document": Command("analyze_long_document", ("query",), _LONG),
    "summarize_document": Command("summarize_long_document", ("focus",), _LONG),
    "extract_logs": Command("extract_from_logs", ("query",), _LONG),
    "read_buffer": Command("read_buffer", ("name",)),
    "clear_buffer": Command("clear_buffer", (), ("name",)),
    "save_buffer": Command("save_buffer_to_volume", ("name", "path")),
    "load_volume": Command("load_text_from_volume", ("path",), ("alias",)),
    "reset": Command("reset", (), ("clear_sandbox_buffers",)),
}
"""Command -> tool; `reset` is the agent's own."""


def parse_command(command: str, args: Mapping[str, Any]) -> tuple[str, dict[str, Any], list[str]]:
    """The tool of a command, its arguments, and the names of those that it does not take.

    Raises:
        Refused: no such command, or a required argument is missing.
    """
    found = COMMAND_DISPATCH.get(command)
    if found is None:
        raise Refused(f"Unknown command: {command}. Available: {', '.join(COMMAND_DISPATCH)}")
    missing = [name for name in found.required if args.get(name) is None]
    if missing:
        raise Refused(f"Missing required args for {command}: {', '.join(missing)}")
    known = {*found.required, *found.optional}
    given = {name: value for name, value in args.items() if name in known and value is not None}
    return found.tool, given, sorted(set(args) - known)
