"""How long large runs take to compare and to report, each in a process of its own."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import orjson
from measure import Table

from fleet_rlm import evaluate

COMPARED = 100_000
REPORTED = 2_000

CODE = """\
import json, resource, sys, time
from pathlib import Path
started = time.perf_counter()
from fleet_rlm.cli.eval import app
try:
    app(sys.argv[1:], standalone_mode=False)
finally:
    spent = resource.getrusage(resource.RUSAGE_SELF)
    # Not ru_maxrss: a process that was just started has that of its parent.
    peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
    print(json.dumps([time.perf_counter() - started, spent.ru_utime + spent.ru_stime,
                      int(peak) / 1024]), file=sys.stderr)
"""


def tables() -> list[Table]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        evaluate("rlm", "quickstart", out=folder / "seed", display="none")
        rows = []
        for label, rules in (("right or wrong", 0), ("fractions", 1), ("fractions by 3 rules", 3)):
            for name in ("a", "b"):
                _multiply(folder / "seed", folder / name, COMPARED, name, rules=rules)
            case = f"compare 2 x {COMPARED:,}, {label}"
            rows.append([case, *_took("compare", folder / "a", folder / "b", "--json"), "-", "-"])
        for name in ("c", "d"):
            _multiply(folder / "seed", folder / name, REPORTED, name, rules=0)
        page = folder / "page.html"
        took = _took("report", folder / "c", folder / "d", "-o", page)
        rows.append(
            [f"report 2 x {REPORTED:,}", *took, f"{page.stat().st_size / 1e6:.1f}", _usable_s(page)]
        )
    about = (
        "Each in a process of its own, its start included. Every record is a context of its own,"
        " and every fraction another: the worst case for drawing signs, most of all where the"
        " official and the robust rule give other scores than the first; a comparison has all"
        " tasks and lengths, 20,000 draws. Usable: from opening the page in"
        " Chromium until its filters answer."
    )
    columns = ("case", "seconds", "CPU", "peak MB", "page MB", "usable s")
    return [Table(title="Large runs", about=about, columns=columns, rows=rows)]


def _multiply(seed: Path, target: Path, count: int, name: str, *, rules: int) -> None:
    """A run of `count` records, made of those of a small one with scores of their own.

    Scores are right or wrong for no rules, fractions for one, and others by each rule for three.
    """
    target.mkdir(exist_ok=True)
    lines = [orjson.loads(line) for line in (seed / "records.jsonl").read_bytes().splitlines()]
    rng = random.Random(name)
    with (target / "records.jsonl").open("wb") as file:
        for number in range(count):
            score = rng.random() if rules else float(rng.random() < 0.6)
            line = lines[number % len(lines)]
            ids = {key: f"{line[key]}-{number}" for key in ("sample", "cluster")}
            where = str((seed / line["trajectory"]).resolve())
            scores = {"score": score, "official": score, "robust": score}
            if rules == 3:
                scores |= {"official": rng.random(), "robust": rng.random()}
            file.write(orjson.dumps({**line, **ids, **scores, "trajectory": where},
                                    option=orjson.OPT_APPEND_NEWLINE))  # fmt: skip
    lock = json.loads((seed / "run.json").read_text())
    (target / "run.json").write_text(json.dumps(lock | {"planned": count}))
    summary = json.loads((seed / "summary.json").read_text())
    (target / "summary.json").write_text(json.dumps(summary))


def _took(*words: object) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, words)], capture_output=True, text=True, check=True
    )
    seconds, cpu, peak = json.loads(done.stderr.splitlines()[-1])
    return [f"{seconds:.1f}", f"{cpu:.1f}", f"{peak:,.0f}"]


def _usable_s(page: Path) -> str:
    """Seconds until a script that follows the page's own may run; a dash without Chromium."""
    names = ("chromium-headless-shell", "chromium", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        return "-"
    # Modules run in order: the page's own has filled the table and wired its filters before this.
    watch = "document.body.append('USABLE' + performance.now() + 'END')"
    body, end, rest = page.read_text().rpartition("</body>")
    page.write_text(f'{body}<script type="module">{watch}</script>{end}{rest}')
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return f"{float(done.stdout.rpartition('USABLE')[2].partition('END')[0]) / 1000:.1f}"
