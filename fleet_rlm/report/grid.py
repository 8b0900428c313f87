"""A table of text that never cuts a figure: aligned for a terminal, as Markdown, or as HTML."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, slots=True)
class Grid:
    """Heads, rows of as many cells, and which columns are words: they are aligned to the left."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Collection[str] = ()

    def to_text(self) -> str:
        """Columns two spaces apart, as wide as they need to be."""
        lines = [self.heads, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.heads))]
        shown = [
            "  ".join(
                cell.ljust(width) if head in self.words else cell.rjust(width)
                for head, cell, width in zip(self.heads, line, widths, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join([shown[0], "-" * max(map(len, shown)), *shown[1:]])

    def to_markdown(self) -> str:
        """A pipe table."""
        rules = ["---" if head in self.words else "---:" for head in self.heads]
        lines = [self.heads, rules, *([cell.replace("|", "\\|") for cell in r] for r in self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def to_html(self) -> str:
        """A table whose figures are of class `n`."""
        kinds = ["" if head in self.words else ' class="n"' for head in self.heads]

        def line(cells: Sequence[str], tag: str) -> str:
            shown = (f"<{tag}{kind}>{escape(cell)}</{tag}>"
                     for kind, cell in zip(kinds, cells, strict=True))  # fmt: skip
            return f"<tr>{''.join(shown)}</tr>"

        body = "\n".join(line(row, "td") for row in self.rows)
        head = line(self.heads, "th")
        return f"<div class=wide><table><thead>{head}</thead>\n<tbody>{body}</tbody></table></div>"
