"""Counts tokens by one named tokenizer, offline."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from fleet_rlm.errors import UsageError

if TYPE_CHECKING:
    from tiktoken import Encoding

TOKENIZER = "cl100k_base"
"""The tokenizer of every length in a suite, and part of every sample id."""

# tiktoken's own name, digest and pattern of cl100k_base. Its loader finds the file through the
# environment of the whole process and falls back to the network; reading it here does neither.
_FILE = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)

_SLICE = 1 << 18  # characters; tiktoken returns a list of ints, so 10M tokens at once take 400 MB


def count_tokens(text: str) -> int:
    """Length of `text` in tokens of `TOKENIZER`; special-token markers count as plain text.

    Safe to call from many threads. The count is the tokenizer's own wherever a slice of 262,144
    characters holds a line end; only longer stretches without one may be off by a token or two.

    Raises:
        UsageError: the installed litellm does not bring the tokenizer's file.
    """
    encode = _encoding().encode_ordinary
    if len(text) <= _SLICE:
        return len(encode(text))
    return sum(len(encode(piece)) for piece in _slices(text))


def _slices(text: str) -> Iterator[str]:
    # No token of this pattern spans a line end and a following non-space, so counts add up there.
    start = 0
    while len(text) - start > _SLICE:
        cut = start + _SLICE
        at = text.rfind("\n", start, cut) + 1
        while at > start and text[at].isspace():
            at = text.rfind("\n", start, at - 1) + 1
        cut = at if at > start else cut
        yield text[start:cut]
        start = cut
    yield text[start:]


@lru_cache(maxsize=1)
def _encoding() -> Encoding:
    import tiktoken

    path = _find_file()
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != _SHA256:
        raise UsageError(f"Tokenizer file {path} is not {TOKENIZER}", fix=_FIX)
    ranks = {}
    for line in data.splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    return tiktoken.Encoding(TOKENIZER, pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens={})


_FIX = "pip install --force-reinstall litellm"


def _find_file() -> Path:
    spec = importlib.util.find_spec("litellm")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "litellm_core_utils" / "tokenizers" / _FILE
        if path.is_file():
            return path
    raise UsageError(f"The {TOKENIZER} tokenizer file that litellm ships is missing", fix=_FIX)
