"""`fleet-eval report`: one page that needs nothing else, opened in a real browser."""

import json
import re
import shutil
import subprocess

import orjson
import pytest

import fleet_rlm
from fleet_rlm.report.plots import frontier
from fleet_rlm.runner.recursion import measure

BROWSER = next(
    filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None
)
HOSTILE = "</script><script>window.hit=1</script><img src=x onerror='window.hit=1'>"
SECRET = "sk-" + "a1B2c3D4" * 5

# Filters, expands, and writes what it saw where the test finds it.
WATCH = """
<script>
const problems = [];
const real = console.error;
console.error = (...all) => { problems.push(all.join(" ")); real(...all); };
addEventListener("error", (event) => problems.push(String(event.message)));
addEventListener("securitypolicyviolation", (event) => problems.push(event.violatedDirective));
</script>
"""

VISIT = """
<script type="module">
const $ = (id) => document.getElementById(id);
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const choose = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event("input")); };
await wait(400);
const seen = { all: $("count").textContent, rows: $("rows").children.length };
seen.drawn = [...document.querySelectorAll(".plot svg.marks")].map((svg) => svg.clientWidth > 100);
choose("arm", "rlm"); choose("which", "failed");
seen.failed = $("count").textContent;
choose("which", ""); choose("words", "needle-8k");
seen.words = $("count").textContent;
document.querySelector("th button[data-column=score]").click();
document.querySelector("#rows td button").click();
await wait(200);
seen.tree = document.querySelector(".tree").textContent;
choose("words", "");
$("task-of-plot").value = "score-by-length-needle";
$("task-of-plot").dispatchEvent(new Event("change"));
await wait(200);
seen.hit = window.hit === undefined;
seen.wide = document.documentElement.scrollWidth <= innerWidth;
seen.problems = problems;
document.body.textContent = "SEEN" + JSON.stringify(seen) + "END";
</script>
"""


@pytest.fixture
def runs(project, monkeypatch):
    monkeypatch.setenv("DSPY_LLM_API_KEY", SECRET)
    small = {"lengths": [4000, 8000], "windows": 2}
    for program in ("direct", "rlm"):
        fleet_rlm.evaluate(program, "quickstart", overrides=small, out=program)
    path = project / "rlm" / "records.jsonl"
    rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    rows[0]["answer"] = f"{HOSTILE} {SECRET}"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return project


def visit(page, width):
    head, body, rest = page.read_text().partition("<body>")
    inner, end, tail = rest.rpartition("</body>")
    visited = page.with_name("visited.html")
    visited.write_text(head + body + WATCH + inner + VISIT + end + tail)
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
         "--virtual-time-budget=9000", "--dump-dom", visited.as_uri()],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    found = re.search(r"SEEN(\{.*\})END", done.stdout, re.S)
    assert found, done.stderr[-2000:]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def test_a_page_needs_nothing_else_and_holds_no_secret(runs, command):
    done = command("report", "direct", "rlm", "-o", "out/page.html", "--png", "out/png")
    assert done.returncode == 0, done.stderr
    page = (runs / "out" / "page.html").read_text()
    own = re.sub(r"<script>.*?</script>", "", page, count=1, flags=re.S)
    assert not re.search(r"(src|href)\s*=\s*[\"']?(http|//)", own)
    assert "simulated model: these numbers show the harness" in page
    assert SECRET not in page
    assert HOSTILE not in page
    for part in ("floor", "errors=0", "Recursion", "rlm less direct", "p Holm"):
        assert part in own
    pictures = {path.name: path.read_bytes()[:8] for path in (runs / "out" / "png").iterdir()}
    assert {"score-by-length.png", "score-by-cost.png", "latency.png", "cost.png"} <= set(pictures)
    assert set(pictures.values()) == {b"\x89PNG\r\n\x1a\n"}

    if BROWSER is None:
        pytest.skip("no Chromium to open the page in")
    frame = fleet_rlm.open_run("rlm").records()
    failed = int((frame["score"] < 1).sum())
    for width in (1280, 390):
        seen = visit(runs / "out" / "page.html", width)
        assert seen["problems"] == []
        assert (seen["all"], seen["rows"]) == ("48 of 48", 48)
        assert seen["failed"] == f"{failed} of 48"
        assert seen["words"] == "4 of 48"
        assert "turn 1" in seen["tree"]
        assert "access code" in seen["tree"]
        assert seen["drawn"] == [True] * 5
        assert (seen["hit"], seen["wide"]) == (True, True)


def test_a_page_of_one_run_goes_into_its_folder(runs, command):
    done = command("report", "rlm")
    assert done.stdout.strip() == "rlm/report.html"
    page = (runs / "rlm" / "report.html").read_text()
    assert "Differences from" not in page
    assert command("report", "nowhere").returncode == 2

    # What the model knows without reading stands beside what it scores with the text.
    fleet_rlm.evaluate(
        "blind", "quickstart", overrides={"lengths": [4000, 8000], "windows": 2}, out="blind"
    )
    command("report", "rlm", "blind", "-o", "both.html")
    tasks = (runs / "both.html").read_text().partition("<h2>Tasks</h2>")[2]
    known = fleet_rlm.open_run("blind").summary["tasks"]["needle"]["score"]
    row = re.search(r"<td>needle</td><td>rlm</td>.*?</tr>", tasks)[0]
    assert re.findall(r">([^<]*)</td>", row)[-2] == f"{known:.3f}"


def test_the_frontier_is_what_nothing_beats():
    points = [{"usd": usd, "score": score} for usd, score in
              [(1, 0.5), (2, 0.5), (2, 0.7), (3, 0.6), (4, 0.9)]]  # fmt: skip
    assert [(p["usd"], p["score"]) for p in frontier(points)] == [(1, 0.5), (2, 0.7), (4, 0.9)]


def test_recursion_is_counted_over_all_depths():
    def step(output, *queries):
        return {"reasoning": "", "code": "x", "output": output, "queries": list(queries)}

    def ask(digest, chars):
        return {"kind": "llm", "prompt_digest": digest, "prompt_chars": chars}

    child = {"kind": "rlm", "steps": [step("[Error] no", ask("a", 100))]}
    grandchild = {"kind": "rlm", "steps": [step("ok", {"kind": "rlm", "steps": [step("deep")]})]}
    steps = [step("12345", ask("a", 100), ask("b", 50), child), step("x\n[Error] y", grandchild)]
    found = measure(steps, 1000)
    assert (found.turns, found.blocks, found.code_errors) == (2, 5, 2)
    assert (found.sub_calls, found.duplicates, found.children, found.depth) == (3, 1, 3, 2)
    assert found.read_chars == 150 + len("12345" + "x\n[Error] y" + "[Error] no" + "ok" + "deep")
    assert found.returned_tokens > 0
    assert measure([{"thought": "no code"}], 10) is None
    assert measure([], 10) is None
