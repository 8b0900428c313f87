"""What a running program tells whoever watches: typed events, sent through a DSPy setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import dspy

Kind = Literal[
    "thought",
    "code",
    "stdout",
    "tool_call",
    "tool_result",
    "sub_query",
    "child_start",
    "child_end",
    "usage",
    "final",
    "error",
    "cancelled",
]

EVENTS_SETTING = "fleet_events"
"""DSPy setting with the sink: `with dspy.context(fleet_events=sink): program(...)`."""

DEPTH_SETTING = "fleet_depth"
"""DSPy setting with the depth of the running program in the recursion; 0 at the root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened while a program ran."""

    kind: Kind
    text: str = ""
    """What a person reads: the thought, the code, the printed text, the answer."""

    data: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON values that go with it: a tool's name and arguments, tokens and dollars."""

    depth: int = 0
    """0 for the root program, 1 for its children."""

    sequence: int = -1
    """Position in its stream, from 0; -1 before a stream has numbered it."""


Sink = Callable[[Event], None]
"""Takes events from any thread; may block to slow the program down, or raise to stop it."""


def emit(kind: Kind, text: str = "", **data: Any) -> None:
    """Tell the watcher of this context, if there is one."""
    sink: Sink | None = dspy.settings.get(EVENTS_SETTING)
    if sink is not None:
        sink(Event(kind=kind, text=text, data=data, depth=depth()))


def depth() -> int:
    """Depth of the running program in the recursion; 0 at the root."""
    return int(dspy.settings.get(DEPTH_SETTING) or 0)
