"""Running text in passages of known token length: what generators plant their lines in."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from random import Random
from typing import NamedTuple, Protocol

from fleet_rlm.suites.tokens import count_tokens

SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*\s+|[。！？]|\n")
_SPACE = re.compile(r"\s+")
_SENTENCE_LOSS = 24  # tokens given up at most to end on a whole sentence


class Passage(NamedTuple):
    """A stretch of running text that ends where a line may be planted."""

    text: str
    tokens: int


class Source(Protocol):
    """Where running text comes from: built-in prose or a corpus. Read by many threads at once."""

    @property
    def digest(self) -> str:
        """Identity of everything the source may ever return; part of each sample id."""

    def passages(self, rng: Random, tokens: int) -> list[Passage]:
        """Consecutive passages that begin where `rng` says and sum to at most `tokens`.

        The sum stays within a sentence (24 tokens) of `tokens`. Equal `rng` states give equal text.
        """

    def holds(self, text: str) -> bool:
        """Whether `text` may occur in a passage; planted names must not."""


def take(stream: Iterable[Passage], tokens: int) -> list[Passage]:
    """The first passages of `stream` within `tokens`; the last is cut at a sentence or word."""
    taken: list[Passage] = []
    for passage in stream:
        if passage.tokens > tokens:
            tail = trim(passage.text, tokens)
            return [*taken, Passage(tail, count_tokens(tail))] if tail else taken
        taken.append(passage)
        tokens -= passage.tokens
    return taken


def trim(text: str, tokens: int) -> str:
    """The longest start of `text` within `tokens`.

    Whole sentences if that costs at most 24 tokens, else whole words, else (in a script without
    spaces) characters; "" when not even one fits.
    """

    def fits(ends: list[int]) -> str:
        found = bisect_right(ends, tokens, key=lambda end: count_tokens(text[:end]))
        return text[: ends[found - 1]] if found else ""

    words = fits([match.start() for match in _SPACE.finditer(text)])
    words = words or fits(list(range(1, len(text) + 1)))
    sentences = [match.end() for match in SENTENCE_END.finditer(words + "\n")]
    whole = words[: sentences[-2]].rstrip() if len(sentences) > 1 else ""
    loses = count_tokens(words) - count_tokens(whole)
    return whole if whole and loses <= _SENTENCE_LOSS else words
