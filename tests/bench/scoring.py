"""How many answers a second each scoring rule reads, in one thread."""

from __future__ import annotations

from measure import Table, measure, middle

from fleet_rlm.scoring import RULES
from fleet_rlm.suites.sample import Question

ANSWERS = 2_000
REPEATS = 5
PROSE = "I read all of it, chunk by chunk, and checked twice. Answer: "

# rule -> gold, answer type, kind
EXACT = {
    "oolong": (("numeric value",), "label", ""),
    "oolong-real": (("Fire Bolt, Hex",), "set", ""),
    "oolong-pairs": (tuple(f"({n}, {n + 7})" for n in range(100, 140)), "set", ""),
    "longbench-v2": (("B",), "exact", ""),
    "graphwalks": (tuple(f"{n:010x}" for n in range(40)), "set", ""),
    "babilong": (("kitchen",), "exact", "qa1"),
    "infinitebench": (("88",), "exact", "math_find"),
    "exact": (("blue",), "exact", ""),
    "label": (("food",), "label", ""),
    "number": (("42",), "number", ""),
    "match-all": (("1234567", "7654321"), "set", ""),
    "match-part": (("1234567", "7654321"), "set", ""),
    "set": (("New York", "Los Angeles"), "set", ""),
    "qa": (("fighting in world war 1",), "exact", ""),
    "choice": (("B",), "exact", ""),
    "date": (("2023-01-06",), "date", ""),
}


def tables() -> list[Table]:
    rows = []
    for name, (gold, answer_type, kind) in EXACT.items():
        question = Question(
            query="Where is Mary?",
            gold=gold,
            answer_type=answer_type,  # type: ignore[arg-type]
            options=("food", "numeric value") if answer_type == "label" else (),
            kind=kind,
        )
        answer = PROSE + ", ".join(gold)
        rows.append([name, *(_rate(rule, answer, question) for rule in RULES[name][:2])])
    about = (
        f"Median of {REPEATS} times {ANSWERS:,} answers of one sentence, one thread. Long"
        " quotations (mrcr) are left out: difflib compares them character by character."
    )
    return [
        Table(
            title="Rules of fetched benchmarks",
            about=about,
            columns=("case", "official a second", "robust a second"),
            rows=rows,
        )
    ]


def _rate(rule, answer: str, question: Question) -> str:
    def work() -> None:
        for _ in range(ANSWERS):
            rule(answer, question)

    return f"{1 / middle([measure(work, per=ANSWERS) for _ in range(REPEATS)]).wall_s:,.0f}"
