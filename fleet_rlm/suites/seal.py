"""Texts of sealed datasets: stored as they came, opened in memory only."""

from __future__ import annotations

import base64
import hashlib
from typing import Any


class Seal:
    """Opens and closes texts of a sealed dataset; without a key texts stay as they are.

    Source: openai/simple-evals and texttron/BrowseComp-Plus: base64 of XOR with the repeated
    SHA-256 of a canary string. It keeps texts out of searches and training data, not from people.
    """

    def __init__(self, canary: str | None) -> None:
        self._key = hashlib.sha256(canary.encode()).digest() if canary is not None else None

    def open(self, text: str) -> str:
        """The text in clear, for memory only.

        Raises:
            ValueError: it was not closed with this key.
        """
        if self._key is None:
            return text
        return self._mixed(base64.b64decode(text, validate=True)).decode()

    def close(self, text: str) -> str:
        """The text as it is stored."""
        if self._key is None:
            return text
        return base64.b64encode(self._mixed(text.encode())).decode()

    def _mixed(self, data: bytes) -> bytes:
        # As one large integer: a loop over bytes takes minutes for BrowseComp-Plus' documents.
        key = ((self._key or b"") * (len(data) // 32 + 1))[: len(data)]
        mixed = int.from_bytes(data, "big") ^ int.from_bytes(key, "big")
        return mixed.to_bytes(len(data), "big")

    def opened(self, value: Any, skip: str = "") -> Any:
        """`value` with every text in it opened, but those under the key `skip`."""
        if isinstance(value, str):
            return self.open(value)
        if isinstance(value, list):
            return [self.opened(item, skip) for item in value]
        if isinstance(value, dict):
            return {
                key: item if key == skip or key[0] == "_" else self.opened(item, skip)
                for key, item in value.items()
            }
        return value


def withheld(value: Any) -> Any:
    """`value` with every text in it replaced by its length: what a record may say of a sealed text.

    >>> withheld({"code": "print(1)", "turn": 2})
    {'code': '[sealed: 8 characters]', 'turn': 2}
    """
    if isinstance(value, str):
        return f"[sealed: {len(value)} characters]"
    if isinstance(value, list | tuple):
        return [withheld(item) for item in value]
    if isinstance(value, dict):
        return {key: withheld(item) for key, item in value.items()}
    return value
