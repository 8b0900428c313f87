"""Scores of an answer: both rules, what was lost in words, floors, failures that are no scores."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_rlm.errors import ScorerError
from fleet_rlm.scoring import Score, blind_scores, floor, robust, score
from fleet_rlm.scoring.dialogue import pose, requests_of
from fleet_rlm.suites.sample import Question

OUTCOMES = ("more common than", "less common than", "same frequency as")


def ask(gold, answer_type="exact", options=(), query="?"):
    gold = (gold,) if isinstance(gold, str) else tuple(gold)
    return Question(query=query, gold=gold, answer_type=answer_type, options=tuple(options))


CODES = Question(
    query=pose(["the code of A?", "and of B?"]), gold=("1111111", "2222222"), answer_type="lines"
)
CODE = ask("1234567")
NAMES = ask(["KXQZB", "PLMQA", "RTVWX", "ABCDE"], "set")
LABEL = ask("named entity", "label", ["entity", "named entity", "food"])
NUMBER = ask("1042", "number", ["900"])
COMPARE = ask("more common than", "comparison", OUTCOMES, "Is label 'food' more .. label 'music'?")


def robust_of(answer, question, rule):
    return score(answer, question, task_rule=rule).robust


@pytest.mark.parametrize(
    ("answer", "official", "robust"),
    [
        ("1234567", 1, 1),
        ("**1234567**", 1, 1),
        ("`1234567`.", 1, 1),
        ("The access code for Halcyon-37 is 1234567.", 1, 1),
        ("１２３４５６７", 0, 1),
        ("12345678", 1, 0),
        ("x1234567", 1, 0),
        ("1234567.89", 1, 0),
        ("1234567 or 7654321", 1, 0),
        ("7654321", 0, 0),
        ("1,234,567", 0, 0),
        ("unknown", 0, 0),
    ],
)
def test_needle(answer, official, robust):
    found = score(answer, CODE, task_rule="needle")
    assert (found.official, found.robust) == (official, robust)
    assert bool(found.feedback) is (robust < 1)


@pytest.mark.parametrize(
    ("answer", "official", "robust"),
    [
        ("KXQZB, PLMQA, RTVWX, ABCDE", 1, 1),
        ('["ABCDE", "KXQZB", "PLMQA", "RTVWX"]', 1, 1),
        ("VAR KXQZB = 48213, PLMQA and RTVWX -> ABCDE", 1, 1),
        ("kxqzb, plmqa, rtvwx, abcde", 1, 1),
        ("KXQZB, KXQZB, PLMQA", 0.5, 2 / 3),
        ("KXQZB, PLMQA, RTVWX, ABCDE, WRONG", 1, 8 / 9),
        ("KXQZBPLMQA RTVWX", 0.75, 0.4),
        ("none of them", 0, 0),
        ("123", 0, 0),
    ],
)
def test_variables(answer, official, robust):
    found = score(answer, NAMES, task_rule="variables")
    assert (found.official, found.robust) == (official, pytest.approx(robust))


@pytest.mark.parametrize(
    ("answer", "robust"),
    [
        ("Label: named entity", 1),
        ("label: Named Entity.", 1),
        ("**Label:** [named entity]", 1),
        ("named entity", 1),
        ("The most common label is 'named entity'!", 1),
        ("Label: food\nThinking again.\nLabel: named entity\nIt leads by far, before food.", 1),
        ("Label: entity", 0),
        ("Label: named entity or food", 0),
        ("Label: unnamed entitys", 0),
        ("The label: food", 0),
        ("no idea", 0),
    ],
)
def test_labels(answer, robust):
    assert robust_of(answer, LABEL, "aggregate") == robust


@pytest.mark.parametrize(
    ("answer", "robust"),
    [
        ("Answer: 1042", 1),
        ("Answer: 1,042", 1),
        ("**Answer: 1042 instances**", 1),
        ("I count 1042.0", 1),
        ("1041", 0.75),
        ("Answer: 1044\n(out of 4000 lines)", 0.75**2),
        ("Out of 4000 lines, 1042", 0),
        ("1042.5", 0),
        ("Answer: -1042", pytest.approx(0, abs=1e-9)),
        ("9" * 5000, 0),
        ("many", 0),
        ("x1042", 0),
    ],
)
def test_numbers(answer, robust):
    assert robust_of(answer, NUMBER, "aggregate") == robust


@pytest.mark.parametrize(
    ("answer", "robust"),
    [
        ("Answer: food is more common than label music", 1),
        ("Answer: food is [more common than] label music.", 1),
        ("more common than", 1),
        ("More common", 1),
        ("Answer: music is less common than label food", 1),
        ("Answer: music is more common than label food", 0),
        ("Answer: food is less common than label music", 0),
        ("Answer: food is same frequency as label music", 0),
        ("Answer: food is not more common than label music", 0),
        ("more common than or same frequency as", 0),
        ("food", 0),
    ],
)
def test_comparisons(answer, robust):
    assert robust_of(answer, COMPARE, "aggregate") == robust


def test_equal_frequency_has_no_order():
    tie = ask("same frequency as", "comparison", OUTCOMES, COMPARE.query)
    for answer in (
        "food is as common as music",
        "music has the same frequency as food",
        "Both are equally common",
    ):
        assert robust_of(answer, tie, "aggregate") == 1
    assert robust_of("Answer: music is more common than label food", tie, "aggregate") == 0


@pytest.mark.parametrize(
    ("answer", "question", "rule", "words"),
    [
        ("none", CODE, "needle", "no 7-digit code"),
        ("7654321", CODE, "needle", "another line"),
        ("1234567 7654321", CODE, "needle", "2 codes were given"),
        ("KXQZB, WRONG", NAMES, "variables", "3 of 4 names are missing and 1 of the 2"),
        ("1", NAMES, "variables", "no variable name"),
        ("1040", NUMBER, "aggregate", "too low by 2"),
        ("1050", NUMBER, "aggregate", "too high by 8"),
        ("10 20", NUMBER, "aggregate", "2 numbers stand"),
        ("a", NUMBER, "aggregate", "no number stands"),
        ("1.5", NUMBER, "aggregate", "not a whole number"),
        ("food", LABEL, "aggregate", "another label"),
        ("food, entity", LABEL, "aggregate", "2 labels were named"),
        ("x", LABEL, "aggregate", "none of the labels"),
        ("x", COMPARE, "aggregate", "no single comparison"),
        ("less common", COMPARE, "aggregate", "comparison is wrong"),
        ("", CODE, "needle", "no answer was given"),
        ("1111111\n\n3333333", CODES, "dialogue", "request 2: the code of another line"),
        ("x\n2222222", CODES, "dialogue", "request 1: no 7-digit code"),
    ],
)
def test_feedback_says_where_it_was_lost_and_never_the_gold(answer, question, rule, words):
    found = score(answer, question, task_rule=rule)
    assert words in found.feedback
    assert not [gold for gold in question.gold if gold in found.feedback]


def test_a_dialogue_is_scored_reply_by_reply():
    assert requests_of(CODES.query) == ["the code of A?", "and of B?"]
    assert requests_of("2. one request") == ["2. one request"]
    for said, by_letter, by_content in (
        ("1111111\n2222222", 1, 1),
        ("It is 1111111.\n\n 2222222 \nBye", 0.5, 1),
        ("2222222\n1111111", 0, 0),
        ("1111111 2222222", 0, 0),
    ):
        found = score(said, CODES, task_rule="dialogue")
        assert (found.official, found.robust) == (by_letter, by_content)


@pytest.mark.parametrize("answer", ["", " \n", None, 42, ["1234567"], {"answer": 1}])
def test_no_text_is_a_plain_wrong_answer(answer):
    for question, rule in ((CODE, "needle"), (NAMES, "variables"), (NUMBER, "aggregate")):
        assert score(answer, question, task_rule=rule) == Score(
            official=0.0, robust=0.0, feedback="no answer was given"
        )


@pytest.mark.parametrize(
    ("question", "rule", "words"),
    [
        (CODE, "nedle", "No scoring rule 'nedle'. Did you mean 'needle'?"),
        (ask([]), "needle", "no gold answer"),
        (ask(""), "needle", "no gold answer"),
        (ask("many", "number"), "aggregate", "ValueError"),
        (ask("more common than", "comparison"), "aggregate", "ValueError"),
        (ask("x", "exact"), "aggregate", "no rule for answers of type 'exact'"),
    ],
)
def test_a_scorer_failure_is_an_error_and_no_score(question, rule, words):
    with pytest.raises(ScorerError, match=words.replace("?", r"\?")):
        score("an answer", question, task_rule=rule)


ANSWERS = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(
            [
                "Answer:",
                "Label:",
                "1234567",
                "1,042",
                "-",
                "KXQZB",
                "food",
                "not",
                "more common",
                "*",
            ]
        ),
        max_size=8,
    ).map(" ".join),
)


@given(ANSWERS, st.sampled_from([CODE, NAMES, LABEL, NUMBER, COMPARE]))
def test_any_text_gets_scores_between_zero_and_one(answer, question):
    rule = {"exact": "needle", "set": "variables"}.get(question.answer_type, "aggregate")
    found = score(answer, question, task_rule=rule)
    assert 0 <= found.official <= 1
    assert 0 <= found.robust <= 1
    assert (found.robust == 1) is (found.feedback == "")
    again = score(f"  **{answer}**\n", question, task_rule=rule)
    if answer.strip(" *\n"):
        assert again.robust == found.robust  # markdown costs nothing


NAME = st.text(alphabet="ABC", min_size=5, max_size=5)


@given(st.sets(NAME, min_size=1), st.sets(NAME, min_size=1))
def test_set_f1_is_symmetric_and_one_only_for_equal_sets(left, right):
    forth = robust.names(", ".join(sorted(left)), right).score
    assert forth == robust.names(", ".join(sorted(right)), left).score
    assert (forth == 1) is (left == right)
    assert (forth == 0) is (not left & right)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.booleans())
def test_numbers_score_by_distance_however_they_are_written(gold, said, grouped):
    text = f"Answer: {said:,}" if grouped else f"I count {said}"
    assert robust.number(text, gold).score == 0.75 ** abs(gold - said)


# Floors


def floor_of(questions, rule="aggregate"):
    return floor(blind_scores(question, task_rule=rule) for question in questions)


def test_floor_is_the_best_single_blind_policy():
    labels = ["food", "music", "weather"]
    asked = [ask(gold, "label", labels) for gold in ("food", "music", "music", "weather")]
    assert floor_of(asked) == 0.5
    assert floor_of(asked[:1]) == 1.0
    assert floor_of([]) == 0.0


def test_floor_grants_the_even_share_as_a_guess_at_numbers():
    near = [ask("100", "number", ["99"]), ask("50", "number", ["52"])]
    assert floor_of(near) == (0.75 + 0.75**2) / 2
    assert floor_of([ask("1", "number", ["40"])]) == 1.0


def test_one_policy_spans_the_kinds_of_a_mixed_task():
    mixed = [ask("food", "label", ["food", "music"]), COMPARE, ask("10", "number", ["10"])]
    assert blind_scores(COMPARE, task_rule="aggregate")["option 1"] == 1.0
    assert floor_of(mixed) == 1.0
    assert floor_of([*mixed, ask("music", "label", ["food", "music"])]) == 0.75


def test_a_policy_that_a_sample_lacks_scores_nothing_there():
    assert floor([{"0": 1.0}, {"1": 1.0}, {"1": 0.5}]) == 0.5


def test_codes_and_names_have_no_floor():
    assert floor_of([CODE] * 3, "needle") == floor_of([NAMES], "variables") == 0.0
    assert set(blind_scores(CODE, task_rule="needle").values()) == {0.0}


def test_generated_suites_score_ten_thousand_answers_in_seconds():
    cases = [("needle", CODE), ("variables", NAMES), ("aggregate", NUMBER)]
    started = time.perf_counter()
    for rule, question in cases:
        for _ in range(3333):
            score("Answer: KXQZB 1234567", question, task_rule=rule)
    assert time.perf_counter() - started < 5  # measured 0.2 s
