"""Bench room `suites`: writing contexts, counting tokens, scoring answers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from measure import SLOWER, Cost, Table, measure, middle, side_by_side, slower, span

from fleet_rlm.scoring import RULES, score
from fleet_rlm.suites.sample import Question
from fleet_rlm.suites.suite import load_suite
from fleet_rlm.suites.tokens import TOKENIZER, count_tokens

EVALS = Path(__file__).parents[2] / "evals"
LENGTH = 10_000_000
ANSWERS = 2_000
REPEATS = 3


def tables() -> list[Table]:
    return [_writing(), _memory(), _scoring()]


def _writing() -> Table:
    context = ""

    def write_suite() -> None:
        # A plan of its own: plans remember the windows that they have built.
        nonlocal context
        suite = load_suite(EVALS / "aggregate.toml")
        context = suite.override({"lengths": LENGTH, "windows": 1}).plan()[0].build().context
        target.write_text(context)

    def write_joined() -> None:
        target.write_text("\n".join([" || ".join(fields) for fields in lines]))

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "context.txt")
        write_suite()
        lines = [line.split(" || ") for line in context.split("\n")]
        write_joined()
        if target.read_text() != context:
            raise SystemExit("the joined text is another text")
        written = side_by_side(
            lambda: measure(write_suite), lambda: measure(write_joined), repeats=REPEATS
        )
    encode = _stock_encoder()
    counted = side_by_side(
        lambda: measure(lambda: count_tokens(context)),
        lambda: measure(lambda: len(encode(context))),
        repeats=REPEATS,
    )
    return Table(
        title="Contexts",
        about=(
            f"Median of {REPEATS}. `aggregate` draws, writes, counts the tokens of and stores a"
            f" context of {LENGTH:,} tokens ({len(context):,} bytes); stock joins the same lines,"
            " drawn beforehand, and stores them. `count_tokens` on that context; stock is"
            f" tiktoken's `encode_ordinary` with {TOKENIZER}."
        ),
        columns=SLOWER,
        rows=[slower("aggregate 10M tokens", *written), slower("count_tokens 10M", *counted)],
    )


_PEAK = """
import json, sys
from pathlib import Path
from fleet_rlm.suites.suite import load_suite

def peak():
    # Not ru_maxrss: a process that was just started has that of its parent.
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024

def plan(length):
    suite = load_suite(Path(sys.argv[1]))
    return suite.override({"lengths": length, "windows": 1}).plan()[0]

plan(8000).build()
sample, before = plan(int(sys.argv[2])), peak()
if sys.argv[3] == "build":
    size = len(sample.build().context)
else:
    sample.write_context(Path(sys.argv[4]))
    size = Path(sys.argv[4]).stat().st_size
print(json.dumps([size, peak() - before]))
"""


def _memory() -> Table:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case, how in (("10M tokens in memory", "build"), ("10M tokens to a file", "write")):
            given = [str(EVALS / "aggregate.toml"), str(LENGTH), how, f"{folder}/context.txt"]
            done = subprocess.run(
                [sys.executable, "-c", _PEAK, *given], capture_output=True, text=True, check=True
            )
            size, grown = json.loads(done.stdout)
            rows.append([case, f"{size / 1e6:.1f}", f"{grown / 1e6:.1f}", f"{grown / size:.2f}x"])
    return Table(
        title="Memory",
        about=(
            "By how much the peak of a process grows that writes one context of `aggregate` and"
            " has written a short one before; in MB, and as a multiple of the text."
        ),
        columns=("case", "text MB", "peak MB", "ratio"),
        rows=rows,
    )


def _stock_encoder() -> Callable[[str], list[int]]:
    import tiktoken

    spec = importlib.util.find_spec("litellm")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("litellm, which brings the tokenizer's file, is not installed")
    # tiktoken reads its file from there, by a name of its own making, instead of the network.
    folder = Path(spec.submodule_search_locations[0], "litellm_core_utils", "tokenizers")
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    return tiktoken.get_encoding(TOKENIZER).encode_ordinary


def _scoring() -> Table:
    suite = load_suite(EVALS / "quickstart.toml")
    asked = {plan.task: (plan.rule, plan.build().question) for plan in suite.plan()}
    rows = []
    for task, (rule, question) in asked.items():
        answer = f"I read all of it. Answer: {', '.join(question.gold)}"
        both = middle([_both(answer, question, rule) for _ in range(REPEATS)])
        official = middle([_official(answer, question, rule) for _ in range(REPEATS)])
        rows.append(
            [
                task,
                f"{1 / official.wall_s:,.0f}",
                f"{1 / both.wall_s:,.0f}",
                span(official.cpu_s),
                span(both.cpu_s),
            ]
        )
    return Table(
        title="Scores",
        about=(
            f"Median of {REPEATS} times {ANSWERS:,} answers of one sentence, one thread. Both:"
            " official and robust score with its feedback, as every record has them."
        ),
        columns=("case", "official a second", "both a second", "CPU official", "CPU both"),
        rows=rows,
    )


def _both(answer: str, question: Question, rule: str) -> Cost:
    def work() -> None:
        for _ in range(ANSWERS):
            score(answer, question, task_rule=rule)

    return measure(work, per=ANSWERS)


def _official(answer: str, question: Question, rule: str) -> Cost:
    official = RULES[rule].official

    def work() -> None:
        for _ in range(ANSWERS):
            official(answer, question)

    return measure(work, per=ANSWERS)
