"""Cuts long texts of a session to what is shown of them, and no secret in two.

The guest's side knows no secrets. So it sends MARGIN more at each cut than is shown, and what is
clean without that margin is compared with what is clean with it: from the first difference on, a
secret was cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fleet_rlm.sandbox.driver import MARGIN, ends

Clean = Callable[[Any], Any]
"""Plain data without the secrets in its strings."""


def cut(text: str, head: int, tail: int, clean: Clean) -> str:
    """At most `head` and `tail` characters of the two ends of a text."""
    return join(ends(text, head, tail), head, tail, clean)


def join(message: Any, head: int, tail: int, clean: Clean, *, torn: bool = False) -> str:
    """The same of a text that the driver sent as `ends`.

    Args:
        message: from a guest, so anything.
        head: characters to show of the start.
        tail: characters to show of the end.
        clean: takes secrets out.
        torn: the text itself was cut at its end.

    Raises:
        ValueError, TypeError: it is not what `ends` makes.
    """
    first, last, count = message
    if not (isinstance(first, str) and isinstance(last, str) and type(count) is int):
        raise ValueError("malformed text")
    whole = not last and 0 <= count <= len(first)
    first, last = first[: head + tail + 2 * MARGIN], last[-(tail + MARGIN) :]
    if whole:
        last = first
    stop = len(last) - MARGIN if torn else len(last)
    if whole and len(last) <= head + tail:
        return window(last, 0, stop, clean)
    first = window(first, 0, head, clean)
    last = window(last, len(last) - tail, stop, clean)
    note = "[... the rest is not shown ...]"
    if count >= 0:
        note = f"[... {count - len(first) - len(last):,} of {count:,} characters not shown ...]"
    return f"{first}\n{note}\n{last}"


def window(text: str, start: int, stop: int, clean: Clean) -> str:
    """The characters from `start` to `stop`, clean, without a secret that either of them cuts."""
    shown: str = clean(text)
    left, right = 0, len(shown)
    if start > 0:
        left = right - _shared(clean(text[start:])[::-1], shown[::-1])
    if stop < len(text):
        right = _shared(clean(text[: max(0, stop)]), shown)
    return shown[left:right]


def _shared(one: str, other: str) -> int:
    """How many characters of both are the same before the first that is not."""
    same = map(str.__eq__, one, other)
    return next((at for at, equal in enumerate(same) if not equal), min(len(one), len(other)))
