"""Turns PDF, Office, HTML, EPUB and RTF files into text, with headings as Markdown has them.

The libraries come with the extra `documents` and are imported when a file needs one.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fleet_rlm.errors import DataError, UsageError, boundary
from fleet_rlm.program.agent.roots import Refused

MAX_UNPACKED = 512 << 20
"""Bytes that a zipped document may unpack to."""

MAX_MEMBERS = 20_000

OLD = {".doc": ".docx", ".ppt": ".pptx", ".xls": ".xlsx"}
"""Binary formats of old Office versions, which no library reads reliably, and what to save as."""


class Extracted(NamedTuple):
    """The text of a document that is no plain text."""

    text: str
    source_type: str
    method: str
    """Name of the library."""

    page_count: int | None
    """Pages, slides or sheets; None where there are none."""


def extract(file: Path, shown: str) -> Extracted | None:
    """The text of a document, or None when its name does not say that it is one.

    Args:
        file: where it is.
        shown: its path, for messages.

    Raises:
        Refused: scanned, locked, too large when unpacked, or in an old binary format.
        DataError: damaged.
        UsageError: the library for it is not installed.
    """
    kind = file.suffix.lower()
    if kind in OLD:
        raise Refused(f"{shown!r} is in an old binary format.", fix=f"save it as {OLD[kind]}")
    read = READERS.get(kind)
    if read is None:
        return None
    try:
        with boundary(DataError, f"reading {shown!r}"), _library(kind):
            if kind in ZIPPED:
                _check_unpacked(file, shown)
            return read(file, shown)
    except DataError as error:
        if isinstance(error.__cause__, zipfile.BadZipFile | UnicodeDecodeError):
            raise Refused(f"{shown!r} is no {kind} file: {error.__cause__}") from error
        raise


@contextmanager
def _library(kind: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UsageError(
            f"Reading {kind} files needs {error.name}, which is not installed.",
            fix="pip install 'fleet-rlm[documents]'",
        ) from error


def _check_unpacked(file: Path, shown: str) -> None:
    with zipfile.ZipFile(file) as packed:
        members = packed.infolist()
    total = sum(member.file_size for member in members)
    if total > MAX_UNPACKED or len(members) > MAX_MEMBERS:
        raise Refused(
            f"{shown!r} unpacks to {total:,} bytes in {len(members):,} parts, at most "
            f"{MAX_UNPACKED:,} in {MAX_MEMBERS:,} are read."
        )


def _read_pdf(file: Path, shown: str) -> Extracted:
    from pypdf import PdfReader

    reader = PdfReader(file)
    if reader.is_encrypted and not reader.decrypt(""):
        raise Refused(f"PDF '{shown}' is locked with a password.")
    pages = [page.extract_text() for page in reader.pages]
    text = "\n\n".join(pages)
    if not text.strip():
        raise Refused(
            f"PDF '{shown}' appears to be image-only or scanned. OCR is required before analysis."
        )
    return Extracted(text, "pdf", "pypdf", len(pages))


def _read_docx(file: Path, shown: str) -> Extracted:
    from docx import Document
    from docx.table import Table

    parts = []
    for block in Document(str(file)).iter_inner_content():
        if isinstance(block, Table):
            rows = (_row(cell.text for cell in row.cells) for row in block.rows)
            parts.append("\n".join(rows))
        else:
            style = (block.style.name or "") if block.style else ""
            name, _, level = style.partition(" ")
            is_heading = name == "Heading" and level.isdecimal()
            mark = "#" * int(level) + " " if is_heading else "# " if style == "Title" else ""
            parts.append(mark + block.text)
    return Extracted(_join(parts), "docx", "python-docx", None)


def _read_pptx(file: Path, shown: str) -> Extracted:
    from pptx import Presentation

    slides = list(Presentation(str(file)).slides)
    parts: list[str] = []
    for number, slide in enumerate(slides, start=1):
        parts.append(f"# Slide {number}")
        for shape in slide.shapes:
            parts += _shape_texts(shape)
        if slide.has_notes_slide and (notes := slide.notes_slide.notes_text_frame):
            parts.append(notes.text)
    return Extracted(_join(parts), "pptx", "python-pptx", len(slides))


def _shape_texts(shape: Any) -> Iterator[str]:
    if shape.has_text_frame:
        yield shape.text_frame.text
    elif getattr(shape, "has_table", False):
        yield "\n".join(_row(cell.text for cell in row.cells) for row in shape.table.rows)
    for inner in getattr(shape, "shapes", ()):  # of a group
        yield from _shape_texts(inner)


def _read_xlsx(file: Path, shown: str) -> Extracted:
    from openpyxl import load_workbook  # type: ignore[import-untyped]

    book = load_workbook(file, read_only=True, data_only=True)
    parts = []
    for sheet in book.worksheets:
        rows = (_row("" if v is None else str(v) for v in row) for row in sheet.values)
        parts += [f"# Sheet {sheet.title}", "\n".join(row for row in rows if row.strip(" |"))]
    count = len(book.worksheets)
    book.close()
    return Extracted(_join(parts), "xlsx", "openpyxl", count)


def _read_html(file: Path, shown: str) -> Extracted:
    return Extracted(_html_text(file.read_bytes()), "html", "beautifulsoup4", None)


def _read_epub(file: Path, shown: str) -> Extracted:
    from bs4 import BeautifulSoup

    with zipfile.ZipFile(file) as packed:
        container = BeautifulSoup(packed.read("META-INF/container.xml"), "html.parser")
        package = container.find("rootfile")
        place = str(package["full-path"]) if package else ""
        book = BeautifulSoup(packed.read(place), "html.parser")
        files = {str(item.get("id")): str(item.get("href")) for item in book.find_all("item")}
        order = [files.get(str(item.get("idref")), "") for item in book.find_all("itemref")]
        folder = place.rpartition("/")[0]
        names = [f"{folder}/{name}".lstrip("/") for name in order if name]
        chapters = [_html_text(packed.read(name)) for name in names]
    return Extracted(_join(chapters), "epub", "beautifulsoup4", None)


def _read_rtf(file: Path, shown: str) -> Extracted:
    from striprtf.striprtf import rtf_to_text

    plain: str = rtf_to_text(  # type: ignore[no-untyped-call]
        file.read_text(encoding="latin-1"), errors="replace"
    )
    return Extracted(plain, "rtf", "striprtf", None)


def _html_text(page: bytes) -> str:
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(page, "html.parser")
    for hidden in soup(["script", "style", "noscript", "template"]):
        hidden.decompose()
    for level in range(1, 7):
        for heading in soup(f"h{level}"):
            heading.string = f"{'#' * level} {heading.get_text(' ', strip=True)}"
    for block in soup(["p", "li", "tr", "br", "div", "pre", *(f"h{n}" for n in range(1, 7))]):
        block.append("\n")
    for cell in soup(["td", "th"]):
        cell.append(" | ")
    lines = (line.strip(" |") for line in soup.get_text().splitlines())
    return _join(line for line in lines if line)


def _row(cells: Iterable[str]) -> str:
    return " | ".join(" ".join(cell.split()) for cell in cells)


def _join(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part.strip())


READERS: Mapping[str, Callable[[Path, str], Extracted]] = {
    ".pdf": _read_pdf,
    ".docx": _read_docx,
    ".pptx": _read_pptx,
    ".xlsx": _read_xlsx,
    ".html": _read_html,
    ".htm": _read_html,
    ".epub": _read_epub,
    ".rtf": _read_rtf,
}
"""File suffix -> how its text is read."""

ZIPPED = {".docx", ".pptx", ".xlsx", ".epub"}
