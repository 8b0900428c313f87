"""Checks what a chat agent is made of: secrets, numbers, volume, folders, sandbox, history."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import dspy

from fleet_rlm.errors import UsageError
from fleet_rlm.program.agent.roots import Refused, Roots
from fleet_rlm.program.agent.volume import LocalVolume, Volume
from fleet_rlm.program.rlm import InterpreterFactory

Number = TypeVar("Number", int, float)
History: TypeAlias = "dspy.History | Iterable[Mapping[str, Any]]"

VOLUMES = Path(".fleet-rlm", "volumes")
"""Where volumes that are named, not given by their folder, live: below the working directory."""

_VOLUME_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def refuse_secret(secret_name: str | None) -> None:
    """Raise if a secret is to go into sandboxes.

    Raises:
        UsageError: it is.
    """
    if secret_name is not None:
        raise UsageError(
            f"secret_name={secret_name!r} has no meaning: models are called from the host, and no "
            "secret enters a sandbox.",
            fix="leave secret_name out and give the key to dspy.LM",
        )


def positive(value: Number | None, name: str) -> Number | None:
    """The value, checked.

    Raises:
        UsageError: neither None nor positive.
    """
    if value is not None and (isinstance(value, bool) or value <= 0):
        raise UsageError(f"{name} must be positive or None, got {value!r}.")
    return value


def choose_volume(volume: Volume | str | Path | None, name: str | None) -> Volume | None:
    """The volume that is meant.

    Raises:
        UsageError: both are given, or the name cannot be that of a volume.
    """
    if name is None:
        return LocalVolume(volume) if isinstance(volume, str | Path) else volume
    if volume is not None:
        raise UsageError("Give volume or volume_name, not both.")
    if not _VOLUME_NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be the name of a volume.", fix="volume_name='notes'")
    return LocalVolume(VOLUMES / name)


def choose_roots(roots: Iterable[str | Path] | None, docs_path: str | Path | None) -> Roots:
    """The folders that may be read.

    Raises:
        UsageError: one of them, or `docs_path`, does not exist.
    """
    if docs_path is not None and not Path(docs_path).exists():
        raise UsageError(f"There is no {str(docs_path)!r}.")
    if roots is not None:
        return Roots([roots] if isinstance(roots, str | Path) else roots)
    if docs_path is None:
        return Roots([Path.cwd()])
    place = Path(docs_path).resolve()
    return Roots([place if place.is_dir() else place.parent])


def choose_factory(
    factory: InterpreterFactory | None, interpreter: InterpreterFactory | None
) -> InterpreterFactory | None:
    """What makes sandboxes; None for what DSPy is configured with.

    Raises:
        UsageError: both are given, or one is no factory.
    """
    if factory is not None and interpreter is not None:
        raise UsageError("Give interpreter_factory or interpreter, not both.")
    found = factory or interpreter
    made_already = hasattr(found, "execute") and not isinstance(found, type)
    if found is not None and (made_already or not callable(found)):
        raise UsageError(
            "A single interpreter would be shared by programs that run at the same time.",
            fix="interpreter_factory=fleet_rlm.LocalInterpreter",
        )
    return found


def checked_message(message: str) -> str:
    """The message.

    Raises:
        Refused: it is empty, or no text.
    """
    if not isinstance(message, str) or not message.strip():
        raise Refused("message cannot be empty")
    return message


def parse_history(history: History) -> tuple[Mapping[str, str], ...]:
    """Earlier turns.

    Raises:
        Refused: an entry without `user_request` and `assistant_response`, both texts.
    """
    messages = history.messages if isinstance(history, dspy.History) else history
    turns: list[Mapping[str, str]] = []
    for message in messages:
        said, answered = message.get("user_request"), message.get("assistant_response")
        if not isinstance(said, str) or not isinstance(answered, str):
            raise Refused("Each turn of a history needs user_request and assistant_response.")
        turns.append({"user_request": said, "assistant_response": answered})
    return tuple(turns)
