"""Counting tokens: offline, additive over slices, equal to the tokenizer's own count."""

from __future__ import annotations

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_rlm.errors import UsageError
from fleet_rlm.suites import tokens
from fleet_rlm.suites.tokens import TOKENIZER, count_tokens


@pytest.fixture(scope="module")
def official():
    """tiktoken's own encoding, loaded by its own loader from the file that litellm ships."""
    import tiktoken

    folder = Path(importlib.util.find_spec("litellm").submodule_search_locations[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder / "litellm_core_utils" / "tokenizers"))
        yield tiktoken.get_encoding(TOKENIZER)


def test_counts_are_the_tokenizers_own(official):
    for text in (
        "",
        "a",
        "Hello, world! 12345\n\n  x",
        "naïve café 東京 🙂",
        "<|endoftext|>",
        "\r\n \t\n",
    ):
        assert count_tokens(text) == len(official.encode_ordinary(text))


@given(st.lists(st.text(alphabet="aB1 .,'’\n\té東", max_size=30), max_size=30))
@settings(max_examples=200, deadline=None)
def test_slices_add_up_exactly_at_line_ends(official, parts):
    text = "\n".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_SLICE", 40)
        pieces = list(tokens._slices(text))
    assert "".join(pieces) == text
    if all(len(piece) <= 40 for piece in pieces) and all(p.endswith("\n") for p in pieces[:-1]):
        total = sum(len(official.encode_ordinary(piece)) for piece in pieces)
        assert total == len(official.encode_ordinary(text))


def test_a_long_text_is_counted_in_slices_and_stays_exact(official):
    text = "The clerk went home, 1893.\n\n  Then it rained.\n" * 12_000
    assert len(text) > 2 * tokens._SLICE
    assert count_tokens(text) == len(official.encode_ordinary(text))


def test_a_long_line_without_any_end_is_off_by_little(official):
    text = "nothing but words " * 40_000
    assert abs(count_tokens(text) - len(official.encode_ordinary(text))) <= 3


def test_many_threads_may_count_at_once():
    tokens._encoding.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(count_tokens, ["one two three"] * 32)) == {3}


def test_a_missing_tokenizer_file_is_one_clear_error(monkeypatch):
    tokens._encoding.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r"cl100k_base tokenizer file .* missing.* Try: pip install"
    ):
        count_tokens("x")
    monkeypatch.undo()
    assert count_tokens("x") == 1


def test_counting_imports_neither_litellm_nor_touches_the_environment():
    import subprocess

    code = (
        "import os, sys; before = dict(os.environ)\n"
        "from fleet_rlm.suites.tokens import count_tokens\n"
        "assert count_tokens('a b') == 2 and 'litellm' not in sys.modules\n"
        "assert dict(os.environ) == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
