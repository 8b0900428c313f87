"""Named lists that survive between the cells of a sandbox session.

Standard library only, and no import of this package: `source()` is executed in sandbox sessions,
after that of `chunking`.
"""

from __future__ import annotations

from typing import Any

_BUFFERS: dict[str, list[Any]] = {}


def set_buffer(name: str, values: list[Any]) -> int:
    """Put values in place of a buffer; returns how many."""
    _BUFFERS[name] = list(values)
    return len(_BUFFERS[name])


def get_buffer(name: str) -> list[Any]:
    """What a buffer holds; nothing when there is none of that name."""
    return list(_BUFFERS.get(name, ()))


def clear_buffer(name: str | None = None) -> None:
    """Forget one buffer, or all."""
    if name is None:
        _BUFFERS.clear()
    else:
        _BUFFERS.pop(name, None)


def source() -> str:
    """The text of this module, for a sandbox session."""
    from pathlib import Path

    return Path(__file__).read_text(encoding="utf-8")
