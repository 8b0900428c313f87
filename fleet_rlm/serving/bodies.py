"""What clients send and get, as strict schemas."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Id = Annotated[str, Field(min_length=1, max_length=512)]
Alias = Annotated[str, Field(min_length=1, max_length=200)]
Documents = Annotated[dict[Alias, str], Field(max_length=100)]
TraceMode = Literal["compact", "verbose", "off"]


class Strict(BaseModel):
    """No key that is not listed."""

    model_config = ConfigDict(extra="forbid")


class ChatRequest(Strict):
    """One turn of a chat."""

    message: Annotated[str, Field(min_length=1)]
    docs_path: str | None = None
    """A file below one of the server's roots, loaded before the turn."""

    documents: Documents = Field(default_factory=dict)
    """Alias -> text, loaded before the turn; the last one is active."""

    trace: bool = False
    """Whether thoughts and steps are told."""

    workspace_id: Id = "default"
    session_id: Id | None = None
    """The chat that goes on; without one, nothing is remembered."""


class ChatResponse(BaseModel):
    """The answer to one turn."""

    assistant_response: str
    trajectory: list[dict[str, Any]] | None = None
    """With `trace`: thought, tool, arguments and observation of each step."""

    history_turns: int
    usage: dict[str, dict[str, float]]
    """Role -> calls, tokens, dollars, seconds."""


class SocketMessage(Strict):
    """A turn, over the WebSocket."""

    type: Literal["message"]
    content: str
    docs_path: str | None = None
    documents: Documents = Field(default_factory=dict)
    trace: bool = True
    trace_mode: TraceMode = "compact"
    """`off` tells the answer only, `compact` all but whole steps, `verbose` all."""

    workspace_id: Id = "default"
    session_id: Id | None = None
    """The chat of this connection when absent."""

    user_id: str | None = None
    """Taken and not used: the token says who asks."""


class SocketCommand(Strict):
    """A named command, over the WebSocket."""

    type: Literal["command"]
    command: str
    args: dict[str, JsonValue] = Field(default_factory=dict)
    workspace_id: Id = "default"
    session_id: Id | None = None
    user_id: str | None = None


class ProgramRequest(Strict):
    """A call of the served program."""

    inputs: dict[Alias, JsonValue]
    """Its input fields."""


class ProgramResponse(BaseModel):
    """What it gave."""

    outputs: dict[str, Any]
    stop: str
    """"submitted" or "answered", or the limit that it met."""

    usage: dict[str, dict[str, float]]


class TaskRequest(Strict):
    """A task with a ready-made signature; each reads the fields that it needs."""

    task_type: str | None = None
    """Name of the task, as the route has it, or with `_` for `-`."""

    question: str = ""
    """What `basic` is asked."""

    docs: str | None = None
    """The text."""

    docs_path: str | None = None
    """A file below one of the server's roots, in place of `docs`."""

    query: str = ""
    """What to look for, or the focus of a summary."""

    max_iterations: Annotated[int, Field(ge=1, le=100)] = 15
    max_llm_calls: Annotated[int, Field(ge=1, le=1_000)] = 30
    timeout: Annotated[float, Field(gt=0, le=3_600)] = 600
    """Seconds."""

    chars: Annotated[int, Field(ge=1)] | None = None
    """Read only the beginning of the text."""

    verbose: bool = False
    """Whether the result has the steps."""


class TaskResponse(BaseModel):
    """How a task ended."""

    ok: bool
    result: dict[str, Any] | None = None
    error: str | None = None


class SessionState(BaseModel):
    """One chat of whoever asks."""

    key: str
    workspace_id: str
    user_id: str
    session_id: str
    history_turns: int
    document_count: int
    memory_count: int
    """Blocks of core memory that hold something."""

    updated_at: str
    """UTC, ISO 8601."""


class SessionList(BaseModel):
    """The chats of whoever asks."""

    ok: bool
    sessions: list[SessionState]
