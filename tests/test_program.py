"""`RLM`: guidance and protocol apart, settings as a parameter, nothing paid for is lost."""

import asyncio
import threading

import dspy
import pytest
from scripted import DOLLAR, action, fields, scripted_lm

from fleet_rlm import RLM, LocalInterpreter, RecursionSettings
from fleet_rlm.errors import LimitReached, UsageError
from fleet_rlm.ledger import Ledger, Limits
from fleet_rlm.program.find import find_program, parse_settings
from fleet_rlm.program.registry import PROGRAMS

CONTEXT = "The door code is 4711. " * 200


def make_rlm(**arguments):
    return RLM("context, query -> answer", interpreter_factory=LocalInterpreter, **arguments)


def ask(rlm, lm, *, ledger=None, sub=None, **inputs):
    with dspy.context(lm=lm, fleet_ledger=ledger, fleet_sub_lm=sub):
        return rlm(**({"context": CONTEXT, "query": "Which code?"} | inputs))


def test_an_answer_is_submitted_from_the_sandbox():
    codes = ["print(len(context))", "import re\nSUBMIT(re.findall(r'\\d+', context)[0])"]
    lm = scripted_lm(lambda _, n: action(codes[n - 1]))
    found = ask(make_rlm(), lm)
    assert (found.answer, found.stop) == ("4711", "submitted")
    assert [step["code"] for step in found.trajectory] == codes
    assert str(len(CONTEXT)) in found.trajectory[0]["output"]


def test_code_runs_in_our_sandbox_when_none_was_chosen():
    lm = scripted_lm(lambda *_: action("import os\nSUBMIT(str(sorted(os.environ)[:1]))"))
    rlm = RLM("context, query -> answer")
    assert ask(rlm, lm).stop == "submitted"
    assert LocalInterpreter.execution_instructions in lm.engine.prompts[0]


def test_the_protocol_survives_a_new_instruction_and_shows_live_settings():
    rlm = make_rlm()
    rlm.generate_action.signature = rlm.generate_action.signature.with_instructions("Only this.")
    rlm.max_llm_calls = 33
    lm = scripted_lm(lambda *_: action("SUBMIT('x')"))
    ask(rlm, lm)
    prompt = lm.engine.prompts[0]
    for part in ("Only this.", "SUBMIT(answer)", "llm_query_batched", "max 33 sub-LLM calls"):
        assert prompt.count(part) >= 1
    assert rlm.generate_action.signature.instructions == "Only this."


def test_the_rules_of_the_serving_sandbox_appear_once_after_loading(tmp_path):
    class Elsewhere:
        execution_instructions = "RULES-OF-ELSEWHERE"

        def __call__(self):
            return LocalInterpreter()

    make_rlm(guidance="Learned.").save(tmp_path / "state.json")
    served = RLM("context, query -> answer", interpreter_factory=Elsewhere())
    served.load(tmp_path / "state.json")
    lm = scripted_lm(lambda *_: action("SUBMIT('x')"))
    ask(served, lm)
    prompt = lm.engine.prompts[0]
    assert prompt.count("RULES-OF-ELSEWHERE") == 1
    assert LocalInterpreter.execution_instructions not in prompt
    assert "Learned." in prompt


def test_settings_are_a_parameter_that_is_listed_saved_loaded_copied_and_kept(tmp_path):
    rlm = make_rlm(max_iters=5, max_llm_calls=7, max_output_chars=900, batch_workers=3)
    names = [name for name, _ in rlm.named_parameters()]
    assert "recursion" in names
    assert "recursion" not in [name for name, _ in rlm.named_predictors()]
    rlm.save(tmp_path / "state.json")
    loaded = make_rlm()
    loaded.load(tmp_path / "state.json")
    for other in (loaded, rlm.deepcopy(), rlm.reset_copy()):
        assert other.recursion.to_json() == {
            "max_iters": 5,
            "max_llm_calls": 7,
            "max_output_chars": 900,
            "batch_workers": 3,
            "max_depth": 1,
            "max_children": 16,
            "call_timeout_s": 0,
        }
    copy = rlm.deepcopy()
    copy.max_iters = 9
    assert (rlm.max_iters, copy.max_iters) == (5, 9)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"max_iter": 3}, "Did you mean 'max_iters'?"),
        ({"max_iters": 0}, "from 1 to 200"),
        ({"max_iters": True}, "whole number"),
        ({"max_llm_calls": 2.5}, "whole number"),
    ],
)
def test_a_wrong_setting_is_refused_and_changes_nothing(values, part):
    settings = RecursionSettings()
    before = settings.to_json()
    with pytest.raises(UsageError, match="etting") as caught:
        settings.update({"batch_workers": 2} | values)
    assert part in str(caught.value)
    assert settings.to_json() == before


def test_a_state_file_with_a_wrong_setting_is_refused(tmp_path):
    rlm = make_rlm()
    state = rlm.dump_state()
    state["recursion"]["max_iters"] = 10**9
    with pytest.raises(UsageError, match="max_iters"):
        rlm.load_state(state)


def test_a_malformed_action_is_read_by_the_model_and_not_fatal():
    replies = ["no fields at all", "{}", fields(reasoning="r", code="```sql\nselect 1\n```")]
    seen = []

    def script(prompt, number):
        seen.append(prompt)
        return replies[number - 1] if number <= 3 else action("SUBMIT('late')")

    found = ask(make_rlm(), scripted_lm(script))
    assert (found.answer, found.stop) == ("late", "submitted")
    assert "[Error]" in found.trajectory[0]["output"]
    assert "`reasoning` and `code`" in seen[-1]


def test_what_was_printed_before_an_error_is_kept():
    codes = ["print('precious')\n1/0", "SUBMIT('x')"]
    found = ask(make_rlm(), scripted_lm(lambda _, n: action(codes[n - 1])))
    output = found.trajectory[0]["output"]
    assert "precious" in output
    assert "ZeroDivisionError" in output


def test_turns_used_up_end_in_extraction():
    def script(prompt, number):
        return fields(answer="from what I saw") if number == 3 else action("print(1)")

    found = ask(make_rlm(max_iters=2), scripted_lm(script))
    assert (found.answer, found.stop, len(found.trajectory)) == ("from what I saw", "iterations", 2)


def test_a_met_limit_still_extracts_what_is_paid_for():
    def script(prompt, number):
        return fields(answer="partial") if number == 3 else action("print('step')")

    ledger = Ledger(Limits(tokens=30))
    found = ask(make_rlm(), scripted_lm(script, price=DOLLAR), ledger=ledger)
    assert (found.answer, found.stop) == ("partial", "tokens")
    assert ledger.total.calls == 3
    assert ledger.total.usd == pytest.approx(45.0)


def test_a_limit_met_by_a_sub_query_ends_in_extraction_too():
    def script(prompt, number):
        return (
            fields(answer="partial")
            if "repl_history" in prompt and number > 1
            else action("llm_query('one')\nllm_query('two')\nprint('never')")
        )

    sub = scripted_lm(lambda *_: "reply", role="sub")
    ledger = Ledger(Limits(tokens=30))
    found = ask(make_rlm(), scripted_lm(script), ledger=ledger, sub=sub)
    assert found.stop == "tokens"
    assert found.answer == "partial"
    assert len(sub.engine.prompts) == 1


def test_sub_queries_over_the_setting_are_refused_readably():
    codes = [
        "print(llm_query_batched(['a', 'b']))\nprint(llm_query('c'))",
        "SUBMIT('done')",
    ]
    sub = scripted_lm(lambda *_: "reply", role="sub")
    ledger = Ledger()
    found = ask(
        make_rlm(max_llm_calls=2),
        scripted_lm(lambda _, n: action(codes[n - 1])),
        ledger=ledger,
        sub=sub,
    )
    assert "LLM call limit exceeded" in found.trajectory[0]["output"]
    assert "['reply', 'reply']" in found.trajectory[0]["output"]
    assert found.answer == "done"
    assert {role: usage.calls for role, usage in ledger.by_role.items()} == {"root": 2, "sub": 2}


def test_a_batch_runs_as_wide_as_the_setting_says():
    wide = threading.Barrier(6, timeout=10)

    def reply(*_):
        wide.wait()
        return "ok"

    code = "r = llm_query_batched([str(n) for n in range(6)])\nSUBMIT(','.join(r))"
    found = ask(
        make_rlm(batch_workers=6), scripted_lm(lambda *_: action(code)), sub=scripted_lm(reply)
    )
    assert found.answer == ",".join(["ok"] * 6)


def test_one_failed_sub_query_of_a_batch_leaves_the_others():
    def reply(prompt, _):
        return dspy.LMServerError("down") if "bad" in prompt else "fine"

    code = "SUBMIT(str(llm_query_batched(['good', 'bad', 'good'])))"
    found = ask(make_rlm(), scripted_lm(lambda *_: action(code)), sub=scripted_lm(reply))
    assert found.answer.count("fine") == 2
    assert "[ERROR]" in found.answer


def test_generated_code_cannot_build_agents_of_its_own():
    # Stock dspy installs functions with which code builds agents and sandboxes on the host.
    code = "SUBMIT(str([name for name in globals() if 'dspy' in name]))"
    lm = scripted_lm(lambda *_: action(code))
    assert ask(make_rlm(), lm).answer == "[]"
    stock = dspy.RLM("context, query -> answer", interpreter_factory=LocalInterpreter)
    assert "__dspy_construct__" in ask(stock, lm).answer
    assert "Sub-agents" not in lm.engine.prompts[0]


def test_the_asynchronous_call_gives_the_same():
    async def both():
        lm = scripted_lm(lambda *_: action("SUBMIT(context[:3])"))
        with dspy.context(lm=lm):
            return await asyncio.gather(
                *(make_rlm().acall(context=f"{n}xx-", query="q") for n in range(4))
            )

    assert [found.answer for found in asyncio.run(both())] == [f"{n}xx" for n in range(4)]


@pytest.mark.parametrize("inputs", [{"extra": 1}, {"query": "q"}])
def test_inputs_that_do_not_fit_are_refused(inputs):
    rlm = make_rlm()
    with dspy.context(lm=scripted_lm(lambda *_: "")), pytest.raises(ValueError, match="nputs"):
        rlm(**inputs)


def test_a_direct_program_meets_the_limit_as_an_exception():
    program = find_program("direct").make("", RecursionSettings())
    ledger = Ledger(Limits(wall_s=0.0))
    with (
        dspy.context(lm=scripted_lm(lambda *_: ""), fleet_ledger=ledger),
        pytest.raises(LimitReached, match="wall"),
    ):
        program(context="c", query="q")


def test_a_program_refuses_settings_that_it_would_ignore():
    assert parse_settings("rlm", {"max_iters": 3})["max_iters"] == 3
    with pytest.raises(UsageError, match="has no setting 'max_iters'"):
        parse_settings("direct", {"max_iters": 3})
    with pytest.raises(UsageError, match="Did you mean 'direct'"):
        find_program("dierct")
    assert {"rlm", "direct"} <= set(PROGRAMS)
