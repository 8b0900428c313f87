"""What a turn tells: to its own stream, and to whoever watches the program that it is part of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dspy

from fleet_rlm.errors import one_line
from fleet_rlm.program.agent.events import AgentEventKind, StreamEvent
from fleet_rlm.program.events import EVENTS_SETTING, Event, Kind, Sink, depth

if TYPE_CHECKING:
    from fleet_rlm.program.agent.agent import RLMReActChatAgent

STATUS_CHARS = 200

CODE_CHARS = 2_000
"""Code is told in its own lines too, the beginning of it."""

_WATCHED: Mapping[AgentEventKind, Kind] = {
    "reasoning_step": "thought",
    "tool_call": "tool_call",
    "tool_result": "tool_result",
}
"""What a watcher is told too, and as what."""

_SHOWN_INSIDE: frozenset[Kind] = frozenset(
    {"thought", "code", "sub_query", "child_start", "child_end"}
)
"""What a program inside a tool tells that becomes a `status`."""


class Voice:
    """Turns what happens into events, clean of secrets. Safe to use from any thread.

    Args:
        agent: cleans and logs.
        check: raises when the turn is cancelled.
        trace: whether thoughts are published.
    """

    def __init__(self, agent: RLMReActChatAgent, check: Callable[[], None], *, trace: bool) -> None:
        self.publish: Callable[[StreamEvent], None] | None = None
        """Takes the events of the turn's stream, if it has one."""
        self.told = ""
        """What was told of the answer so far."""
        self._agent = agent
        self._check = check
        self._trace = trace
        self._watcher: Sink | None = dspy.settings.get(EVENTS_SETTING)

    @property
    def is_heard(self) -> bool:
        """Whether anybody listens."""
        return self.publish is not None or self._watcher is not None

    def tell(self, kind: AgentEventKind, text: str, **payload: Any) -> None:
        """Tell of one thing that the turn does."""
        self._agent.log(kind, text)
        if not self.is_heard:
            return
        text, payload = self._agent.clean(text), self._agent.clean_data(payload)
        if kind in _WATCHED:
            self._watch(_WATCHED[kind], text, payload)
        if kind == "assistant_token":
            self.told += text
        if self.publish is not None and (kind != "reasoning_step" or self._trace):
            self.publish(StreamEvent(kind=kind, text=text, payload=payload))

    def hear(self, event: Event) -> None:
        """Pass on what a program inside a tool tells; a `Sink`."""
        self._check()
        if event.kind in _SHOWN_INSIDE:
            text = f"{event.kind}: {one_line(event.text, STATUS_CHARS)}"
            rest = {"detail": event.text[:CODE_CHARS]} if event.kind == "code" else {}
            self.tell("status", text, source="rlm", depth=event.depth + 1, **rest)
        if self._watcher is not None and event.kind != "final":
            self._watcher(replace(event, depth=event.depth + 1))

    def end(self, response: str, stop: str) -> None:
        """Tell a watcher the answer; the turn's own stream has an end of its own."""
        outputs = {"assistant_response": response}
        self._watch("final", response, {"outputs": outputs, "stop": stop})

    def _watch(self, kind: Kind, text: str, data: Mapping[str, Any]) -> None:
        if self._watcher is not None:
            self._watcher(Event(kind=kind, text=text, data=data, depth=depth()))
