"""Running text: the built-in prose, a user's files, and what is said of files that do not work."""

from __future__ import annotations

import os
import re
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_rlm.errors import UsageError
from fleet_rlm.lexicon import SUBJECT_OF, SUBJECTS
from fleet_rlm.suites import prose
from fleet_rlm.suites.corpus import Corpus, read_corpus
from fleet_rlm.suites.passages import trim
from fleet_rlm.suites.prose import Prose
from fleet_rlm.suites.tokens import count_tokens

BOOKS = Path(__file__).parents[2] / "shared" / "data" / "books"


def joined(passages):
    return "".join(passage.text for passage in passages)


def test_prose_is_seeded_varied_and_neutral():
    text = joined(Prose().passages(Random("a"), 30_000))
    assert text == joined(Prose().passages(Random("a"), 30_000))
    assert text != joined(Prose().passages(Random("b"), 30_000))
    sentences = re.split(r"(?<=[.”])\s+", text)
    assert len(set(sentences)) > 0.9 * len(sentences)
    assert not re.search(r"\d|\b[A-Z]{2,}\b|=|\bVAR\b|\ba [aeiou]", text)


def test_prose_tables_hold_no_word_of_the_lexicon():
    tables = ("SENTENCES", "PEOPLE", "PLACES", "THINGS", "TIMES", "QUALITIES", "MANNERS", "REASONS")
    words = " ".join(line for table in tables for line in getattr(prose, table)).lower()
    assert [word for word in (*SUBJECTS, *SUBJECT_OF) if word in words] == []


@given(st.integers(200, 4000), st.integers())
@settings(max_examples=25, deadline=None)
def test_prose_fills_what_was_asked_within_a_sentence(tokens, seed):
    passages = Prose().passages(Random(seed), tokens)
    assert tokens - 26 <= count_tokens(joined(passages)) <= tokens


PARAGRAPH = st.text(alphabet="ab, .é東!\n", min_size=1, max_size=300).filter(str.strip)


@given(st.lists(PARAGRAPH, min_size=1, max_size=6), st.integers(50, 3000), st.integers())
@settings(max_examples=60, deadline=None)
def test_corpus_passages_are_the_texts_own_and_wrap_around(parts, tokens, seed):
    corpus = Corpus(["\n\n".join(parts)], origin="x")
    passages = corpus.passages(Random(seed), tokens)
    assert sum(passage.tokens for passage in passages) <= tokens
    around = corpus._text * (2 + len(joined(passages)) // len(corpus._text))
    assert joined(passages) in around


def test_corpus_passages_end_at_sentences():
    sentence = "It was a long day for the clerk, and nobody had come to ask. "
    corpus = Corpus([sentence * 200], origin="x")
    passages = corpus.passages(Random(1), 2000)
    assert all(passage.text.rstrip().endswith("ask.") for passage in passages)
    assert max(len(passage.text) for passage in passages) <= 800


def test_a_text_without_spaces_is_still_cut():
    corpus = Corpus(["東" * 5000], origin="x")
    assert 980 <= count_tokens(joined(corpus.passages(Random(1), 1000))) <= 1000


def test_trim_prefers_sentences_then_words():
    assert trim("One two. Three four five six.", 6) == "One two."
    assert trim("One " * 60, 10) == " ".join(["One"] * 10)
    assert trim("word", 0) == ""


def test_reading_takes_files_folders_and_globs_in_order(tmp_path, monkeypatch):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_bytes("\ufefffirst\r\nline é".encode())
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.md").write_text("third")
    whole = read_corpus(str(tmp_path))
    assert whole.files == 3
    assert whole._text == "first\nline é\n\nsecond\n\nthird\n\n"
    assert read_corpus(str(tmp_path / "*.txt")).files == 2
    assert read_corpus(str(tmp_path / "**" / "*.md")).files == 1
    assert read_corpus(str(tmp_path / "b.txt")).digest == Corpus(["second"], origin="y").digest
    assert whole.digest != read_corpus(str(tmp_path / "b.txt")).digest
    monkeypatch.chdir(tmp_path)
    assert read_corpus("*.txt").files == 2


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.txt", b"", "is empty: .*empty.txt without text"),
        ("blank.txt", b" \n\t\n", "is empty"),
        ("image.png", b"\x89PNG\0\0", r"image.png is binary \(6 bytes\)"),
        (
            "latin.txt",
            "café".encode("latin1"),
            "latin.txt is not UTF-8: byte 0xe9 at offset 3.* Try: iconv",
        ),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=message) as caught:
        read_corpus(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pattern", ["nothing/*.txt", "nothing.txt", "", "~nobody-here/x"])
def test_no_match_is_one_line(pattern):
    with pytest.raises(UsageError, match=r"No file matches corpus|cannot be searched"):
        read_corpus(pattern)


def test_an_unreadable_file_is_one_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("text")
    path.chmod(0)
    if os.access(path, os.R_OK):
        path.unlink()
        path.symlink_to(path)  # root reads everything but a loop
        with pytest.raises(UsageError, match=r"No file matches|cannot be searched|unreadable"):
            read_corpus(str(path))
    else:
        with pytest.raises(UsageError, match="unreadable: Permission denied"):
            read_corpus(str(path))


def test_two_empty_files_are_counted(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text("")
    with pytest.raises(UsageError, match="2 files without text"):
        read_corpus(str(tmp_path))


@pytest.mark.skipif(not BOOKS.is_dir(), reason=f"the novels are absent ({BOOKS})")
def test_real_novels_are_sliced_verbatim():
    corpus = read_corpus(str(BOOKS / "*.txt"))
    assert corpus.chars > 9_000_000
    text = joined(corpus.passages(Random("x"), 200_000))
    assert text in corpus._text * 2
    assert 199_000 <= count_tokens(text) <= 200_000
