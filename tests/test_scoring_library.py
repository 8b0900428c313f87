"""The rules of fetched benchmarks and of users' own data: both scores of an answer, by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_rlm.errors import ScorerError
from fleet_rlm.scoring import score
from fleet_rlm.suites.sample import Question

LABELS = ("entity", "named entity", "food")
PHRASES = ("more common than", "less common than", "same frequency as")
PLACES = ("bathroom", "kitchen")


def ask(gold, answer_type="exact", options=(), query="?", kind=""):
    gold = (gold,) if isinstance(gold, str) else tuple(gold)
    return Question(query=query, gold=gold, answer_type=answer_type, options=options, kind=kind)


COMPARED = "is label 'food' more common, less common, or the same frequency as label 'music'?"
OOLONG = {
    "label": ask("named entity", "label", LABELS),
    "number": ask("42", "number"),
    "user": ask("76063", "user"),
    "date": ask("2023-01-06", "date"),
    "month": ask("May 2023", "month_year"),
    "compare": ask("more common than", "comparison", PHRASES, COMPARED),
}


@pytest.mark.parametrize(
    ("which", "answer", "official", "robust"),
    [
        ("label", "named entity", 1, 1),  # rendered as "Label: named entity"
        ("label", "Named Entity.", 0, 1),
        ("label", "named entity or food", 0, 0),
        ("number", "43", 0.75, 0.75),
        ("number", "1,042", 0, pytest.approx(0, abs=1e-9)),
        ("number", "Answer: 42 entries", 0, 1),
        ("user", "76063", 1, 1),
        ("user", "User: 76064", 0, 0),
        ("date", "01/06/2023", 1, 1),
        ("date", "Date: Jan 06, 2023", 1, 1),
        ("date", "2023-01-07", 0, 0),
        ("date", "soon", 0, 0),
        ("month", "Answer: May 2023", 1, 1),
        ("month", "may 2023.", 0, 1),
        ("compare", "Answer: food is more common than label music", 1, 1),
        ("compare", "Answer: food is less common than label music", 0, 0),
    ],
)
def test_oolong(which, answer, official, robust):
    found = score(answer, OOLONG[which], task_rule="oolong")
    assert (found.official, found.robust) == (official, robust)


CHOICE = ask("B", options=("A", "B", "C", "D"))
NODES = ask(["a1", "b2"], "set")
SET = ask(["New York", "LA"], "set")
QUOTE = ask(["HHHome again.", "HHH"], "sequence")
BABI = ask("two", kind="qa7", query="How many objects is Mary carrying?")
PLACE = ask("kitchen", kind="qa1", query="Say 'kitchen' or 'garden'.\nQuestion: Where is Mary?")
PAIRS = ask(["(11, 22)", "(11, 33)"], "set")


@pytest.mark.parametrize(
    ("rule", "question", "answer", "official", "robust"),
    [
        ("longbench-v2", CHOICE, "B", 1, 1),
        ("longbench-v2", CHOICE, "The correct answer is (B)", 1, 1),
        ("longbench-v2", CHOICE, "the correct answer is: **B**", 0, 1),
        ("longbench-v2", CHOICE, "The correct answer is Because", 1, 0),
        ("longbench-v2", CHOICE, "(A) is wrong, so the answer is (B).", 0, 1),
        ("longbench-v2", CHOICE, "B or C", 0, 0),
        ("longbench-v2", CHOICE, "I don't know.", 0, 0),
        ("choice", CHOICE, "B", 1, 1),
        ("choice", CHOICE, "b)", 0, 1),
        ("choice", CHOICE, "C", 0, 0),
        ("graphwalks", NODES, "Final Answer: [a1, b2]", 1, 1),
        ("graphwalks", NODES, "**Final Answer: [b2]**", 0, pytest.approx(2 / 3)),
        ("graphwalks", NODES, "I give up", 0, 0),
        ("graphwalks", NODES, "Final Answer: []", 0, 0),
        ("graphwalks", ask([], "set"), "Final Answer: []", 1, 1),
        ("graphwalks", ask([], "set"), "I give up", 0, 0),
        ("mrcr", QUOTE, "HHHome again.", 1, 1),
        ("mrcr", QUOTE, "Sure! HHHome again.", 0, 1),
        ("mrcr", QUOTE, "```\nHHHome again.\n```", 0, 1),
        ("mrcr", QUOTE, "ome again.", 0, 0),
        ("sequence", ask("abcd"), "abcd", 1, 1),
        ("sequence", ask("abcd"), "abxx", 0.5, 0.5),
        ("babilong", PLACE, "Mary is in the kitchen.", 1, 1),
        ("babilong", PLACE, "Answer: kitchenette", 1, 0),
        ("babilong", PLACE, "The garden. No.\nAnswer: kitchen", 0, 1),
        ("babilong", BABI, "2", 0, 1),
        ("babilong", BABI, "two", 1, 1),
        ("babilong", ask("no", kind="qa6", query="Is Mary home?"), "I do not know", 1, 0),
        ("babilong", ask("apple,milk", kind="qa8", query="What?"), "milk and apple", 1, 1),
        ("oolong-pairs", PAIRS, "(22, 11)\n(11, 33)", 1, 1),
        ("oolong-pairs", PAIRS, "11, 22\n11, 33", 0, 1),
        ("oolong-pairs", ask([], "set"), "none", 1, 1),
        ("oolong-real", ask("84"), "84", 1, 1),
        ("oolong-real", ask("84"), "It is 84, I think", 0, 1),
        ("oolong-real", ask("Fire Bolt, Hex"), "hex and fire bolt", 0, 1),
        ("oolong-real", ask("Hex"), "\\boxed{hex}", 1, 1),
        ("exact", ask("blue"), "blue", 1, 1),
        ("exact", ask("blue"), "Answer: **Blue**.", 0, 1),
        ("exact", ask(["blue", "azure"]), "azure", 1, 1),
        ("exact", ask("blue"), "light blue", 0, 0),
        ("label", ask("food", "label", LABELS), "Food.", 0, 1),
        ("number", ask("7"), "8", 0.75, 0.75),
        ("match-all", ask(["12", "ab"]), "the 123 ab", 1, 0.5),
        ("match-part", ask(["yes"]), "Yesterday", 1, 0),
        ("set", SET, "LA, New York", 1, 1),
        ("set", SET, '["new york", "la"]', 0, 1),
        ("set", SET, "Answer: LA\nParis and new york", 0, 0.8),
        ("set", ask([], "set"), "Paris", 0, 0),
        ("qa", ask("Paris"), "The answer is Paris.", 0.5, 0.5),
        ("qa", ask("Paris"), "I looked it up.\nAnswer: Paris", 2 / 7, 1),
        ("date", ask("2023-01-06"), "Jan 6, 2023", 1, 1),
        ("infinitebench", ask("71432", kind="passkey"), "1: 71432", 0, 1),
        ("infinitebench", ask("c1-2", kind="kv_retrieval"), "`c1-2`", 0, 1),
        ("infinitebench", ask(["f", "B"], kind="code_debug"), "B", 0, 1),
        ("infinitebench", ask(["-3"], kind="code_run"), "-3", 1, 1),
        ("infinitebench", ask(["2.5"], kind="math_find"), "it is 2.5", 1, 1),
        ("infinitebench", ask(["ACE", "ACE R"], kind="longdialogue_qa_eng"), "Ace R", 1, 1),
        ("infinitebench", ask(["1", "2"], kind="math_calc"), "[1, 3]", 0.5, 0.5),
        ("infinitebench", ask("福气龙", kind="longbook_qa_chn"), "福气龙。", 1, 1),
        ("infinitebench", ask(["x y"], kind="longbook_qa_eng"), "the x y", 1, 1),
    ],
)
def test_rules(rule, question, answer, official, robust):
    found = score(answer, question, task_rule=rule)
    assert (found.official, found.robust) == (pytest.approx(official), robust)
    assert bool(found.feedback) is (found.robust < 1)


@pytest.mark.parametrize(
    ("rule", "question"),
    [
        ("exact", ask([])),
        ("number", ask("many")),
        ("date", ask("soon")),
        ("oolong", ask("x", "riddle")),
        ("oolong-pairs", ask(["11 and 22"], "set")),
        ("babilong", ask("x", kind="qa99")),
        ("mrcr", ask("no prefix beside it")),
        ("infinitebench", ask("x", kind="longbook_sum")),
    ],
)
def test_gold_that_a_rule_cannot_read_is_an_error_and_no_score(rule, question):
    with pytest.raises(ScorerError):
        score("Answer: 1", question, task_rule=rule)


@given(
    st.text(max_size=80)
    | st.lists(st.sampled_from(["Answer:", "B", "[a1]", "(1, 2)", "two", "1,0"])),
    st.sampled_from(
        [
            ("longbench-v2", CHOICE),
            ("graphwalks", NODES),
            ("mrcr", QUOTE),
            ("babilong", BABI),
            ("oolong-pairs", PAIRS),
            ("oolong", OOLONG["date"]),
            ("oolong-real", ask("Fire Bolt, Hex")),
            ("set", SET),
            ("qa", ask("Paris")),
            ("infinitebench", ask(["f", "B"], kind="code_debug")),
        ]
    ),
)
def test_any_text_gets_scores_between_zero_and_one(answer, case):
    rule, question = case
    text = answer if isinstance(answer, str) else " ".join(answer)
    found = score(text, question, task_rule=rule)
    assert 0 <= found.official <= 1
    assert (found.robust == 1) is (found.feedback == "")
