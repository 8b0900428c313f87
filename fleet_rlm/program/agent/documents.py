"""Documents of a chat: files become text, kept by alias, the least recently used dropped first."""

from __future__ import annotations

import codecs
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet_rlm.errors import nearest
from fleet_rlm.program.agent.formats import extract
from fleet_rlm.program.agent.roots import Refused

ACTIVE = "active"
"""As an argument it means the active document, whatever its alias."""

CACHE_LIMIT = 100
MAX_BYTES = 1 << 30
"""Size of one file."""

_SAMPLE = 2_048
_TEXTUAL = 0.80


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text that a chat can refer to."""

    text: str
    path: str = ""
    source_type: str = "text"
    method: str = ""
    """What read it, where that was not plain decoding."""

    page_count: int | None = None

    @property
    def lines(self) -> int:
        """Lines, counting a last one without a line break."""
        return self.text.count("\n") + (not self.text.endswith("\n") and bool(self.text))


def read_document(file: Path, shown: str) -> Document:
    """The document in a file.

    Args:
        file: a real path to a regular file.
        shown: its path as the caller wrote it, for messages.

    Raises:
        Refused: too large, binary, scanned, not UTF-8, or in a format that cannot be read.
        DataError: damaged.
        UsageError: the library for its format is not installed.
    """
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise Refused(f"{shown!r} has {size:,} bytes, at most {MAX_BYTES:,} are read.")
    found = extract(file, shown)
    if found is not None:
        return Document(
            text=found.text,
            path=shown,
            source_type=found.source_type,
            method=found.method,
            page_count=found.page_count,
        )
    return Document(text=_decode(file.read_bytes(), shown), path=shown)


class DocumentCache:
    """Documents by alias, and which one is active. Not for use by several threads at once."""

    def __init__(self) -> None:
        self._documents: OrderedDict[str, Document] = OrderedDict()
        self.active_alias: str | None = None

    def add(self, alias: str, document: Document) -> None:
        """Keep a document and make it the active one; beyond CACHE_LIMIT the oldest is dropped.

        Raises:
            Refused: an empty alias.
        """
        if not alias.strip():
            raise Refused("A document needs an alias.")
        self._documents[alias] = document
        self._documents.move_to_end(alias)
        self.active_alias = alias
        if len(self._documents) > CACHE_LIMIT:
            self._documents.popitem(last=False)

    def get(self, alias: str = ACTIVE) -> Document:
        """The document of an alias; "active" is the active one.

        Raises:
            Refused: there is none.
        """
        return self._documents[self._touch(alias)]

    def activate(self, alias: str) -> None:
        """Make a document the active one.

        Raises:
            Refused: there is none of that alias.
        """
        self.active_alias = self._touch(alias, exact=True)

    def __contains__(self, alias: str) -> bool:
        return alias in self._documents

    def __len__(self) -> int:
        return len(self._documents)

    def copy(self) -> DocumentCache:
        """Another cache with the same documents; texts are shared, they never change."""
        other = DocumentCache()
        other._documents = self._documents.copy()
        other.active_alias = self.active_alias
        return other

    def texts(self) -> Mapping[str, str]:
        """Alias -> text, least recently used first."""
        return {alias: document.text for alias, document in self._documents.items()}

    def describe(self) -> list[dict[str, Any]]:
        """`{alias, chars, lines}` of each document, least recently used first."""
        return [
            {"alias": alias, "chars": len(document.text), "lines": document.lines}
            for alias, document in self._documents.items()
        ]

    def _touch(self, alias: str, *, exact: bool = False) -> str:
        name: str | None = alias
        if alias == ACTIVE and not (exact and alias in self._documents):
            name = self.active_alias
        if name is None:
            raise Refused("No document is loaded. Use load_document first.")
        if name not in self._documents:
            hint = nearest(name, self._documents)
            raise Refused(f"No document has the alias {name!r}. {hint}")
        self._documents.move_to_end(name)
        return name


def _decode(data: bytes, shown: str) -> str:
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        sample = data[:_SAMPLE]
        plain = sum(32 <= byte < 127 or byte in b"\t\n\r\f\b" for byte in sample)
        if b"\0" in sample or plain < _TEXTUAL * len(sample):
            raise Refused(
                f"Binary file detected at '{shown}'. Use a text file or supported document format "
                "(for example, PDF)."
            ) from None
        raise Refused(f"Could not decode '{shown}' as UTF-8 text.") from None
