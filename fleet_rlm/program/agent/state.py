"""What a chat remembers: documents, core memory and turns; forked for a turn, kept when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from fleet_rlm.program.agent.documents import CACHE_LIMIT, Document, DocumentCache
from fleet_rlm.program.agent.memory import CoreMemory
from fleet_rlm.program.agent.roots import Refused


@dataclass(slots=True, kw_only=True)
class ChatState:
    """The memory of one chat. A turn works on a fork, which takes its place when the turn is over:
    a turn that fails or is cancelled leaves nothing behind."""

    documents: DocumentCache = field(default_factory=DocumentCache)
    memory: CoreMemory = field(default_factory=CoreMemory)
    turns: tuple[Mapping[str, str], ...] = ()
    """`{user_request, assistant_response}`, oldest first."""

    def fork(self) -> ChatState:
        """A copy that may change without this one."""
        return ChatState(
            documents=self.documents.copy(),
            memory=CoreMemory.from_json(self.memory.to_json()),
            turns=self.turns,
        )

    def adopt(self, other: ChatState) -> None:
        """Become what `other` is; tools over this state see it."""
        self.documents, self.memory, self.turns = other.documents, other.memory, other.turns

    def add_turn(self, request: str, response: str, most: int | None) -> None:
        """Remember a turn, and of all turns the last `most`."""
        turns = (*self.turns, {"user_request": request, "assistant_response": response})
        self.turns = turns[-most:] if most else turns

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data, shared with nothing."""
        texts = self.documents.texts()
        return {
            "history": [dict(turn) for turn in self.turns],
            "documents": dict(texts),
            "active_alias": self.documents.active_alias,
            "document_access_order": list(texts),
            "core_memory": self.memory.to_json(),
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> ChatState:
        """The state that `to_json` described.

        Raises:
            Refused: a missing or an unknown key, a wrong type, more than 100 documents, an active
                alias without a document, or a memory block over its limit.
        """
        try:
            stored = _Stored.model_validate(dict(state))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise Refused(f"This is no exported session: {where}: {first['msg']}.") from None
        documents = DocumentCache()
        if len(stored.documents) > CACHE_LIMIT:
            raise Refused(f"A session holds at most {CACHE_LIMIT} documents.")
        if sorted(stored.document_access_order) != sorted(stored.documents):
            raise Refused("This is no exported session: its document order names other documents.")
        for alias in stored.document_access_order:
            documents.add(alias, Document(text=stored.documents[alias]))
        if stored.active_alias is not None and stored.active_alias not in documents:
            raise Refused(f"The active document {stored.active_alias!r} is not in the session.")
        documents.active_alias = stored.active_alias
        turns = tuple(turn.model_dump() for turn in stored.history)
        memory = CoreMemory.from_json(stored.core_memory)
        return cls(documents=documents, memory=memory, turns=turns)


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    user_request: str
    assistant_response: str


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    history: list[_Turn]
    documents: dict[str, str]
    active_alias: str | None
    document_access_order: list[str]
    core_memory: dict[str, str]
