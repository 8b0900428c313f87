"""Cuts a text by tokens: into pieces that end where lines end, or down to its two ends."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from fleet_rlm.suites.tokens import count_tokens

# A line with the blank lines after it. No token spans a line end and a following line that is not
# blank, so the tokens of such lines add up to those of the text.
_LINES = re.compile(r"[^\n]*+\n(?:[^\S\n]*+\n)*+|[^\n]++")

MARK = "\n[... {tokens:,} tokens left out ...]\n"
"""Stands where `keep_ends` left text out."""

_MARK_TOKENS = 16
_SECANTS = 6


class Piece(NamedTuple):
    """A part of a text."""

    start: int
    """Characters before it."""

    end: int
    tokens: int


class Kept(NamedTuple):
    """What `keep_ends` leaves of a text."""

    text: str
    tokens: int
    """Of the whole text, before."""

    dropped: int
    """Tokens left out."""


def cut(text: str, max_tokens: int) -> list[Piece]:
    """Consecutive pieces that cover `text`, each as long as whole lines allow.

    Args:
        text: of any length.
        max_tokens: most tokens of one piece, at least 4. Only a line longer than that is cut
            inside, at a space where one is near.
    """
    pieces: list[Piece] = []
    start = end = held = 0
    for line, tokens in _short_lines(text, max_tokens):
        if held + tokens > max_tokens:
            pieces.append(Piece(start, end, held))
            start, held = end, 0
        end += line
        held += tokens
    return [*pieces, Piece(start, end, held)] if held else pieces


def keep_ends(text: str, max_tokens: int) -> Kept:
    """The text, or its beginning and end around a mark when it is longer than `max_tokens`.

    Both ends get half of the budget: `ids[:max // 2] + ids[-max // 2:]`, the rule with which
    LongBench fits a context into a window (THUDM/LongBench, MIT), give or take half a percent; the
    mark is within the budget.

    Args:
        text: of any length.
        max_tokens: at least 24, to hold the mark and a little text.
    """
    tokens = count_tokens(text)
    if tokens <= max_tokens:
        return Kept(text, tokens, 0)
    half = (max_tokens - _MARK_TOKENS) // 2
    head = text[: _fit(lambda chars: count_tokens(text[:chars]), len(text), half)]
    cut_at = len(text) - _fit(lambda chars: count_tokens(text[-chars:]), len(text), half)
    tail = text[cut_at:]
    dropped = tokens - count_tokens(head) - count_tokens(tail)
    return Kept(f"{head}{MARK.format(tokens=dropped)}{tail}", tokens, dropped)


def _short_lines(text: str, max_tokens: int) -> Iterator[tuple[int, int]]:
    """Characters and tokens of each line; of each part of a line that is too long."""
    for match in _LINES.finditer(text):
        line = match.group()
        tokens = count_tokens(line)
        if tokens <= max_tokens:
            yield len(line), tokens
            continue
        start = 0
        while start < len(line):
            end = start + _fit_part(line, start, max_tokens)
            yield end - start, count_tokens(line[start:end])
            start = end


def _fit_part(line: str, start: int, max_tokens: int) -> int:
    left = len(line) - start
    chars = _fit(lambda n: count_tokens(line[start : start + n]), left, max_tokens)
    if chars == left:
        return chars
    # Before the space: it begins the next word's token.
    space = line.rfind(" ", start + chars // 2, start + chars)
    return space - start if space > start else max(1, chars)


def _fit(count: Callable[[int], int], chars: int, tokens: int) -> int:
    """The most characters, at most `chars`, that hold at most `tokens`, or nearly the most.

    Args:
        count: number of characters -> tokens in that many.
        chars: all that there are.
        tokens: the budget.
    """
    low, high = 0, chars + 1  # `low` fits, `high` does not
    near = tokens - tokens // 200
    guess = min(chars, 4 * tokens)
    tries = 0
    while high - low > 1:
        found = count(guess)
        if found > tokens:
            high = guess
        else:
            low = guess
            if found >= near:
                break
        # Tokens are spread evenly over most texts, so a few secants do; bisection always does.
        tries += 1
        ahead = guess * (near + tokens) // (2 * max(1, found))
        guess = ahead if tries <= _SECANTS else (low + high) // 2
        guess = max(low + 1, min(guess, high - 1))
    return low
