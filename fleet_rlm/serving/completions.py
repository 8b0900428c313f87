"""The agent as an OpenAI-compatible model: what clients of `/v1/chat/completions` send and get."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fleet_rlm.errors import UsageError
from fleet_rlm.program.agent.events import StreamEvent
from fleet_rlm.program.agent.memory import LIMITS
from fleet_rlm.serving.chats import Asked, Running
from fleet_rlm.serving.refusals import body_of, failure_of, status_of
from fleet_rlm.serving.sse import format_event

LONG = 4_000
"""Characters from which a part of a message becomes a document, which tools read."""

HEAD, TAIL = 1_000, 2_000
"""Characters of it that are shown all the same: a question stands before a text or after it."""

_REFUSED = ("tools", "functions", "response_format", "logprobs", "audio")
"""What changes the form of an answer, and is not provided."""


class TextPart(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message; names and the like are not needed."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """All of it."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    """What a stream tells besides the answer."""

    include_usage: bool = False


class CompletionRequest(BaseModel):
    """What a client asks for. Parameters of sampling are taken, not used, and named in the answer:
    they are part of what was compiled."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1_000)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1)] = 1

    @property
    def ignored(self) -> list[str]:
        """Parameters without effect."""
        return sorted(name for name, value in (self.model_extra or {}).items() if value is not None)


def read_messages(request: CompletionRequest, identity: str, model: str) -> Asked:
    """The turn that the messages ask for: the last is the request, those before it the memory.

    System messages become core memory where they fit, and what is long a document.

    Raises:
        UsageError: another model, something that is not provided, or no request at the end.
    """
    if request.model != model:
        raise UsageError(f"There is no model {request.model!r} here, only {model!r}.")
    extra = request.model_extra or {}
    wanted = [name for name in _REFUSED if extra.get(name)]
    if wanted == ["response_format"] and extra["response_format"] == {"type": "text"}:
        wanted = []
    if wanted:
        raise UsageError(f"{wanted[0]} is not provided: the agent answers in text.")
    *earlier, last = request.messages
    if last.role != "user" or not last.text.strip():
        raise UsageError("The last message must be a user's, and say something.")
    documents: dict[str, str] = {}

    def shorten(text: str) -> str:
        if len(text) <= LONG:
            return text
        name = f"document-{len(documents) + 1}"
        documents[name] = text
        note = f"[... all {len(text):,} characters are in {name} ...]"
        return f"{text[:HEAD]}\n{note}\n{text[-TAIL:]}"

    told = "\n".join(
        _parts(message, shorten) for message in earlier if message.role in {"system", "developer"}
    )
    if len(told) > LIMITS["persona"]:
        documents["system"] = told
        note = "\n[... the rest is in the document `system`]"
        told = told[: LIMITS["persona"] - len(note)] + note
    said = [message for message in earlier if message.role in {"user", "assistant"}]
    state = {
        "history": _pair(said, shorten),
        "documents": {},
        "active_alias": None,
        "document_access_order": [],
        "core_memory": {"persona": told},
    }
    message = _parts(last, shorten)
    return Asked(identity=identity, message=message, documents=documents, state=state)


def completion(request: CompletionRequest, last: StreamEvent, kind: str) -> dict[str, Any]:
    """The answer in one piece.

    Raises:
        SampleError: the turn ended in an error.
    """
    if last.kind != "final":
        raise failure_of(last)
    message = {"role": "assistant", "content": last.text}
    choice = {"index": 0, "message": message, "finish_reason": _finish(last)}
    return {
        **_head(request, "chat.completion", kind),
        "choices": [choice],
        "usage": _usage(last),
        "ignored_parameters": request.ignored,
    }


async def completion_stream(
    request: CompletionRequest, running: Running, kind: str
) -> AsyncGenerator[str, None]:
    """The answer piece by piece, as server-sent events."""
    head = _head(request, "chat.completion.chunk", kind)

    def chunk(delta: Mapping[str, str], finish: str | None = None) -> str:
        return format_event(
            head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        )

    yield chunk({"role": "assistant", "content": ""})
    last = StreamEvent(kind="cancelled")
    events = running.events()
    try:
        async for event in events:
            last = event
            if event.kind == "assistant_token":
                yield chunk({"content": event.text})
    finally:
        await events.aclose()
    if last.kind != "final":
        failure = failure_of(last)
        yield format_event(body_of(failure.message, status_of(failure)))
        return
    yield chunk({}, _finish(last))
    if request.stream_options and request.stream_options.include_usage:
        yield format_event(head | {"choices": [], "usage": _usage(last)})
    yield format_event("[DONE]")


def list_models(model: str, kind: str) -> dict[str, Any]:
    """The one model there is."""
    entry = {"id": model, "object": "model", "created": 0, "owned_by": f"fleet-rlm ({kind})"}
    return {"object": "list", "data": [entry]}


def _parts(message: ChatMessage, shorten: Any) -> str:
    if isinstance(message.content, str):
        return str(shorten(message.content))
    return "\n".join(shorten(part.text) for part in message.content)


def _pair(messages: list[ChatMessage], shorten: Any) -> list[dict[str, str]]:
    """Messages as turns; one without its other half stands alone."""
    turns: list[dict[str, str]] = []
    for message in messages:
        text = _parts(message, shorten)
        if message.role == "user":
            turns.append({"user_request": text, "assistant_response": ""})
        elif turns and not turns[-1]["assistant_response"]:
            turns[-1]["assistant_response"] = text
        else:
            turns.append({"user_request": "", "assistant_response": text})
    return turns


def _head(request: CompletionRequest, form: str, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": form,
        "created": int(time.time()),
        "model": request.model,
        "system_fingerprint": kind,
    }


def _finish(last: StreamEvent) -> str:
    return "stop" if last.payload.get("stop") == "answered" else "length"


def _usage(last: StreamEvent) -> dict[str, int]:
    """Tokens of all roles together: an answer of the agent takes many calls."""
    roles = last.payload.get("usage", {}).values()
    read = int(sum(usage["input_tokens"] for usage in roles))
    written = int(sum(usage["output_tokens"] for usage in roles))
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }
