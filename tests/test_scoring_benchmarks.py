"""Official rules against what the benchmarks' own code, executed, gives for these inputs."""

from __future__ import annotations

import json

import pytest

from fleet_rlm.scoring import (
    babilong,
    graphwalks,
    infinitebench,
    longbench,
    mrcr,
    oolong,
    pairs,
    robust_values,
    ruler,
    squad,
)
from tests.shared_data import shared_data


def vectors(name):
    return json.loads(shared_data(f"vectors/{name}").read_text(encoding="utf-8"))


def test_babilong_on_every_unit_vector():
    for target, output, question, task, right in vectors("vec_babi_unit.json"):
        assert babilong.label_score(output, target, question, task) == right, output


@pytest.mark.parametrize(
    ("target", "output", "question", "task", "score"),
    [
        ("kitchen", "The apple was in the garden, then the kitchen.", "Where is it?", "qa1", 0),
        ("apple,milk", "apple, milk", "What is Mary carrying?", "qa8", 1),
        ("no", "I do not know", "Is Mary in the kitchen?", "qa6", 1),  # "no" inside "not"
        ("two", "2", "How many objects is Mary carrying?", "qa7", 0),
        ("n,w", "n,w", "How do you go from the kitchen to the garden?", "qa19", 1),
        ("kitchen", "kitchen. Not the garden.", "Where is the milk?", "qa1", 1),
    ],
)
def test_babilong(target, output, question, task, score):
    assert babilong.label_score(output, target, question, task) == score


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("The correct answer is (B)", "B"),
        ("The correct answer is B", "B"),
        ("**The correct answer is (C)**", "C"),
        ("the correct answer is (B)", None),
        ("The correct answer is: (B)", None),
        ("B", None),
        ("(B)", None),
        ("The correct answer is (A). No wait, The correct answer is (D)", "A"),
        ("The correct answer is Because", "B"),
        ("Answer: B", None),
    ],
)
def test_longbench(output, letter):
    assert longbench.parse(output) == letter


@pytest.mark.parametrize("answer", ["B", "(B)", " b.", "[B]"])
def test_a_submitted_letter_is_put_into_longbenchs_sentence(answer):
    assert longbench.parse(longbench.render(answer)) == "B"


GRAPHWALKS = [
    ("Final Answer: [a1, b2]", ["a1", "b2"], 0.5, ["a1", "b2"]),
    ("Final Answer: [a1]", ["a1"], 1, ["a1"]),
    ("Final Answer: []", [], 1, []),
    ("text\nFinal Answer: [b2, a1, c3]", ["a1", "b2"], 0.4, ["b2", "a1", "c3"]),
    ("Final Answer: [a1, b2]\nDone.", ["a1", "b2"], 1, ["a1", "b2"]),
    ("final answer: ['a1','b2']", ["a1", "b2"], 1, ["a1", "b2"]),
    ("[a1, b2]", ["a1", "b2"], 1, ["a1", "b2"]),
    ("**Final Answer: [a1, b2]**", ["a1", "b2"], 0.5, None),
    ("I give up", ["a1", "b2"], 1, None),
    ("Final Answer: [zz]", ["a1", "b2"], 1, ["zz"]),
    ("Final Answer: [a1, b2]\n", ["a1", "b2"], 1, ["a1", "b2"]),
    ("Final Answer: []", ["a1"], 1, []),
]


@pytest.mark.parametrize(("output", "gold", "card", "parsed"), GRAPHWALKS)
def test_graphwalks(output, gold, card, parsed):
    assert graphwalks.card_f1(output, gold) == pytest.approx(card)
    assert graphwalks.parse(output) == parsed


def test_graphwalks_longbench_and_mrcr_on_every_vector():
    found = vectors("vec_misc.json")
    for case in found["graphwalks"]:
        parsed = graphwalks.parse(case["resp"])
        assert parsed == case["prime"], case
        assert graphwalks.card_f1(case["resp"], case["gold"]) == pytest.approx(case["card_f1"])
        if parsed is not None:
            f1 = graphwalks.set_f1(parsed, case["gold"])
            assert f1 == pytest.approx(case["prime_f1"], abs=1e-4)
    for case in found["longbench_v2"]:
        assert longbench.parse(case["resp"]) == case["pred"], case
    for case in found["mrcr"]:
        prefix = case["target"][: len(H)]
        ratio = mrcr.ratio(case["pred"], case["target"], prefix)
        assert ratio == pytest.approx(case["mrcr_v1"], abs=1e-6), case
        if "```" not in case["pred"]:  # version 2 counts a fence as text
            ours = robust_values.quotation(case["pred"], case["target"], prefix).score
            assert ours == pytest.approx(case["mrcr_v2"], abs=1e-6), case


H, T = "b6Yath1qpbUa", "Ahoy, me hearties, gather round!\nForget the map."


@pytest.mark.parametrize(
    ("output", "score"),
    [
        (H + T, 1),
        (f"{H} {T}", 0.989691),
        (f"Sure! {H}{T}", 0),
        (f"{H}{T}\n{H}wrong", 0.842105),
        (H, 0),
        (T, 0),
        (f"{H}Ahoy", 0.153846),
        ((H + T).lower(), 0),
        (f"{H}{T}\n\nHope this helps!", 0.842105),
        (f"```\n{H}{T}\n```", 0),
    ],
)
def test_mrcr(output, score):
    assert mrcr.ratio(output, H + T, H) == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize(
    ("output", "strict", "loose"),
    [
        ("(11, 22)\n(11, 33)", 1, 1),
        ("[['11','22'],['11','33']]", 0, 1),
        ("11, 22\n11, 33", 0, 1),
        ("(22, 11)", 2 / 3, 2 / 3),
        ("(11,22) and (11,33) and (22,33)", 0.8, 0.8),
        ("(11, 22, 33)", 0, 0),
        ("user_11 & user_22", 0, 0),
        ("", 0, 0),
    ],
)
def test_oolong_pairs(output, strict, loose):
    gold = {(11, 22), (11, 33)}
    assert pairs.pairs_f1(pairs.parse_strict(output), gold) == pytest.approx(strict)
    assert pairs.pairs_f1(pairs.parse_loose(output), gold) == pytest.approx(loose)
    assert pairs.pairs_f1(set(), set()) == 1


def test_oolong_pairs_on_every_parse_vector():
    for case in vectors("vec_pairs.json")["parse"]:
        for read in ("strict", "loose"):
            parse = {"strict": pairs.parse_strict, "loose": pairs.parse_loose}[read]
            found = parse(case["text"])
            assert found == {(int(a), int(b)) for a, b in case[read]}, case["text"]
            f1 = pairs.pairs_f1(found, {(11, 22), (11, 33)})
            assert f1 == pytest.approx(case["f1"][read], abs=1e-4), case["text"]


@pytest.mark.parametrize(
    ("gold", "output", "score"),
    [
        ("84", "\\boxed{84}", 1),
        ("84", "\\boxed{86}", 0.5625),
        ("84", "84", 0),
        ("84", "\\boxed{\\text{84}}", 1),
        ("84", f"\\boxed{{{'9' * 4000}}}", 0),
        ("Fire Bolt", "\\boxed{fire bolt}", 1),
        ("Fire Bolt", "\\boxed{\\text{Fire Bolt}}", 1),
        ("Fire Bolt, Hex", "\\boxed{Hex, Fire Bolt}", 1),
        ("Fire Bolt, Hex", "\\boxed{Hex}", 0),
        ("Fire Bolt, Hex", "\\boxed{hex, Fire Bolt, Shield}", 0.5),
        ("Fire Bolt, Hex", "Fire Bolt, Hex", 0),
        ("Hex", "Hex", 1),
    ],
)
def test_oolong_real(gold, output, score):
    assert oolong.real_score(output, gold) == score


def test_ruler_and_oolong_on_every_vector():
    found = vectors("vec_ruler_oolong.json")
    for case in found["ruler"]:
        rule = getattr(ruler, case["metric"])
        each = [
            rule(said, wanted) for said, wanted in zip(case["preds"], case["refs"], strict=True)
        ]
        assert round(100 * sum(each) / len(each), 2) == case["score"], case
    for case in found["oolong_real"]:
        assert oolong.real_score(case["output"], case["answer"]) == case["official"], case
    kinds = {"NUMERIC": "number"}
    for case in found["oolong_synth"]:
        kind = case["answer_type"].removeprefix("ANSWER_TYPE.")
        gold = oolong.gold_of(case["answer"])
        said = oolong.synth_score(case["output"], gold, kinds.get(kind, kind.lower()))
        assert said == case["official"], case


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("['entity']", "entity"),
        ("[42]", "42"),
        ("[datetime.date(2023, 1, 6)]", "2023-01-06"),
        ("['a', 'b']", "a"),
    ],
)
def test_oolongs_gold_is_the_first_of_its_list(text, gold):
    assert str(oolong.gold_of(text)) == gold


@pytest.mark.parametrize("text", ["entity", "[", "[]", "[__import__('os')]", "{1: 2}", "[[1]]"])
def test_oolongs_gold_that_is_no_list_is_refused(text):
    with pytest.raises(ValueError, match="gold"):
        oolong.gold_of(text)


@pytest.mark.parametrize(
    ("answer", "kind", "rendered"),
    [
        ("description and abstract concept", "label", "Label: description and abstract concept"),
        ("76063", "user", "User: 76063"),
        ("42", "number", "Answer: 42"),
        ("Label: entity", "label", "Label: entity"),
        ("I think\nentity", "label", "I think\nentity"),
    ],
)
def test_a_bare_value_is_rendered_in_oolongs_own_form(answer, kind, rendered):
    assert oolong.render(answer, kind) == rendered


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("It was Denver Broncos.", ["Denver Broncos", "the Broncos"], 1),
        ("denver", ["Denver Broncos", "Broncos"], 0),
        ("yes, indeed", ["yes"], 1),
        ("Yesterday", ["yes"], 1),
    ],
)
def test_ruler_string_match_part(answer, references, score):
    assert ruler.string_match_part(answer, references) == score


@pytest.mark.parametrize(
    ("output", "references", "f1"),
    [
        ("The answer is Paris.", ["Paris"], 0.5),
        ("not Paris but Lyon", ["Paris"], 0.4),
        ("Yes, because of X", ["Yes"], 0.4),
        ("", [""], 0),
        ("1,234", ["1234"], 1),
        ("café", ["cafe"], 0),
        ("Barack Obama", ["Obama", "Barack Hussein Obama"], 0.8),
        ("cat cat cat", ["cat"], 0.5),
    ],
)
def test_token_f1(output, references, f1):
    assert squad.token_f1(output, references) == pytest.approx(f1)


def test_token_f1_on_every_vector():
    for case in vectors("vec_qa.json")["qa"]:
        said = squad.token_f1(case["pred"], case["gold"])
        assert said == pytest.approx(case["ib_f1"], abs=1e-4), case


@pytest.mark.parametrize(
    ("task", "output", "gold", "score"),
    [
        ("passkey", "The pass key is 71432.", ["71432"], 1),
        ("passkey", "1. It is 71432", ["71432"], 0),
        ("kv_retrieval", 'It is: "c14c-ba".', ["c14c-ba"], 1),
        ("kv_retrieval", "c14c-ba-1", ["c14c-ba"], 0),
        ("code_run", "it returns `-3`.", [-3], 1),
        ("code_run", "-3 is returned", [-3], 0),
        ("code_debug", "B. f", ["f", "B"], 1),
        ("code_debug", "The function is: f", ["f", "B"], 1),
        ("code_debug", "B", ["f", "B"], 0),
        ("longbook_choice_eng", "A. Walking", ["Walking", "A"], 1),
        ("longbook_choice_eng", "I say C", ["Walking", "C"], 1),
        ("longbook_choice_eng", "Because of C", ["Walking", "B"], 1),
        ("longdialogue_qa_eng", "Ace Rothstein", ["ACE", "ACE ROTHSTEIN"], 1),
        ("longdialogue_qa_eng", "Rothstein", ["ACE", "ROTHSTEIN"], 0),
        ("longbook_qa_chn", "福气龙。", ["福 气 龙"], 1),
        ("math_find", "88 or 3", [88], 1),
        ("math_find", "it is 2.5", [2.5], 1),
        ("math_calc", "[1, 2, 4]", [1, 2, 3, 4], 0.5),
    ],
)
def test_infinitebench(task, output, gold, score):
    assert infinitebench.RULES[task](output, gold) == score
