"""`make bench`: runs benchmark rooms, all of them without a name, and writes docs/performance.md.

With names it writes the sections of those rooms anew, unless a variable `BENCH_...` makes them
smaller, and leaves the rest of the page as it is.

A room is a module of this folder with a function `tables`; it goes by the first word of its file's
name, so that none hides a package that it needs.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "performance.md"
ROOMS = {
    path.stem.partition("_")[0]: path.stem
    for path in sorted(HERE.glob("*.py"))
    if path.stem not in ("__main__", "measure")
}

HEAD = """\
# Performance

<!-- Written by `make bench`. -->

How long things take beside what DSPy, tiktoken or plain Python need for the same work. The arms of
a table take turns, and CPU counts every process of an arm. Model calls, where there are any, are
those of the simulated model.

"""


def main(wanted: list[str]) -> None:
    unknown = set(wanted) - set(ROOMS)
    if unknown:
        raise SystemExit(f"No bench room {unknown.pop()!r}. Known: {', '.join(ROOMS)}.")
    sections = {}
    for room in wanted or ROOMS:
        parts = [f"## {room}\n\n```bash\nmake bench-{room}\n```\n"]
        if wanted:
            parts.append(f"In a run of its own. {_machine()}\n")
        for table in importlib.import_module(ROOMS[room]).tables():
            print(table.to_text(), flush=True)
            parts.append(table.to_markdown())
        sections[room] = "\n".join(parts)
    print(_machine())
    if wanted and any(name.startswith("BENCH_") for name in os.environ):
        return
    page = PAGE.read_text(encoding="utf-8") if wanted else f"{HEAD}{_machine()}\n"
    PAGE.write_text(with_sections(page, sections), encoding="utf-8")
    print(f"written to {PAGE.relative_to(HERE.parents[1])}")


def with_sections(page: str, sections: Mapping[str, str]) -> str:
    """The page with these sections anew or at its end, and all others as they were.

    Args:
        page: Markdown, whose sections begin with `## NAME`.
        sections: name -> the section, its heading included.
    """
    head, *held = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    known = {section.split("\n", 1)[0].removeprefix("## "): section for section in held}
    return "\n\n".join(part.strip() for part in (head, *(known | sections).values())) + "\n"


def _machine() -> str:
    cores = len(os.sched_getaffinity(0))
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return (
        f"{cores} cores, {system}, Python {platform.python_version()}:"
        " ratios, one run, this machine."
    )


if __name__ == "__main__":
    main(sys.argv[1:])
