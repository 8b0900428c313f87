"""Looks into files of the host for a program: lists folders, reads lines, searches content."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from fleet_rlm.program.agent.roots import MAX_WALKED, Refused, Roots
from fleet_rlm.program.context_ref import shorten

SHOWN_FILES = 100
SHOWN_HITS = 20
MAX_HITS_PER_FILE = 50
MAX_LINES = 2_000
MAX_LINE_CHARS = 2_000
"""Longer lines are shown by their two ends."""

SEARCH_LINE_CHARS = 100_000
"""How far into a line a search looks."""

MATCH_S = 2.0
"""Seconds for one match of a pattern that a model wrote, and for all matches that cut one text."""


class Pattern:
    """A regular expression of unknown origin: it gives up in time instead of hanging the process.

    Args:
        expression: in the syntax of `re`.
        multiline: whether ^ and $ match at each line.

    Raises:
        Refused: it is no regular expression.
    """

    def __init__(self, expression: str, *, multiline: bool = False) -> None:
        # `re` has no deadline and holds the interpreter's lock while it backtracks
        import regex  # type: ignore[import-untyped]

        try:
            self._compiled = regex.compile(expression, regex.M if multiline else 0)
        except regex.error as error:
            raise Refused(f"{expression!r} is not a regular expression: {error}") from error
        self._expression = expression

    def search(self, text: str) -> bool:
        """Whether it matches anywhere.

        Raises:
            Refused: it took too long.
        """
        try:
            return self._compiled.search(text, timeout=MATCH_S, concurrent=True) is not None
        except TimeoutError:
            raise self._too_slow() from None

    def finditer(self, text: str) -> Iterator[Any]:
        """All matches.

        Raises:
            Refused: it took too long.
        """
        try:
            yield from self._compiled.finditer(text, timeout=MATCH_S * 10, concurrent=True)
        except TimeoutError:
            raise self._too_slow() from None

    def _too_slow(self) -> Refused:
        return Refused(f"Pattern {self._expression!r} takes too long: use a simpler one.")


class Listing(NamedTuple):
    """Files of a folder: the first of them, and figures of all."""

    files: list[str]
    total: int
    total_bytes: int


def list_files(roots: Roots, path: str = ".", pattern: str = "**/*") -> dict[str, Any]:
    """Files below a folder: `{status, path, files, count, total_bytes, hint}`.

    Raises:
        Refused: no folder, or outside of the roots.
    """
    found = scan(roots, path, pattern)
    return {
        "status": "ok",
        "path": path,
        "files": found.files,
        "count": found.total,
        "total_bytes": found.total_bytes,
        "hint": _hint(found),
    }


def scan(roots: Roots, path: str, pattern: str = "**/*") -> Listing:
    """The files of a folder that `pattern` matches, relative to it.

    Raises:
        Refused: no folder, or outside of the roots.
    """
    folder = roots.resolve(path)
    if not folder.is_dir():
        raise Refused(f"{path!r} is not a folder.")
    files: list[str] = []
    count = total = 0
    for file in roots.walk(folder, pattern):
        count += 1
        total += file.stat().st_size
        if len(files) < SHOWN_FILES:
            files.append(file.relative_to(folder).as_posix())
    return Listing(files, count, total)


def read_file_slice(
    roots: Roots, path: str, start_line: int = 1, num_lines: int = 100
) -> dict[str, Any]:
    """Lines of a text file, counted from 1: `{status, path, start_line, lines, returned_count,
    total_lines}`.

    Raises:
        Refused: a file that cannot be read as text, or numbers out of range.
    """
    if start_line < 1 or not 1 <= num_lines <= MAX_LINES:
        raise Refused(f"start_line begins at 1, and num_lines goes from 1 to {MAX_LINES:,}.")
    lines: list[dict[str, Any]] = []
    total = 0
    for total, text in _numbered_lines(roots.resolve_file(path), path):
        if start_line <= total < start_line + num_lines:
            lines.append({"line": total, "text": shorten(text, MAX_LINE_CHARS)})
    return {
        "status": "ok",
        "path": path,
        "start_line": start_line,
        "lines": lines,
        "returned_count": len(lines),
        "total_lines": total,
    }


def find_files(roots: Roots, pattern: str, path: str = ".", include: str = "") -> dict[str, Any]:
    """Lines that match an expression: `{status, pattern, search_path, include, count, hits}`.

    At most 50 lines of one file count; the first 20 are shown. Binary files and hidden folders are
    left out.

    Raises:
        Refused: outside of the roots, or no regular expression, or one that takes too long.
    """
    compiled = Pattern(pattern)
    place = roots.resolve(path)
    files = [place] if place.is_file() else roots.walk(place, include or "**/*")
    base = place.parent if place.is_file() else place
    hits: list[dict[str, Any]] = []
    count = 0
    for file in files:
        name = file.relative_to(base).as_posix()
        for number, text in islice(_matching_lines(file, compiled), MAX_HITS_PER_FILE):
            count += 1
            if len(hits) < SHOWN_HITS:
                shown = shorten(text, MAX_LINE_CHARS // 4)
                hits.append({"path": name, "line": number, "text": shown})
    return {
        "status": "ok",
        "pattern": pattern,
        "search_path": path,
        "include": include,
        "count": count,
        "hits": hits,
    }


def _numbered_lines(file: Path, shown: str) -> Iterator[tuple[int, str]]:
    try:
        with file.open(encoding="utf-8", newline=None) as lines:
            for number, line in enumerate(lines, start=1):
                yield number, line.rstrip("\n")
    except UnicodeDecodeError:
        raise Refused(f"Could not decode {shown!r} as UTF-8 text.") from None
    except OSError as error:
        raise Refused(f"Cannot read {shown!r}: {error.strerror}.") from error


def _matching_lines(file: Path, pattern: Pattern) -> Iterator[tuple[int, str]]:
    try:
        with file.open("rb") as sample:
            if b"\0" in sample.read(2_048):
                return
        with file.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                text = line.rstrip("\n")
                if pattern.search(text[:SEARCH_LINE_CHARS]):
                    yield number, text
    except OSError:
        return  # gone or not readable: the others are still worth searching


def _hint(found: Listing) -> str:
    if not found.total:
        return "No file matches: try pattern='**/*'."
    if found.total > len(found.files):
        limit = f" of at least {found.total:,}" if found.total >= MAX_WALKED else ""
        return f"The first {len(found.files)} files{limit} are shown: narrow the pattern."
    return "Load one with load_document, or search them with find_files."
