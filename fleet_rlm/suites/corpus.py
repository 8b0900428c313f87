"""The user's own text files as a source of running text."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from random import Random

from fleet_rlm.errors import UsageError, unreadable
from fleet_rlm.suites.passages import SENTENCE_END, Passage, take
from fleet_rlm.suites.tokens import count_tokens

_PARAGRAPH_END = re.compile(r"\n(?:[ \t]*\n)+")
_LONGEST = 800  # characters; about 200 tokens, so a planted line lands within that of its depth
_SHORTEST = 200
_WILD = frozenset("*?[")


class Corpus:
    """Text files joined in order of their paths, cut into passages at paragraphs and sentences.

    The text itself is never changed, apart from line ends ("\\n") and one blank line between files.
    """

    def __init__(self, texts: list[str], *, origin: str) -> None:
        self._text = "".join(text.rstrip("\n") + "\n\n" for text in texts)
        self._starts = _cut(self._text)
        self._tokens = array("i", [-1]) * (len(self._starts) - 1)
        self._digest = hashlib.sha256(self._text.encode()).hexdigest()
        self.origin = origin
        """What the user asked for, for messages and the run's lock."""
        self.files = len(texts)

    @property
    def digest(self) -> str:
        """sha256 of the joined text."""
        return self._digest

    @property
    def chars(self) -> int:
        """Length of the joined text in characters."""
        return len(self._text)

    def passages(self, rng: Random, tokens: int) -> list[Passage]:
        """See `Source.passages`; wraps around to the first file when the corpus is shorter."""
        return take(self._from(rng.randrange(len(self._tokens))), tokens)

    def holds(self, text: str) -> bool:
        """Whether `text` occurs anywhere in the corpus."""
        return text in self._text

    def _from(self, index: int) -> Iterator[Passage]:
        while True:
            text = self._text[self._starts[index] : self._starts[index + 1]]
            if self._tokens[index] < 0:  # two threads may count the same passage: same result
                self._tokens[index] = count_tokens(text)
            yield Passage(text, self._tokens[index])
            index = (index + 1) % len(self._tokens)


def read_corpus(pattern: str) -> Corpus:
    """Read text files as one corpus.

    Args:
        pattern: a file, a folder (all files below it) or a glob such as "books/*.txt" or
            "~/notes/**/*.md"; hidden files are taken by name only.

    Raises:
        UsageError: nothing matches, or a file is unreadable, binary, not UTF-8; or all are empty.
    """
    paths = _find(pattern)
    if not paths:
        raise UsageError(
            f"No file matches corpus {pattern!r} (looked in {Path.cwd()})",
            fix="--corpus with a file, a folder or a quoted glob",
        )
    texts = [text for path in paths if (text := _read(path)).strip()]
    if not texts:
        names = f"{len(paths)} files" if len(paths) > 1 else str(paths[0])
        raise UsageError(
            f"Corpus {pattern!r} is empty: {names} without text", fix="--corpus with text files"
        )
    return Corpus(texts, origin=pattern)


def _find(pattern: str) -> list[Path]:
    if not pattern.strip():
        return []
    try:
        path = Path(pattern).expanduser()
        if path.is_file():
            return [path]
        parts = path.parts
        fixed = next((i for i, part in enumerate(parts) if _WILD & set(part)), len(parts))
        root, wild = Path(*parts[:fixed]), str(Path(*parts[fixed:]))
        found = root.glob(wild if fixed < len(parts) else "**/*")
        return sorted(p for p in found if p.is_file() and not _hidden(p.relative_to(root)))
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"Corpus {pattern!r} cannot be searched: {error}",
            fix="--corpus with a file, a folder or a quoted glob",
        ) from error


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(f"Corpus file {path}", error) from error
    if b"\0" in data:
        raise UsageError(
            f"Corpus file {path} is binary ({len(data):,} bytes), not text",
            fix='name the texts only, as in --corpus "notes/**/*.md"',
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at offset {error.start:,}"
        raise UsageError(
            f"Corpus file {path} is not UTF-8: {found}",
            fix=f"iconv -f latin1 -t utf-8 {path}",
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _cut(text: str) -> array[int]:
    """Where passages start, and the end of the text."""
    starts = array("q", [0])
    for match in _PARAGRAPH_END.finditer(text):
        while match.end() - starts[-1] > _LONGEST:
            starts.append(_break(text, starts[-1]))
        if match.end() > starts[-1]:
            starts.append(match.end())
    return starts


def _break(text: str, start: int) -> int:
    """The last sentence end, else the last space, else simply the end of a longest passage."""
    stop = start + _LONGEST
    ends = [match.end() for match in SENTENCE_END.finditer(text, start + _SHORTEST, stop)]
    return ends[-1] if ends else text.rfind(" ", start + _SHORTEST, stop) + 1 or stop
