"""Cuts a text into whole parts, bounded in tokens, to put one question to each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fleet_rlm.program.agent.chunking import (
    HEADERS,
    TIMESTAMPS,
    chunk_by_json_keys,
    parse_strategy,
    split_spans,
)

MAX_TOKENS = 24_000
"""Estimated tokens of one part."""

SIZE = 60_000
"""Characters of one part where a text is cut by size."""


class Parts(NamedTuple):
    """What is sent of a text."""

    texts: list[str]
    left_out_chars: int
    """Characters beyond the last part that is sent."""


def split_parts(text: str, strategy: str, max_parts: int, max_tokens: int = MAX_TOKENS) -> Parts:
    """Parts of a text, each whole and within `max_tokens`.

    Sections that are too long are cut at line ends; where there are more sections than
    `max_parts`, neighbours share a part.

    Args:
        text: the whole text.
        strategy: a name of `chunking.STRATEGIES`.
        max_parts: how many are sent at most.
        max_tokens: estimated tokens of one part.

    Raises:
        ValueError: an unknown strategy, or a text that it cannot cut.
    """
    pieces = [
        piece
        for section in _sections(text, parse_strategy(strategy))
        for piece in _within(section, max_tokens)
    ]
    if len(pieces) > max_parts:
        pieces = _pack(pieces, max_tokens)
    return Parts(pieces[:max_parts], sum(map(len, pieces[max_parts:])))


def map_prompt(query: str, text: str) -> str:
    """One question about one part."""
    return (
        "Answer the question from the text, which is one part of a longer one."
        " Reply 'I am not sure.' when the text does not say.\n"
        f"Question: {query}\nText:\n{text}"
    )


def estimate_tokens(text: str) -> int:
    """Tokens of a text, rather too many than too few: one for three ASCII characters, one for every
    other character."""
    plain = len(text.encode("ascii", "ignore"))
    return plain // 3 + len(text) - plain


def _sections(text: str, strategy: str) -> Iterator[str]:
    if strategy == "size":
        yield from (text[start : start + SIZE] for start in range(0, len(text), SIZE))
    elif strategy == "json_keys":
        for chunk in chunk_by_json_keys(text):
            yield f"{chunk['key']}: {chunk['content']}\n"
    else:
        pattern = HEADERS if strategy == "headers" else TIMESTAMPS
        yield from (text[span.start : span.end] for span in split_spans(text, pattern))


def _within(text: str, max_tokens: int) -> Iterator[str]:
    if estimate_tokens(text) <= max_tokens or len(text) < 2:
        yield text
        return
    middle = len(text) // 2
    cut = text.rfind("\n", 0, middle) + 1 or middle
    yield from _within(text[:cut], max_tokens)
    yield from _within(text[cut:], max_tokens)


def _pack(pieces: Sequence[str], max_tokens: int) -> list[str]:
    packed: list[list[str]] = []
    room = -1  # no part is open yet
    for piece in pieces:
        tokens = estimate_tokens(piece)
        if tokens > room:
            packed.append([])
            room = max_tokens
        packed[-1].append(piece)
        room -= tokens + 1  # rounding down may lose one
    return ["".join(part) for part in packed]
