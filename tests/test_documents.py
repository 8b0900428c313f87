"""Documents, folders and volumes: every format, every refusal, and no way out."""

import os
import zipfile

import pytest
from docx import Document as Docx
from openpyxl import Workbook
from pptx import Presentation
from pypdf import PdfReader, PdfWriter

from fleet_rlm.errors import DataError, UsageError
from fleet_rlm.program.agent import formats
from fleet_rlm.program.agent.chunking import chunk_by_headers
from fleet_rlm.program.agent.documents import CACHE_LIMIT, Document, DocumentCache, read_document
from fleet_rlm.program.agent.files import Pattern, find_files, list_files, read_file_slice
from fleet_rlm.program.agent.roots import Refused, Roots
from fleet_rlm.program.agent.volume import LAYOUT, LocalVolume, Volume


def make_pdf(path, text):
    stream = f"BT /F1 24 Tf 72 720 Td ({text}) Tj ET".encode() if text else b""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % len(out)
    path.write_bytes(out + b"xref\n0 6\n0000000000 65535 f \n" + table + end)
    return path


def make_docx(path):
    made = Docx()
    made.add_heading("Report", level=1)
    made.add_paragraph("Revenue grew.")
    table = made.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "Q1", "42"
    made.save(str(path))
    return path


def make_pptx(path):
    made = Presentation()
    slide = made.slides.add_slide(made.slide_layouts[1])
    slide.shapes.title.text = "Plan"
    slide.placeholders[1].text = "Ship it"
    slide.notes_slide.notes_text_frame.text = "Say thanks"
    made.save(str(path))
    return path


def make_xlsx(path):
    book = Workbook()
    book.active.title = "Costs"
    book.active.append(["item", "usd"])
    book.active.append(["tea", 3.5])
    book.save(path)
    return path


def make_epub(path):
    container = '<container><rootfile full-path="OPS/book.opf"/></container>'
    package = (
        '<package><item id="b" href="two.xhtml"/><item id="a" href="one.xhtml"/>'
        '<itemref idref="a"/><itemref idref="b"/></package>'
    )
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("META-INF/container.xml", container)
        packed.writestr("OPS/book.opf", package)
        packed.writestr("OPS/one.xhtml", "<h1>First</h1><p>begin</p>")
        packed.writestr("OPS/two.xhtml", "<h1>Second</h1><p>end</p>")
    return path


HTML = (
    "<html><head><style>p {}</style><script>evil()</script></head><body><h2>Title</h2>"
    "<p>One <b>bold</b> word.</p><ul><li>first</li><li>second</li></ul>"
    "<table><tr><td>a</td><td>b</td></tr></table></body></html>"
)


ENDLESS = r"(x|xx)+(x|xx)+(x|xx)+y|(.*)(.*)(.*)(.*)z"
"""A pattern that backtracks for ever."""


def read(path):
    return read_document(path, path.name)


def test_a_pdf(tmp_path):
    found = read(make_pdf(tmp_path / "a.pdf", "The code is 4711"))
    assert "The code is 4711" in found.text
    assert (found.source_type, found.method, found.page_count) == ("pdf", "pypdf", 1)


def test_office_files(tmp_path):
    word = read(make_docx(tmp_path / "a.docx"))
    assert word.text == "# Report\n\nRevenue grew.\n\nQ1 | 42"
    slides = read(make_pptx(tmp_path / "a.pptx"))
    assert slides.text == "# Slide 1\n\nPlan\n\nShip it\n\nSay thanks"
    sheet = read(make_xlsx(tmp_path / "a.xlsx"))
    assert sheet.text == "# Sheet Costs\n\nitem | usd\ntea | 3.5"
    assert (word.page_count, slides.page_count, sheet.page_count) == (None, 1, 1)


def test_html_epub_and_rtf(tmp_path):
    (tmp_path / "a.html").write_text(HTML)
    (tmp_path / "a.rtf").write_text(r"{\rtf1\ansi Hello \b bold\b0 .\par Bye}")
    page = read(tmp_path / "a.html").text
    assert page.split("\n\n") == ["## Title", "One bold word.", "first", "second", "a | b"]
    assert read(make_epub(tmp_path / "a.epub")).text.split() == [
        *("#", "First", "begin"),
        *("#", "Second", "end"),
    ]
    assert read(tmp_path / "a.rtf").text.splitlines()[0] == "Hello bold."


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_in_its_encodings(tmp_path, encoding):
    (tmp_path / "a.txt").write_text("grüße\n", encoding=encoding)
    found = read(tmp_path / "a.txt")
    assert (found.text, found.lines, found.source_type) == ("grüße\n", 1, "text")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", b"\x00\xff\xfe\xfa" * 9, r"Binary file detected at 'a\.bin'\. Use a text file"),
        ("a.dat", bytes(range(128, 256)), r"Binary file detected at 'a\.dat'"),
        ("a.txt", b"plain latin text, then " + b"\xe9", r"Could not decode 'a\.txt' as UTF-8 text"),
        ("a.doc", b"\xd0\xcf", r"old binary format.*save it as \.docx"),
        ("a.docx", b"no zip at all", r"'a\.docx' is no \.docx file"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Refused, match=message):
        read(tmp_path / name)


def test_a_scanned_a_locked_and_a_damaged_pdf(tmp_path):
    with pytest.raises(Refused, match=r"image-only or scanned\. OCR is required before analysis"):
        read(make_pdf(tmp_path / "scan.pdf", ""))
    locked = PdfWriter(clone_from=PdfReader(make_pdf(tmp_path / "open.pdf", "x")))
    locked.encrypt("secret")
    locked.write(tmp_path / "locked.pdf")
    with pytest.raises(Refused, match="locked with a password"):
        read(tmp_path / "locked.pdf")
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.4\nnothing")
    with pytest.raises(DataError, match=r"reading 'bad\.pdf'"):
        read(tmp_path / "bad.pdf")


def test_a_document_that_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    path = make_docx(tmp_path / "bomb.docx")
    monkeypatch.setattr(formats, "MAX_UNPACKED", 1_000)
    with pytest.raises(Refused, match="unpacks to"):
        read(path)


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    path = make_pdf(tmp_path / "a.pdf", "x")
    monkeypatch.setitem(__import__("sys").modules, "pypdf", None)
    with pytest.raises(UsageError, match=r"pip install 'fleet-rlm\[documents\]'"):
        read(path)


def test_the_least_recently_used_document_goes_first():
    cache = DocumentCache()
    for number in range(CACHE_LIMIT):
        cache.add(f"d{number}", Document(text=str(number)))
    cache.get("d0")
    cache.add("one more", Document(text="x"))
    assert len(cache) == CACHE_LIMIT
    assert "d0" in cache
    assert "d1" not in cache
    assert cache.active_alias == "one more"


def test_active_means_the_active_document():
    cache = DocumentCache()
    with pytest.raises(Refused, match="No document is loaded"):
        cache.get()
    cache.add("active", Document(text="first"))
    cache.add("b", Document(text="second"))
    assert cache.get("active").text == "second"
    cache.activate("active")
    assert cache.get().text == "first"
    with pytest.raises(Refused, match="Did you mean 'b'"):
        cache.get("bb")
    with pytest.raises(Refused, match="alias"):
        cache.add(" ", Document(text=""))


@pytest.fixture
def tree(tmp_path):
    inside = tmp_path / "inside"
    (inside / "sub" / ".hidden").mkdir(parents=True)
    (inside / "a.txt").write_text("alpha\nbeta\nalpha beta\n")
    (inside / "sub" / "b.md").write_text("# Title\nalpha\n")
    (inside / "sub" / ".hidden" / "c.txt").write_text("alpha")
    (inside / "raw.bin").write_bytes(b"\0alpha")
    (tmp_path / "secret.txt").write_text("alpha secret")
    (inside / "way_out").symlink_to(tmp_path / "secret.txt")
    (inside / "folder_out").symlink_to(tmp_path)
    (inside / "way_in").symlink_to(inside / "a.txt")
    os.mkfifo(inside / "pipe")
    return inside


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "sub/../../secret.txt",
        "way_out",
        "folder_out/secret.txt",
        "/etc/passwd",
        "/nowhere/at/all",
        "~/.ssh",
        "",
        "a\0b",
        "x" * 5_000,
    ],
)
def test_no_path_leads_out_of_the_roots(tree, path):
    roots = Roots([tree])
    with pytest.raises(Refused) as caught:
        roots.resolve_file(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(Refused):
        read_file_slice(roots, path)


def test_paths_inside_are_found_however_they_are_written(tree, tmp_path):
    roots = Roots([tree])
    real = tree / "a.txt"
    for path in ("a.txt", "sub/../a.txt", str(real), "way_in", "folder_out/inside/a.txt"):
        assert roots.resolve_file(path) == real
    assert Roots([tree / "sub", tree]).resolve_file("a.txt") == real
    for path in ("pipe", "sub"):
        with pytest.raises(Refused, match="is not a file"):
            roots.resolve_file(path)
    with pytest.raises(Refused, match="folders that may be read: none"):
        Roots([]).resolve("a.txt")
    with pytest.raises(UsageError, match="is not a folder"):
        Roots([tree / "a.txt"])


def test_files_are_listed_without_what_leads_out(tree):
    roots = Roots([tree])
    found = list_files(roots)
    assert found["files"] == ["a.txt", "raw.bin", "way_in", "sub/b.md"]
    assert (found["count"], found["status"]) == (4, "ok")
    assert found["total_bytes"] == sum((tree / name).stat().st_size for name in found["files"])
    assert list_files(roots, ".", "*.md")["files"] == ["sub/b.md"]
    assert list_files(roots, "sub", "**/*")["files"] == ["b.md"]
    for pattern in ("../*", "/etc/*"):
        with pytest.raises(Refused, match="leads out"):
            list_files(roots, ".", pattern)


def test_a_long_listing_shows_a_hundred_and_counts_all(tmp_path):
    for number in range(130):
        (tmp_path / f"{number:03}.txt").touch()
    found = list_files(Roots([tmp_path]))
    assert (len(found["files"]), found["count"]) == (100, 130)
    assert "narrow" in found["hint"]


def test_lines_are_counted_from_one(tree):
    found = read_file_slice(Roots([tree]), "a.txt", start_line=2, num_lines=5)
    assert found["lines"] == [{"line": 2, "text": "beta"}, {"line": 3, "text": "alpha beta"}]
    assert (found["returned_count"], found["total_lines"], found["start_line"]) == (2, 3, 2)
    with pytest.raises(Refused, match="start_line"):
        read_file_slice(Roots([tree]), "a.txt", start_line=0)
    (tree / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(Refused, match=r"Could not decode 'latin\.txt' as UTF-8 text"):
        read_file_slice(Roots([tree]), "latin.txt")


def test_content_is_searched_without_any_other_program(tree, monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = find_files(Roots([tree]), r"^alpha\b")
    assert [(hit["path"], hit["line"]) for hit in found["hits"]] == [
        *(("a.txt", 1), ("a.txt", 3)),
        *(("way_in", 1), ("way_in", 3)),
        ("sub/b.md", 2),
    ]
    assert found["count"] == 5
    assert find_files(Roots([tree]), "alpha", include="*.md")["count"] == 1
    assert find_files(Roots([tree]), "alpha", path="sub/b.md")["hits"][0]["path"] == "b.md"


def test_a_search_shows_twenty_hits_and_counts_fifty_in_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("hit\n" * 80)
    found = find_files(Roots([tmp_path]), "hit")
    assert (len(found["hits"]), found["count"]) == (20, 50)


def test_a_pattern_is_refused_when_it_is_none_or_never_ends(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("x" * 5_000 + "!")
    monkeypatch.setattr("fleet_rlm.program.agent.files.MATCH_S", 0.2)
    with pytest.raises(Refused, match="is not a regular expression"):
        find_files(Roots([tmp_path]), "(")
    with pytest.raises(Refused, match="takes too long"):
        find_files(Roots([tmp_path]), ENDLESS)
    with pytest.raises(Refused, match="takes too long"):
        chunk_by_headers("x" * 5_000 + "!", Pattern(ENDLESS, multiline=True))


@pytest.fixture
def volume(tmp_path):
    return LocalVolume(tmp_path / "volume")


def test_a_volume_keeps_text_and_has_its_layout(volume):
    assert isinstance(volume, Volume)
    volume.write("memory/deep/note.md", "grüße")
    assert LocalVolume(volume.root).read("memory/deep/note.md") == "grüße"
    volume.write("memory/deep/note.md", "new")
    assert volume.read("memory/deep/note.md") == "new"
    assert [entry.name for entry in volume.entries()] == sorted(LAYOUT)
    assert volume.entries("memory")[0] == ("deep", "directory")
    assert volume.entries("memory/deep") == [("note.md", "file")]


@pytest.mark.parametrize(
    "path", ["../x", "memory/../../x", "/etc/passwd", "link/x", "file_link", "", "a\0b"]
)
def test_no_path_leads_out_of_a_volume(volume, tmp_path, path):
    volume.write("a.txt", "x")
    (volume.root / "link").symlink_to(tmp_path)
    (volume.root / "file_link").symlink_to("/etc/passwd")
    for use in (volume.read, volume.entries, lambda p: volume.write(p, "evil")):
        with pytest.raises(Refused):
            use(path)
    assert not (tmp_path / "x").exists()


def test_what_a_volume_cannot_do_is_said(volume):
    with pytest.raises(Refused, match=r"File not found: memory/none\.md"):
        volume.read("memory/none.md")
    with pytest.raises(Refused, match="is not a folder"):
        volume.entries("nowhere")
    with pytest.raises(Refused, match="is a folder"):
        volume.write("memory", "x")
    volume.write("a", "x")
    with pytest.raises(Refused, match="Cannot write"):
        volume.write("a/b", "x")
    (volume.root / "raw").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(Refused, match="Could not decode"):
        volume.read("raw")
