"""Cuts text into chunks: one implementation, for the host and, as source text, for the sandbox.

Standard library only, and no import of this package: `source()` is executed in sandbox sessions.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

HEADERS = r"^#{1,3} "
TIMESTAMPS = r"^\d{4}-\d{2}-\d{2}[T ]"
SIZE = 200_000

STRATEGIES = {
    "size": "size",
    "headers": "headers",
    "header": "headers",
    "timestamps": "timestamps",
    "timestamp": "timestamps",
    "json": "json_keys",
    "json_keys": "json_keys",
}
"""Accepted name -> name of the strategy."""

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})(.*)$", re.M)


class Span(NamedTuple):
    """A stretch of a text and what introduced it ("" before the first match)."""

    start: int
    end: int
    mark: str


def chunk_by_size(text: str, size: int = SIZE, overlap: int = 0) -> list[str]:
    """Windows of `size` characters; each begins `overlap` characters before the last one ended.

    Raises:
        ValueError: `size` is not positive, or `overlap` not in [0, size).
    """
    if size <= 0:
        raise ValueError("size must be positive")
    if overlap < 0:
        raise ValueError("overlap must be non-negative")
    if overlap >= size:
        raise ValueError("overlap must be less than size")
    last = max(len(text) - overlap, min(len(text), 1))
    return [text[start : start + size] for start in range(0, last, size - overlap)]


def chunk_by_headers(text: str, pattern: Any = HEADERS) -> list[dict[str, Any]]:
    """Sections that begin at a line with a Markdown header; headers in code fences do not count.

    Args:
        text: the whole text.
        pattern: where a section begins: an expression in multi-line mode, or a compiled one.

    Returns:
        `header` (its line), `content` (without surrounding white space) and `start_pos`, the offset
        at which the section begins; text before the first header has the header "".
    """
    chunks = []
    for span in split_spans(text, pattern, skip=_fences(text)):
        section = text[span.start : span.end]
        head, _, body = section.partition("\n") if span.mark else ("", "", section)
        if span.mark or body.strip():
            chunk = {"header": head.strip(), "content": body.strip(), "start_pos": span.start}
            chunks.append(chunk)
    return chunks


def chunk_by_timestamps(text: str, pattern: Any = TIMESTAMPS) -> list[dict[str, Any]]:
    """Log entries that begin at a line with a time stamp.

    Args:
        text: the whole text.
        pattern: where an entry begins: an expression in multi-line mode, or a compiled one.

    Returns:
        `timestamp` (what the pattern matched), `content` (without surrounding white space) and
        `start_pos`, the offset at which the entry begins.
    """
    return [
        {"timestamp": span.mark.strip(), "content": content, "start_pos": span.start}
        for span in split_spans(text, pattern)
        if (content := text[span.start : span.end].strip())
    ]


def chunk_by_json_keys(text: str) -> list[dict[str, str]]:
    """One chunk for each key of a JSON object: `key`, `content` as JSON and `value_type`.

    Raises:
        ValueError: no JSON, or no object.
    """
    if not text.strip():
        return []
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"Invalid JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"Expected JSON object, got {type(found).__name__}")
    return [
        {
            "key": key,
            "content": json.dumps(value, indent=2, ensure_ascii=False),
            "value_type": type(value).__name__,
        }
        for key, value in found.items()
    ]


def parse_strategy(name: str) -> str:
    """The strategy that a name means, in any case, with "-" for "_".

    Raises:
        ValueError: no strategy of that name.
    """
    known = STRATEGIES.get(name.strip().lower().replace("-", "_"))
    if known is None:
        raise ValueError(
            "Unsupported strategy. Choose one of: size, headers, timestamps, json_keys"
        )
    return known


def chunk(
    text: str, strategy: str, *, size: int = SIZE, overlap: int = 0, pattern: Any = ""
) -> list[Any]:
    """Chunks of `text` by any strategy; `size` and `overlap` are those of "size".

    Args:
        text: the whole text.
        strategy: a name of STRATEGIES.
        size: characters.
        overlap: characters.
        pattern: of "headers" and "timestamps"; their own when empty.

    Raises:
        ValueError: an unknown strategy or an argument that it refuses.
    """
    strategy = parse_strategy(strategy)
    if strategy == "size":
        return chunk_by_size(text, size, overlap)
    if strategy == "headers":
        return chunk_by_headers(text, pattern or HEADERS)
    if strategy == "timestamps":
        return chunk_by_timestamps(text, pattern or TIMESTAMPS)
    return chunk_by_json_keys(text)


def split_spans(text: str, pattern: Any, skip: list[tuple[int, int]] | None = None) -> list[Span]:
    """Spans that begin where `pattern` matches; joined, they are the whole text.

    Args:
        text: the whole text.
        pattern: an expression in multi-line mode, or a compiled one.
        skip: stretches in which no match counts, in order.
    """
    if not text:
        return []
    compiled = re.compile(pattern, re.M) if isinstance(pattern, str) else pattern
    marks, skipped = [(0, "")], iter(skip or [])
    begin, end = next(skipped, (len(text), len(text)))
    for match in compiled.finditer(text):
        while match.start() >= end < len(text):
            begin, end = next(skipped, (len(text), len(text)))
        if match.group() and not begin <= match.start() < end:
            marks.append((match.start(), match.group()))
    if len(marks) > 1 and marks[1][0] == 0:
        del marks[0]
    ends = [start for start, _ in marks[1:]] + [len(text)]
    return [Span(start, end, mark) for (start, mark), end in zip(marks, ends, strict=True)]


def _fences(text: str) -> list[tuple[int, int]]:
    """Stretches between code fences; an open one reaches to the end."""
    found: list[tuple[int, int]] = []
    opening: re.Match[str] | None = None
    for match in _FENCE.finditer(text):
        if opening is None:
            # a fence of backticks has none in its info string: that would be inline code
            if match[1][0] == "~" or "`" not in match[2]:
                opening = match
        elif match[1].startswith(opening[1]) and not match[2].strip():
            found.append((opening.start(), match.end()))
            opening = None
    if opening is not None:
        found.append((opening.start(), len(text)))
    return found


def source() -> str:
    """The text of this module, for a sandbox session."""
    from pathlib import Path

    return Path(__file__).read_text(encoding="utf-8")
