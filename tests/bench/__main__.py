"""`make bench`: runs benchmark rooms; all of them, without a name, and writes docs/performance.md.

A room is a module of this folder with a function `tables`; it goes by the first word of its file's
name, so that none hides a package that it needs.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
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
    sections = [f"{_machine()}\n"]
    for room in wanted or ROOMS:
        sections.append(f"## {room}\n\n```bash\nmake bench-{room}\n```\n")
        for table in importlib.import_module(ROOMS[room]).tables():
            print(table.to_text(), flush=True)
            sections.append(table.to_markdown())
    print(_machine())
    if not wanted:
        PAGE.write_text(HEAD + "\n".join(sections), encoding="utf-8")
        print(f"written to {PAGE.relative_to(HERE.parents[1])}")


def _machine() -> str:
    cores = len(os.sched_getaffinity(0))
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return (
        f"{cores} cores, {system}, Python {platform.python_version()}:"
        " ratios, one run, this machine."
    )


if __name__ == "__main__":
    main(sys.argv[1:])
