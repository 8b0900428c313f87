"""What the simulated model reads: prompts taken apart, questions by wording, sub-queries."""

import dspy
import pytest
from dspy.lm15 import Message, Request
from hypothesis import example, given
from hypothesis import strategies as st
from simulated_arms import make_lm

from fleet_rlm.lm.engines import AsyncEngine
from fleet_rlm.lm.simulated import LABEL, PRICES, SimulatedEngine
from fleet_rlm.lm.simulated.asks import count_ask, find_ask, label_ask, tally_ask
from fleet_rlm.lm.simulated.brain import KINDS, Brain
from fleet_rlm.lm.simulated.prompt import Turn, parse_contract, parse_steps, parse_variables
from fleet_rlm.lm.simulated.skill import label_error
from fleet_rlm.lm.simulated.world import answer, in_form, understand

LABELS = ("animal", "food", "music")
NEEDLES = """Some prose.
The access code for Halcyon-73 is 1111111.
The access code for Halcyon-37 is 2222222 (revoked, do not use).
More prose. The access code for Halcyon-370 is 3333333. And more.
The access code for Halcyon-37 is 4444444.
"""
ASSIGNMENTS = """VAR AAAAA = 48213
prose VAR is not one
VAR BBBBB = VAR AAAAA
VAR CCCCC = 11111
VAR DDDDD = VAR BBBBB
"""
ROWS = """The following lines contain 4 instances, one per line. Each line has a date, a user and \
an instance. Every instance belongs to exactly one of these labels: animal, food, music.

Date: Mar 03, 2023 || User: 63685 || Instance: We saw the otter.
Date: Mar 04, 2023 || User: 63685 || Instance: We heard the cello.
Date: Mar 05, 2023 || User: 11111 || Instance: Nobody likes the badger.
Date: Mar 06, 2023 || User: 11111 || Instance: There was a pretzel.
"""
FORM = "Give your final answer in the form"
QUESTIONS = [
    (
        "What is the current access code for Halcyon-37? Answer with the code only.",
        NEEDLES,
        "4444444",
    ),
    (
        "Find every variable that ends up with the value 48213 after following all VAR assignments"
        " in the text. Answer with the variable names only, separated by commas.",
        ASSIGNMENTS,
        "AAAAA, BBBBB, DDDDD",
    ),
    (
        "How many instances should be classified as label 'animal'?" + FORM + " 'Answer: number'.",
        ROWS,
        "Answer: 2",
    ),
    (
        "Among the instances of user 63685, how many should be classified as label 'animal'?"
        f" {FORM} 'Answer: number'.",
        ROWS,
        "Answer: 1",
    ),
    (
        f"Which of the labels is the most common in the instances? {FORM} 'Label: answer', where"
        " answer is one of the labels: animal, food, music.",
        ROWS,
        "Label: animal",
    ),
    (
        "Is label 'food' more common than, less common than, or as common as (same frequency) label"
        f" 'animal'? {FORM} 'Answer: food is [X] label animal', where [X] is 'more common than',"
        " 'less common than' or 'same frequency as'.",
        ROWS,
        "Answer: food is less common than label animal",
    ),
]


@pytest.mark.parametrize(("query", "text", "expected"), QUESTIONS)
def test_questions_are_understood_by_their_wording(query, text, expected):
    question = understand(query, text)
    assert in_form(question, answer(question, text)) == expected


@pytest.mark.parametrize("query", ["", "Who is the narrator?", "Summarise the text.", "VAR x = 1"])
def test_other_questions_are_not(query):
    assert understand(query) is None


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter()])
@pytest.mark.parametrize(("query", "text", "expected"), QUESTIONS)
def test_a_short_text_is_read_right_through_both_adapters(adapter, query, text, expected):
    engine = SimulatedEngine()
    with dspy.context(lm=make_lm(engine), adapter=adapter):
        plain = dspy.Predict("context, query -> answer")(context=text, query=query)
        thought = dspy.ChainOfThought("text, ask -> result, confidence: float")(
            text=text, ask=query
        )
    assert (plain.answer, thought.result) == (expected, expected)
    assert 0 < thought.confidence <= 1
    assert engine.kinds["predict"] == 2


def test_an_unknown_question_is_left_open_and_an_unknown_prompt_is_counted():
    engine = SimulatedEngine()
    lm = make_lm(engine)
    with dspy.context(lm=lm):
        assert "not sure" in dspy.Predict("question -> answer")(question="Why?").answer
        assert dspy.Predict("question -> score: int")(question="Why?").score == 0
        assert dspy.Predict("question -> tags: list[str]")(question="Why?").tags == []
    assert engine.kinds["unknown"] == 0
    assert "not sure" in lm("hello")[0]
    with dspy.context(lm=lm):
        dspy.Predict("apples, pears -> bananas")(apples="1", pears="2")
    assert engine.kinds["unknown"] == 2


@pytest.mark.parametrize(
    ("info", "history", "kind"),
    [
        ("Variable: `a` (access it in your code)", "You have not interacted with it.", "action"),
        ("Variable: `a` (access it in your code)", "=== Step 1 ===\nran: 1\ngot: 2", "unknown"),
        ("Variable: `a` (access it in your code)", "Turn 1: ...", "unknown"),
        ("a = 'some text'", "You have not interacted with it.", "unknown"),
    ],
)
def test_an_rlm_prompt_in_another_form_is_unknown(info, history, kind):
    engine = SimulatedEngine()
    act = dspy.Predict("variables_info, repl_history, iteration -> reasoning, code")
    with dspy.context(lm=make_lm(engine)):
        act(variables_info=info, repl_history=history, iteration="1/9")
    assert engine.kinds[kind] == 1


PIECES = st.sampled_from(
    [
        "Your input fields are:\n1. `query` (str): \n",
        "Your output fields are:\n1. `answer` (int): \n",
        "All interactions will be structured",
        "your objective is:",
        "[[ ## query ## ]]\n",
        "1. `notes` (Literal['a', 'b']): ",
        "Label each of the following lines with exactly one of: a, b.",
        "\n",
        QUESTIONS[0][0],
        QUESTIONS[4][0],
    ]
)


@given(st.lists(PIECES | st.text(max_size=20)), st.lists(PIECES | st.text(max_size=20)))
@example(["Your input fields are:\n1. `query` (str): \n", "your objective is:"], [])
def test_no_prompt_is_too_odd_to_be_answered(system, user):
    reply = Brain().reply([Turn("system", "".join(system)), Turn("user", "".join(user))])
    assert reply.kind in KINDS


def ask(text, model="sim", seed=0):
    return Brain(seed).reply([Turn("user", text)], model=model)


def test_sub_queries_are_answered_in_the_form_they_ask_for():
    lines = "We saw the otter.\nWe heard the cello.\nThere was a pretzel."
    assert ask(label_ask(LABELS) + lines) == ("sub_query", "animal\nmusic\nfood")
    assert ask(label_ask(("food", "other")) + lines).text == "other\nother\nfood"
    assert ask(count_ask("music") + lines) == ("sub_query", "1")
    assert ask(tally_ask(LABELS) + lines).text == "animal: 1\nfood: 1\nmusic: 1"
    query, text, _ = QUESTIONS[0]
    assert ask(find_ask(query) + text) == ("sub_query", "4444444")
    assert ask(find_ask(query) + "prose") == ("sub_query", "I am not sure.")
    assert ask(f"{query}\n{text}") == ("sub_query", "4444444")
    assert ask("Tell me a story.").kind == "unknown"


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("To which room was Fay moved?", "691"),
        ("Who repaired the boiler of ward four?", "Ines Ott"),
        ("Where does Jo sleep?", "blue attic"),
        ("What colour has the boiler's valve?", "dark green"),
        ("To which room was Bo moved?", "I am not sure."),
        ("Who sold the horse?", "I am not sure."),
    ],
)
def test_a_question_in_other_words_is_answered_from_the_sentence_that_shares_most(query, answer):
    text = (
        "[2024-02-02] Note 7: Fay was seen by nurse K.\nTransfer: Dov moved to room 516.\n"
        "Transfer: Fay moved to room 691 in ward 3. The boiler of ward four was repaired by Ines"
        " Ott.\nSince May Jo sleeps in the blue attic. The valve of the boiler has the colour dark"
        " green.\n"
    ) + "Nothing else was written down that day.\n" * 20
    assert ask(find_ask(query) + text) == ("sub_query", answer)
    with dspy.context(lm=make_lm(SimulatedEngine())):
        assert dspy.Predict("context, query -> answer")(context=text, query=query).answer == answer
    assert ask(find_ask(query) + "A line.").text == "I am not sure."


def wrong(lines, model="sim"):
    """Indices of the lines that are labelled wrongly, of 'otter' lines asked about at once."""
    text = label_ask(LABELS) + "\n".join(f"On day {i} we saw the otter." for i in range(lines))
    replies = ask(text, model).text.splitlines()
    assert len(replies) == lines
    return {i for i, label in enumerate(replies) if label != "animal"}


def test_a_line_wrong_among_few_is_wrong_among_many():
    sizes = (60, 90, 250, 400, 600)
    found = [wrong(size) for size in sizes]
    assert found[0] == set()
    assert len(found[1]) == 0
    for size, now, larger in zip(sizes, found, found[1:], strict=False):
        assert now <= larger
        assert len(now) == pytest.approx(size * label_error(size), abs=3 * (size * 0.2) ** 0.5)
    assert len(wrong(400, "sim-mini")) > len(wrong(400))


def test_the_contract_is_read_from_the_protocol():
    text = (
        "- {total}        # note: the value you produce must be a single int value\n"
        "- {kind}        # note: the value you produce must exactly match (no extra characters)"
        " one of: big; small\n- {why}\n- `llm_query(prompt)`\n- `SUBMIT(total, kind, why)`\n"
        "You have max 1,200 sub-LLM calls."
    )
    contract = parse_contract(text)
    assert (contract.query, contract.batched, contract.max_calls) == (True, False, 1200)
    assert {n: f.kind for n, f in contract.submit.items()} == {
        "total": "int",
        "kind": "choice",
        "why": "text",
    }
    assert contract.submit["kind"].options == ["big", "small"]
    assert parse_contract("Answer.").submit is None
    assert not parse_contract("llm_query, max 0 sub-LLM calls").query
    assert parse_contract("Answer.", "SUBMIT(answer=result)").submit.keys() == {"answer"}


@given(st.text(max_size=300), st.text(max_size=300))
def test_variables_and_steps_survive_any_text_around_fences(preview, output):
    from dspy.adapters.utils import format_field_value
    from dspy.primitives.repl_types import REPLHistory, REPLVariable
    from pydantic.fields import FieldInfo

    variables = [REPLVariable.from_value("a", preview), REPLVariable.from_value("b", "short")]
    listed = format_field_value(FieldInfo(annotation=str), [v.format() for v in variables])
    assert [v.name for v in parse_variables(listed)] == ["a", "b"]
    assert parse_variables(listed)[1].preview == "short"
    history = REPLHistory().append(code="print(1)", output=output).append(code="x", output="2")
    steps = parse_steps(history.format())
    assert [step.code for step in steps] == ["print(1)", "x"]
    assert steps[1].output == "2"


def test_the_engine_counts_tokens_keeps_its_counts_and_can_be_stored():
    from copy import deepcopy

    engine = SimulatedEngine(seed=7)
    request = Request(model="sim", messages=(Message.user("x" * 400),))
    reply = engine.complete(request)
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (100, 4)
    assert deepcopy(engine) is engine
    assert list(engine.kinds) == list(KINDS)
    assert engine.kinds["unknown"] == 1
    assert SimulatedEngine.load_state(engine.dump_state()).seed == 7
    events = [event.type for event in engine.stream(request)]
    assert events == ["start", *["delta"] * 4, "end"]


def test_both_models_have_a_price_and_the_label_says_what_it_is():
    assert set(PRICES) == {"sim", "sim-mini"}
    assert PRICES["sim-mini"].input < PRICES["sim"].input
    assert LABEL == "simulated model: these numbers show the harness, not any model"


def test_acall_and_streaming_work():
    import asyncio

    engine = SimulatedEngine()
    lm = make_lm(engine, async_engine=AsyncEngine(engine))
    query, text, expected = QUESTIONS[0]
    predict = dspy.Predict("context, query -> answer")

    async def both():
        with dspy.context(lm=lm):
            found = await predict.acall(context=text, query=query)
            listener = dspy.streaming.StreamListener(signature_field_name="answer")
            stream = dspy.streamify(predict, stream_listeners=[listener])
            chunks = [c async for c in stream(context=text, query=query)]
        return found.answer, chunks

    found, chunks = asyncio.run(both())
    assert found == expected
    assert chunks[-1].answer == expected
    assert "".join(c.chunk for c in chunks[:-1]) == expected


def test_the_brain_needs_no_dspy():
    import subprocess
    import sys

    code = (
        "import sys, fleet_rlm.lm.simulated.brain as brain\n"
        "from fleet_rlm.lm.simulated import LABEL, PRICES, ORACLE_GUIDANCE\n"
        "brain.Brain().reply([brain.Turn('user', 'hello')])\n"
        "assert 'dspy' not in sys.modules and 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
