"""Chunkers: their vectors, their laws, and the same results in a sandbox."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_rlm import LocalInterpreter
from fleet_rlm.program.agent import chunking
from fleet_rlm.program.agent.chunking import (
    HEADERS,
    TIMESTAMPS,
    chunk,
    chunk_by_headers,
    chunk_by_json_keys,
    chunk_by_size,
    chunk_by_timestamps,
    split_spans,
)
from fleet_rlm.program.agent.semantic_map import estimate_tokens, split_parts

LOG = "boot\n2026-01-02T03:04:05 start\n  more\n2026-01-02 03:05:00 end\n"
MARKDOWN = "intro\n# A\nx\n## B\n\ny\n#### deep\nz\n"

lines = st.sampled_from(
    ["# One", "## Two", "#### Four", "plain", "", "```", "~~~ py", "2026-01-02T10:00:00 x", "é ü"]
)
texts = st.lists(lines, max_size=30).map("\n".join)


def test_size_vectors():
    assert chunk_by_size("abcdefghij", 4, 1) == ["abcd", "defg", "ghij"]
    assert chunk_by_size("abcd", 4) == ["abcd"]
    assert chunk_by_size("", 4) == []
    assert chunk_by_size("a" * 200_001) == ["a" * 200_000, "a"]


@pytest.mark.parametrize(
    ("size", "overlap", "message"),
    [
        (0, 0, "size must be positive"),
        (4, -1, "overlap must be non-negative"),
        (4, 4, "overlap must be less than size"),
    ],
)
def test_sizes_that_cannot_be(size, overlap, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        chunk_by_size("abc", size, overlap)


def test_header_vectors():
    assert chunk_by_headers(MARKDOWN) == [
        {"header": "", "content": "intro", "start_pos": 0},
        {"header": "# A", "content": "x", "start_pos": 6},
        {"header": "## B", "content": "y\n#### deep\nz", "start_pos": 12},
    ]
    assert chunk_by_headers("no header \n") == [
        {"header": "", "content": "no header", "start_pos": 0}
    ]
    assert chunk_by_headers("") == []
    assert chunk_by_headers("# Only") == [{"header": "# Only", "content": "", "start_pos": 0}]


def test_timestamp_vectors():
    assert chunk_by_timestamps(LOG) == [
        {"timestamp": "", "content": "boot", "start_pos": 0},
        {
            "timestamp": "2026-01-02T",
            "content": "2026-01-02T03:04:05 start\n  more",
            "start_pos": 5,
        },
        {"timestamp": "2026-01-02", "content": "2026-01-02 03:05:00 end", "start_pos": 38},
    ]


def test_json_vectors():
    found = chunk_by_json_keys('{"a": {"b": 1}, "c": [1], "d": null, "e": 1.5}')
    assert [one["key"] for one in found] == ["a", "c", "d", "e"]
    assert [one["value_type"] for one in found] == ["dict", "list", "NoneType", "float"]
    assert found[0]["content"] == '{\n  "b": 1\n}'
    assert chunk_by_json_keys("") == []
    with pytest.raises(ValueError, match="Expected JSON object, got list"):
        chunk_by_json_keys("[1]")
    with pytest.raises(ValueError, match="Invalid JSON: "):
        chunk_by_json_keys("{")


@pytest.mark.parametrize("fence", ["```", "~~~", "````", "```python"])
def test_headers_in_code_fences_do_not_count(fence):
    closing = re.match(r"[`~]+", fence)[0]
    text = f"# Real\n{fence}\n# a comment\n{closing}\n# Next\n"
    assert [one["header"] for one in chunk_by_headers(text)] == ["# Real", "# Next"]
    assert "# a comment" in chunk_by_headers(text)[0]["content"]


def test_an_open_fence_reaches_to_the_end_and_a_shorter_one_does_not_close_it():
    assert len(chunk_by_headers("# A\n````\n```\n# no\n")) == 1


@pytest.mark.parametrize(
    ("name", "same"),
    [("SIZE", "size"), ("Header", "headers"), ("timestamp", "timestamps"), ("JSON-Keys", "json")],
)
def test_strategies_go_by_several_names(name, same):
    text = '{"k": 1}'
    assert chunk(text, name) == chunk(text, same)


def test_an_unknown_strategy_names_the_known_ones():
    with pytest.raises(ValueError, match="size, headers, timestamps, json_keys"):
        chunk("x", "semantic")


def test_a_pattern_of_ones_own():
    found = chunk("=A=\n1\n=B=\n2", "headers", pattern=r"^=\w=")
    assert [(one["header"], one["content"]) for one in found] == [("=A=", "1"), ("=B=", "2")]


@given(st.text(max_size=200), st.integers(1, 40), st.integers(0, 39))
def test_windows_overlap_as_told_and_give_the_text_back(text, size, overlap):
    overlap = min(overlap, size - 1)
    windows = chunk_by_size(text, size, overlap)
    assert text == "".join([*windows[:1], *(window[overlap:] for window in windows[1:])])
    assert all(len(window) == size for window in windows[:-1])
    for before, after in pairwise(windows):
        assert overlap == 0 or before[-overlap:] == after[:overlap]
        assert len(after) > overlap, "a window that adds nothing"


@given(texts, st.sampled_from([HEADERS, TIMESTAMPS]))
def test_spans_joined_are_the_text(text, pattern):
    spans = split_spans(text, pattern)
    assert "".join(text[span.start : span.end] for span in spans) == text
    assert all(text.startswith(span.mark, span.start) for span in spans)


@given(texts)
def test_chunks_stand_where_they_say_and_lose_white_space_only(text):
    for found, key in (
        (chunk_by_headers(text), "header"),
        (chunk_by_timestamps(text), "timestamp"),
    ):
        starts = [one["start_pos"] for one in found]
        assert starts == sorted(set(starts))
        for one in found:
            assert text[one["start_pos"] :].lstrip().startswith((one[key] or one["content"])[:1])
        shown = "".join(
            (one["header"] if key == "header" else "") + one["content"] for one in found
        )
        assert "".join(shown.split()) == "".join(text.split())


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=5))
def test_json_chunks_hold_their_values(values):
    found = chunk_by_json_keys(json.dumps(values))
    assert {one["key"]: json.loads(one["content"]) for one in found} == values


@given(texts, st.integers(1, 6), st.integers(3, 40))
def test_parts_are_whole_bounded_and_account_for_every_character(text, max_parts, max_tokens):
    parts = split_parts(text, "headers", max_parts, max_tokens)
    sent = "".join(parts.texts)
    assert text.startswith(sent)
    assert len(sent) + parts.left_out_chars == len(text)
    assert len(parts.texts) <= max_parts
    assert all(estimate_tokens(part) <= max_tokens for part in parts.texts)


def test_small_sections_share_a_part_only_where_there_are_too_many():
    text = "".join(f"# H{n}\nbody\n" for n in range(10))
    assert len(split_parts(text, "headers", 10).texts) == 10
    packed = split_parts(text, "headers", 9)
    assert packed.texts == [text]
    assert packed.left_out_chars == 0


def test_parts_by_size_and_by_key():
    text = "line\n" * 30_000
    assert "".join(split_parts(text, "size", 10).texts) == text
    assert split_parts('{"a": [1], "b": 2}', "json", 10).texts == ["a: [\n  1\n]\n", "b: 2\n"]


def test_the_sandbox_cuts_like_the_host():
    calls = [
        ("size", "abcdefghij", {"size": 4, "overlap": 1}),
        ("headers", MARKDOWN, {}),
        ("timestamps", LOG, {}),
        ("json_keys", '{"a": [1, null]}', {}),
    ]
    with LocalInterpreter() as box:
        box.execute(chunking.source())
        for strategy, text, options in calls:
            code = "SUBMIT(chunk(text, strategy, **options))"
            inputs = {"text": text, "strategy": strategy, "options": options}
            found = box.execute(code, inputs).output["output"]
            assert found == chunk(text, strategy, **options)
