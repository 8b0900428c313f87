"""What a chat tells while a turn runs: nine kinds of events, and a view folded from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

AgentEventKind = Literal[
    "assistant_token",
    "status",
    "reasoning_step",
    "tool_call",
    "tool_result",
    "trajectory_step",
    "final",
    "cancelled",
    "error",
]
KINDS: tuple[AgentEventKind, ...] = get_args(AgentEventKind)
TERMINAL: frozenset[AgentEventKind] = frozenset({"final", "cancelled", "error"})
"""Each turn ends with exactly one of these, and nothing follows it."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEvent:
    """One event of a turn.

    `assistant_token`: a piece of the answer; the pieces joined are the answer.
    `status`: what is going on, also inside a tool; payload `{source, depth}` there, and `detail`,
    the code in its own lines. `reasoning_step`: a thought, only with `trace`.
    `tool_call`, `tool_result`: payload `{name, args}` and `{name, ok}`.
    `trajectory_step`: payload `{step_index, step_data, total_steps}`.
    `final`: the answer; payload `{trajectory, final_reasoning, history_turns}`.
    `cancelled`: what there was of the answer, then `[cancelled]`; payload `{history_turns}`.
    `error`: one line for people; payload `{error_type}`.
    """

    kind: AgentEventKind
    text: str = ""
    payload: Mapping[str, Any] = field(default_factory=dict)
    timestamp: datetime = field(default_factory=_now)
    """UTC."""

    sequence: int = -1
    """Position in its turn, from 0; -1 before the turn has numbered it."""

    def to_json(self) -> dict[str, Any]:
        """Plain data, the time in ISO 8601."""
        return {
            "kind": self.kind,
            "text": self.text,
            "payload": dict(self.payload),
            "timestamp": self.timestamp.isoformat(),
            "sequence": self.sequence,
        }


@dataclass(slots=True, kw_only=True)
class TurnState:
    """A turn as a screen shows it: apply its events in order."""

    assistant_tokens: list[str] = field(default_factory=list)
    transcript_text: str = ""
    """The answer as far as it is known."""

    reasoning_lines: list[str] = field(default_factory=list)
    tool_timeline: list[str] = field(default_factory=list)
    status_lines: list[str] = field(default_factory=list)
    stream_chunks: list[str] = field(default_factory=list)
    thought_chunks: list[str] = field(default_factory=list)
    status_messages: list[str] = field(default_factory=list)
    trajectory: list[Mapping[str, Any]] = field(default_factory=list)
    final_text: str = ""
    final_reasoning: str = ""
    history_turns: int = 0
    token_count: int = 0
    """Pieces of the answer so far."""

    cancelled: bool = False
    errored: bool = False
    done: bool = False
    error_message: str = ""

    def apply(self, event: StreamEvent) -> None:
        """Take the next event in; nothing changes after a terminal one."""
        if self.done:
            return
        match event.kind:
            case "assistant_token":
                self.assistant_tokens.append(event.text)
                self.stream_chunks.append(event.text)
                self.token_count += 1
                self.transcript_text += event.text
            case "status":
                self.status_lines.append(event.text)
                self.status_messages.append(event.text)
            case "reasoning_step":
                self.reasoning_lines.append(event.text)
                self.thought_chunks.append(event.text)
            case "tool_call" | "tool_result":
                self.tool_timeline.append(event.text)
            case "trajectory_step":
                self.trajectory.append(event.payload["step_data"])
            case _:
                self._end(event)

    def _end(self, event: StreamEvent) -> None:
        self.done = True
        self.cancelled = event.kind == "cancelled"
        self.errored = event.kind == "error"
        if self.errored:
            self.error_message = event.text
            return
        self.final_text = self.transcript_text = event.text
        self.history_turns = event.payload.get("history_turns", self.history_turns)
        self.final_reasoning = event.payload.get("final_reasoning", "")
        self.trajectory = list(event.payload.get("trajectory", self.trajectory))
