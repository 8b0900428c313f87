"""What the code of a cell may do besides computing: execution profiles, decided on the host."""

from __future__ import annotations

from enum import StrEnum


class ExecutionProfile(StrEnum):
    """A profile holds for one cell, or for the block of one thread or task."""

    ROOT_INTERLOCUTOR = "ROOT_INTERLOCUTOR"
    """A chat's own code: it computes on what is there; it calls no tools and submits nothing."""

    RLM_DELEGATE = "RLM_DELEGATE"
    """A recursive program's code: tools, sub-queries and SUBMIT."""

    MAINTENANCE = "MAINTENANCE"
    """The host's own code, which loads and saves state: as RLM_DELEGATE."""

    @property
    def may_call(self) -> bool:
        """Whether tools may be called and an answer submitted."""
        return self is not ExecutionProfile.ROOT_INTERLOCUTOR
