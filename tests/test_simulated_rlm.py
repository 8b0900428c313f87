"""The simulated model drives real RLMs: its code runs, and it errs for a reason."""

import re
from typing import Literal

import dspy
import pytest
from dspy.primitives.repl_types import REPLHistory
from simulated_arms import able_seed, judge, make_lm, make_rlm, make_samples, mean, run

from fleet_rlm import RLM, LocalInterpreter
from fleet_rlm.lm.simulated import ORACLE_GUIDANCE, SimulatedEngine
from fleet_rlm.program.registry import AnswerQuery

KINDS = ["needle", "chain", "count", "most_common", "compare", "count_user"]
ORACLE = ORACLE_GUIDANCE.removeprefix("Answer the query from the context.\n")


@pytest.fixture(scope="module")
def samples():
    """One small sample of every kind of question."""
    made = make_samples(lengths=[4000], windows=4, questions=1)
    return {sample.question.kind: sample for sample in made}


def ask(program, sample, engine, **settings):
    with dspy.context(lm=make_lm(engine), **settings):
        return program(context=sample.context, query=sample.query)


def code_of(prediction):
    return "\n".join(step["code"] for step in prediction.trajectory)


@pytest.fixture(scope="module")
def able(samples):
    """A seed that has every ability on the samples when it is told."""
    return able_seed(list(samples.values()))


@pytest.mark.parametrize("seed", range(4))
def test_code_runs_for_every_question_with_and_without_each_ability(samples, seed):
    # The seeds draw programs that are bare, exact, broken, sloppy and talkative.
    engine = SimulatedEngine(seed)
    for outcome in run(make_rlm(), list(samples.values()), engine):
        errors = [s["output"] for s in outcome.trajectory if "[Error]" in s["output"]]
        assert all("NameError" in error for error in errors), errors
        assert outcome.trajectory[-1]["output"].startswith("FINAL")
        assert outcome.answer
    assert engine.kinds["unknown"] == 0


def test_the_stock_rlm_is_understood_too(samples):
    engine = SimulatedEngine(3)
    stock = dspy.RLM("context, query -> answer", interpreter_factory=dspy.LocalInterpreter)
    ours = run(make_rlm(), list(samples.values()), engine)
    theirs = run(stock, list(samples.values()), engine)
    assert [o.answer for o in theirs] == [o.answer for o in ours]
    assert engine.kinds["unknown"] == 0


def test_oracle_guidance_answers_every_kind_of_question(samples, able):
    for outcome in run(make_rlm(ORACLE_GUIDANCE), list(samples.values()), SimulatedEngine(able)):
        assert outcome.score == 1.0, outcome


def test_eight_threads_answer_what_one_thread_answers():
    samples = make_samples(lengths=[4000], windows=3)
    alone, together = SimulatedEngine(1), SimulatedEngine(1)
    one = run(make_rlm(), samples, alone, threads=1)
    eight = run(make_rlm(), samples, together, threads=8)
    assert [o.answer for o in one] == [o.answer for o in eight]
    assert [o.trajectory for o in one] == [o.trajectory for o in eight]
    assert alone.kinds == together.kinds


def test_the_json_adapter_and_the_chat_adapter_get_the_same_answer(samples):
    engine = SimulatedEngine(2)
    for kind in KINDS:
        chat = ask(make_rlm(), samples[kind], engine)
        json = ask(make_rlm(), samples[kind], engine, adapter=dspy.JSONAdapter())
        assert (json.answer, json.trajectory) == (chat.answer, chat.trajectory)
    assert engine.kinds["unknown"] == 0


def test_a_failing_first_program_is_mended_after_the_traceback():
    samples = make_samples(lengths=[4000], windows=6)
    outcomes = run(make_rlm(), samples, SimulatedEngine(0))
    failed = [o for o in outcomes if "[Error]" in o.output and "NameError" in o.output]
    assert len(failed) >= 3
    assert all("I mend it" in str(o.trajectory) and o.answer for o in failed)


def test_sub_queries_are_spread_over_the_calls_that_the_prompt_allows(samples, able):
    rlm = make_rlm(ORACLE_GUIDANCE, max_llm_calls=4)
    found = ask(rlm, samples["most_common"], SimulatedEngine(able))
    assert "limit exceeded" not in str(found.trajectory)
    assert "asked 2 sub-queries" in str(found.trajectory)


@pytest.mark.parametrize("tools", ["llm_query and llm_query_batched", "llm_query"])
def test_the_error_of_the_call_limit_enlarges_chunks_or_ends_the_asking(samples, tools, able):
    # An instruction that names no limit: the model learns of it from the error.
    rlm = dspy.RLM(AnswerQuery, interpreter_factory=LocalInterpreter, max_llm_calls=3)
    told = f"Use {tools} and SUBMIT(answer).\n{ORACLE}".replace("60 lines", "20 lines")
    rlm.generate_action.signature = rlm.generate_action.signature.with_instructions(told)
    found = ask(rlm, samples["count"], SimulatedEngine(able))
    text = str(found.trajectory)
    assert "LLM call limit exceeded" in text
    if "batched" in tools:
        assert "I ask about more lines" in text
        assert judge(samples["count"], found.answer).robust > 0.5
    else:
        assert "I use the replies I have" in text
        assert int(re.sub(r"\D", "", found.answer)) > 0


@pytest.mark.parametrize(
    "error",
    [
        "[Error] RuntimeError: {}",
        '[Error] Traceback (most recent call last):\n  File "<cell-1>", line 4\nQueryRefused: {}',
    ],
)
def test_the_limit_is_read_from_any_kind_of_report(error):
    said = error.format("LLM call limit exceeded: 3 + 9 > 10. Use Python code.")
    prompt = (
        "Variable: `text` (access it in your code)\nType: str\nTotal length: 9 characters\n"
        "Preview:\n```\nInstance: \n```\nVariable: `ask` (access it in your code)\nType: str\n"
        "Total length: 9 characters\nPreview:\n```\n"
        "How many instances should be classified as label 'food'?\n```"
    )
    engine = SimulatedEngine()
    rlm = RLM("text, ask -> answer")
    with dspy.context(lm=make_lm(engine)):
        found = rlm.generate_action(
            signature=rlm.action_signature(LocalInterpreter, recursive=True),
            variables_info=prompt,
            repl_history=REPLHistory().append(code="out = []", output=said),
            iteration="2/9",
        )
    assert "STEP = max(STEP * 2, -(-len(rows) // 7))" in found.code
    assert engine.kinds["action"] == 1


def instructed(text):
    rlm = dspy.RLM(AnswerQuery, interpreter_factory=LocalInterpreter, max_iters=5)
    rlm.generate_action.signature = rlm.generate_action.signature.with_instructions(text)
    return rlm


def test_tools_that_the_instruction_does_not_name_are_not_used(samples, able):
    bare = ask(instructed("Answer the query.\n" + ORACLE), samples["count"], SimulatedEngine(able))
    assert "llm_query" not in code_of(bare)
    assert "SUBMIT" not in code_of(bare)
    assert "Extract forced" in bare.final_reasoning
    single = ask(
        instructed("Use llm_query and SUBMIT(answer).\n" + ORACLE),
        samples["count"],
        SimulatedEngine(able),
    )
    assert "llm_query(" in code_of(single)
    assert "llm_query_batched" not in code_of(single)
    assert judge(samples["count"], single.answer).robust == 1.0


def test_extract_answers_in_the_form_asked_for_what_the_repl_printed(samples, able):
    engine = SimulatedEngine(able)
    silent = instructed("Use llm_query.\n" + ORACLE)
    for kind in KINDS:
        found = ask(silent, samples[kind], engine)
        assert judge(samples[kind], found.answer).robust == 1.0, kind
    assert engine.kinds["extract"] == len(KINDS)


def test_no_sub_calls_allowed_means_none_made(samples, able):
    engine = SimulatedEngine(able)
    found = ask(make_rlm(ORACLE_GUIDANCE, max_llm_calls=0), samples["count"], engine)
    assert found.answer
    assert engine.kinds["sub_query"] == 0


def test_on_its_only_turn_the_model_submits_blind(samples, able):
    found = ask(make_rlm(ORACLE_GUIDANCE, max_iters=1), samples["needle"], SimulatedEngine(able))
    assert (found.stop, len(found.trajectory)) == ("submitted", 1)


class Report(dspy.Signature):
    """Count what is asked for."""

    memo: str = dspy.InputField()
    documents: list[str] = dspy.InputField()
    ask: str = dspy.InputField()
    total: int = dspy.OutputField()
    confidence: float = dspy.OutputField()
    explanation: str = dspy.OutputField()


def test_other_names_types_and_several_outputs(samples, able):
    sample = samples["count"]
    rlm = make_rlm_for(Report)
    halves = sample.context.split("\n", 40)
    with dspy.context(lm=make_lm(SimulatedEngine(able))):
        found = rlm(memo="Nothing here.", documents=halves, ask=sample.query)
    assert found.total == int(sample.question.gold[0])
    assert 0 < found.confidence <= 1
    assert found.explanation


def test_a_list_and_a_choice_are_submitted_as_such(samples, able):
    class Names(dspy.Signature):
        text: str = dspy.InputField()
        question: str = dspy.InputField()
        names: list[str] = dspy.OutputField()

    class Verdict(dspy.Signature):
        text: str = dspy.InputField()
        question: str = dspy.InputField()
        verdict: Literal["more common than", "less common than", "same frequency as"] = (
            dspy.OutputField()
        )

    with dspy.context(lm=make_lm(SimulatedEngine(able))):
        chain, pair = samples["chain"], samples["compare"]
        names = make_rlm_for(Names)(text=chain.context, question=chain.query).names
        verdict = make_rlm_for(Verdict)(text=pair.context, question=pair.query).verdict
    assert sorted(names) == list(chain.question.gold)
    assert verdict == pair.question.gold[0]


def make_rlm_for(signature):
    return RLM(signature, guidance=ORACLE_GUIDANCE, interpreter_factory=LocalInterpreter)


def test_a_question_beyond_its_world_is_asked_of_the_sub_model_and_left_open():
    engine = SimulatedEngine()
    with dspy.context(lm=make_lm(engine)):
        found = make_rlm()(context="It was a dark night.\n" * 500, query="Who is the narrator?")
    assert found.answer == "unknown"
    assert engine.kinds["sub_query"] == 1
    assert engine.kinds["unknown"] == 0


def test_planted_lines_are_found_in_a_million_tokens_of_prose(able):
    prose = (
        "He said, 'VAR is no name', and the code of honour was for the king, he added.\n" * 55_000
    )
    needle = "The access code for Halcyon-37 is 4815162."
    near = "The access code for Halcyon-370 is 1111111."
    old = "The access code for Halcyon-37 is 2222222 (revoked, do not use)."
    middle = len(prose) // 2
    text = f"{near}\n{prose[:middle]}\n{old}\n{needle}\n{prose[middle:]}"
    query = "What is the current access code for Halcyon-37? Answer with the code only."
    with dspy.context(lm=make_lm(SimulatedEngine(able))):
        assert make_rlm(ORACLE_GUIDANCE)(context=text, query=query).answer == "4815162"


def test_a_cheaper_sub_model_errs_more():
    samples = [
        s for s in make_samples(tasks=["aggregate"], lengths=[32_000], windows=6)
        if s.question.kind == "count"
    ]  # fmt: skip
    engine = SimulatedEngine()
    guidance = ORACLE_GUIDANCE.replace("60 lines", "150 lines")
    strong = run(make_rlm(guidance), samples, engine)
    weak = run(make_rlm(guidance, sub_lm=make_lm(engine, "sim-mini")), samples, engine)
    assert mean(weak) < mean(strong)
