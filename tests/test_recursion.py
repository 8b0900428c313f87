"""Children, one budget over the tree, what survives, references, and watching a program run."""

import asyncio
import json
import logging
import pickle
import threading
import time

import dspy
import pytest
from dspy.primitives.code_interpreter import CodeInterpreterError
from scripted import action, fields, scripted_lm

from fleet_rlm import RLM, LocalInterpreter
from fleet_rlm.errors import DataError
from fleet_rlm.ledger import Ledger, Limits
from fleet_rlm.lm.cancel import Cancelled, CancelScope
from fleet_rlm.program.context_ref import ContextRef
from fleet_rlm.program.events import Event
from fleet_rlm.program.stream import astream, stream

CONTEXT = "The door code is 4711. " * 200


def make_rlm(**arguments):
    factory = arguments.pop("factory", LocalInterpreter)
    return RLM("context, query -> answer", interpreter_factory=factory, **arguments)


def ask(rlm, lm, **settings):
    inputs = {"context": settings.pop("context", CONTEXT), "query": "Which code?"}
    with dspy.context(lm=lm, **settings):
        return rlm(**inputs)


def nested(prompt, _number):
    """Ask a child as long as the protocol offers one; the deepest reads the text."""
    if "rlm_query" in prompt:
        return action("SUBMIT('<' + rlm_query('deeper?') + '>')")
    return action("SUBMIT(context[:8])")


# ---- children -----------------------------------------------------------------------------------


@pytest.mark.parametrize("max_depth", [0, 1, 2, 3])
def test_children_run_to_the_depth_that_the_setting_says(max_depth):
    found = ask(make_rlm(max_depth=max_depth), scripted_lm(nested))
    assert found.answer == "<" * max_depth + "The door" + ">" * max_depth


def test_a_child_uses_the_same_guidance_and_demos_in_a_session_of_its_own():
    rlm = make_rlm(guidance="LEARNED-GUIDANCE")
    rlm.generate_action.demos = [
        {"variables_info": "v", "repl_history": "h", "iteration": "1/2", "code": "DEMO-CODE"}
    ]
    lm = scripted_lm(nested)
    ask(rlm, lm)
    root, child = lm.engine.prompts
    for prompt in (root, child):
        assert "LEARNED-GUIDANCE" in prompt
        assert "DEMO-CODE" in prompt
    assert "rlm_query" in root
    assert "rlm_query" not in child


def test_a_child_sees_only_what_it_is_given():
    def script(prompt, _):
        if "rlm_query" in prompt:
            return action("secret = 1\nSUBMIT(rlm_query('q', context='only this'))")
        return action("SUBMIT(context + str('secret' in globals()))")

    assert ask(make_rlm(), scripted_lm(script)).answer == "only thisFalse"


def test_children_of_a_batch_run_at_the_same_time_and_in_order():
    together = threading.Barrier(4, timeout=10)

    def script(prompt, _):
        if "rlm_query" in prompt:
            return action(
                "r = rlm_query_batched(['q'] * 4, contexts=list('abcd'))\nSUBMIT(','.join(r))"
            )
        together.wait()
        return action("SUBMIT(context)")

    assert ask(make_rlm(), scripted_lm(script)).answer == "a,b,c,d"


def test_children_and_their_sub_queries_share_one_budget():
    root_code = """
print(rlm_query('q'))
try:
    llm_query('x')
except Exception as error:
    SUBMIT(str(error))
"""

    def script(prompt, _):
        if "[[ ## code ## ]]" not in prompt:
            return "reply"
        if "rlm_query" in prompt:
            return action(root_code)
        return action("llm_query('a')\nllm_query('b')\nSUBMIT('child')")

    lm = scripted_lm(script)
    found = ask(make_rlm(max_llm_calls=3), lm)
    # One turn and two sub-queries of the child used all three calls.
    assert "limit exceeded: 3 + 1 > 3" in found.answer
    assert len(lm.engine.prompts) == 4


def test_two_answers_in_a_row_have_the_whole_budget_each():
    code = "SUBMIT(str(len(llm_query_batched(['a', 'b', 'c']))))"
    rlm = make_rlm(max_llm_calls=3)
    lm = scripted_lm(lambda *_: action(code))
    for _ in range(2):
        assert ask(rlm, lm, fleet_sub_lm=scripted_lm(lambda *_: "reply")).answer == "3"


def test_a_child_that_meets_the_call_limit_answers_from_what_it_has():
    def script(prompt, _):
        if "extract" in prompt.lower() and "[[ ## code ## ]]" not in prompt:
            return fields(answer="as far as it got")
        if "rlm_query" in prompt:
            return action("SUBMIT(rlm_query('q'))")
        return action("print('working')")

    found = ask(make_rlm(max_llm_calls=2), scripted_lm(script))
    assert found.answer == "as far as it got"


def test_children_over_the_limit_are_refused_readably():
    def script(prompt, _):
        if "rlm_query" in prompt:
            return action(
                "print(rlm_query('one'))\ntry:\n    rlm_query('two')\n"
                "except Exception as error:\n    SUBMIT(str(error))"
            )
        return action("SUBMIT('fine')")

    found = ask(make_rlm(max_children=1), scripted_lm(script))
    assert "Child limit exceeded" in found.answer
    assert "llm_query" in found.answer


def test_the_ledgers_limit_ends_the_whole_tree_with_an_answer():
    def script(prompt, _):
        if "[[ ## code ## ]]" not in prompt:
            return fields(answer="partial")
        if "rlm_query" in prompt:
            return action("SUBMIT(rlm_query('q'))")
        return action("print('again')")

    ledger = Ledger(Limits(tokens=45))
    found = ask(make_rlm(), scripted_lm(script), fleet_ledger=ledger)
    assert "partial" in found.answer


def test_a_childs_steps_stay_out_of_the_roots_trace():
    with dspy.context(trace=[]):
        ask(make_rlm(), scripted_lm(nested), trace=(trace := []))
    assert len(trace) == 1


@pytest.mark.parametrize(
    "code",
    ["rlm_query('')", "rlm_query(3)", "rlm_query_batched('abc')", "rlm_query_batched(['a'], [])"],
)
def test_a_malformed_query_is_an_error_that_the_model_reads(code):
    codes = [code, "SUBMIT('after')"]
    found = ask(make_rlm(), scripted_lm(lambda _, n: action(codes[n - 1])))
    assert "[Error]" in found.trajectory[0]["output"]
    assert found.answer == "after"


# ---- nothing paid for is lost -------------------------------------------------------------------


def test_a_history_that_no_longer_fits_is_shown_shortened():
    def script(prompt, number):
        if len(prompt) > 16_000:
            return dspy.ContextWindowExceededError(message="too long")
        return action("SUBMIT('done')") if number > 8 else action("print('x' * 6000)")

    lm = scripted_lm(script)
    found = ask(make_rlm(), lm)
    assert (found.answer, found.stop) == ("done", "submitted")
    assert max(len(step["output"]) for step in found.trajectory) >= 6000


def test_a_prompt_that_never_fits_ends_in_an_answer_not_in_an_error():
    def script(prompt, number):
        if "[[ ## code ## ]]" not in prompt:
            return fields(answer="from little")
        return (
            dspy.ContextWindowExceededError(message="too long")
            if number > 1
            else action("print(1)")
        )

    found = ask(make_rlm(), scripted_lm(script))
    assert (found.answer, found.stop, len(found.trajectory)) == ("from little", "context", 1)


def test_a_lost_session_is_rebuilt_and_the_model_is_told():
    codes = ["kept = 'got '", "import os\nos._exit(3)", "SUBMIT(kept + context[:3])"]
    found = ask(make_rlm(), scripted_lm(lambda _, n: action(codes[n - 1])))
    assert (found.answer, found.stop) == ("got The", "submitted")
    assert "session was lost" in found.trajectory[1]["output"]
    assert "It was rebuilt" in found.trajectory[1]["output"]
    assert "os._exit" in found.trajectory[1]["code"]


def test_a_sandbox_that_keeps_failing_is_an_outage_with_the_steps_kept():
    lm = scripted_lm(lambda *_: action("import os\nos._exit(3)"))
    with pytest.raises(CodeInterpreterError) as caught:
        ask(make_rlm(), lm)
    assert len(caught.value.trajectory) == 2


def test_a_failing_provider_leaves_the_steps_on_the_error():
    def script(_, number):
        return dspy.LMServerError("down") if number == 3 else action(f"print({number})")

    with pytest.raises(dspy.LMServerError) as caught:
        ask(make_rlm(), scripted_lm(script))
    assert [step["code"] for step in caught.value.trajectory] == ["print(1)", "print(2)"]


def test_a_sub_querys_time_counts_from_its_own_start():
    # Six calls of 0.6 s in two rows: the second row starts late and is not late.
    def reply(prompt, _):
        time.sleep(2.0 if "slow" in prompt else 0.6)
        return "fine"

    code = "SUBMIT(str(llm_query_batched(['a', 'b', 'c', 'd', 'slow', 'e'])))"
    rlm = make_rlm(batch_workers=3, call_timeout_s=1)
    found = ask(rlm, scripted_lm(lambda *_: action(code)), fleet_sub_lm=scripted_lm(reply))
    assert found.answer.count("fine") == 5
    assert "took longer than 1 s" in found.answer


# ---- references ---------------------------------------------------------------------------------


@pytest.fixture
def reference(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("Anfang " + "wörter " * 200_000 + "Ende", encoding="utf-8")
    return ContextRef.from_file(path)


def test_a_reference_is_small_everywhere_and_whole_in_the_sandbox(reference):
    lm = scripted_lm(lambda *_: action("SUBMIT(f'{len(context)} {context[-4:]}')"))
    found = ask(make_rlm(), lm, context=reference)
    assert found.answer == f"{reference.chars} Ende"
    prompt = lm.engine.prompts[0]
    assert len(prompt) < 8000
    assert "Type: str" in prompt
    assert f"{reference.chars:,} characters" in prompt
    assert "Anfang" in prompt
    assert len(pickle.dumps(reference)) < 3000
    example = dspy.Example(context=reference, query="q").with_inputs("context", "query")
    assert len(repr(example)) < 300
    assert pickle.loads(pickle.dumps(reference)) == reference


def test_a_reference_travels_to_the_sandbox_once(reference):
    made = []

    def factory():
        made.append(LocalInterpreter())
        return made[-1]

    codes = ["print(len(context))"] * 5 + ["SUBMIT('x')"]
    ask(
        make_rlm(factory=factory), scripted_lm(lambda _, n: action(codes[n - 1])), context=reference
    )
    size = len(reference.read().encode())
    assert size <= made[0].bytes_sent <= 1.05 * size


def test_a_reference_works_in_stock_dspy_too(reference):
    lm = scripted_lm(lambda *_: action("SUBMIT(context[-4:])"))
    stock = dspy.RLM("context, query -> answer", interpreter_factory=LocalInterpreter)
    assert ask(stock, lm, context=reference).answer == "Ende"


def test_a_changed_or_missing_file_is_refused(reference, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("other")
    with pytest.raises(DataError, match="has changed"):
        reference.read()
    path.unlink()
    with pytest.raises(DataError, match="Cannot read"):
        reference.read()
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        ContextRef.from_file(path)


# ---- watching -----------------------------------------------------------------------------------


def kinds(events):
    return [event.kind for event in events]


def test_events_come_in_order_with_exactly_one_end():
    codes = ["print('out')\nllm_query('sub?')", "SUBMIT('x')"]
    sub = scripted_lm(lambda *_: "reply", role="sub")
    with dspy.context(lm=scripted_lm(lambda _, n: action(codes[n - 1])), fleet_sub_lm=sub):
        events = list(stream(make_rlm(), context=CONTEXT, query="q"))
    assert [event.sequence for event in events] == list(range(len(events)))
    assert kinds(events)[:2] == ["thought", "code"]
    assert {"stdout", "sub_query", "usage"} <= set(kinds(events))
    assert kinds(events)[-1] == "final"
    assert sum(event.kind in {"final", "error", "cancelled"} for event in events) == 1
    assert events[-1].data["outputs"] == {"answer": "x"}
    assert {role: used["calls"] for role, used in events[-2].data.items()} == {"root": 2, "sub": 1}
    assert "out" in "".join(event.text for event in events if event.kind == "stdout")
    for event in events:
        json.dumps(dict(event.data))


def test_children_are_told_with_their_depth():
    with dspy.context(lm=scripted_lm(nested)):
        events = list(stream(make_rlm(max_depth=2), context=CONTEXT, query="q"))
    started = [event.depth for event in events if event.kind == "child_start"]
    ended = [event.depth for event in events if event.kind == "child_end"]
    assert (started, ended) == ([1, 2], [2, 1])
    assert kinds(events).count("final") == 1


def test_any_program_can_be_streamed(caplog, monkeypatch):
    lm = scripted_lm(lambda *_: fields(answer="42"))
    monkeypatch.setattr(logging.getLogger("dspy"), "propagate", True)
    with dspy.context(lm=lm):
        events = list(stream(dspy.Predict("question -> answer"), question="q"))
    assert not caplog.text, "no warning of a call that the user did not make"
    assert kinds(events) == ["usage", "final"]
    assert events[-1].data["outputs"] == {"answer": "42"}


def test_tools_are_told_wherever_they_run():
    def double(number: int) -> int:
        """Twice the number."""
        return 2 * number

    code = "print(double(number=21))\ntry:\n    double(number=None)\nexcept Exception:\n    pass"
    codes = [code, "SUBMIT('x')"]
    rlm = RLM("question -> answer", tools=[double], interpreter_factory=LocalInterpreter)
    with dspy.context(lm=scripted_lm(lambda _, n: action(codes[n - 1]))):
        events = list(stream(rlm, question="q"))
    called = [event for event in events if event.kind == "tool_call"]
    results = [event for event in events if event.kind == "tool_result"]
    assert called[0].data["arguments"] == {"number": "21"}
    assert (results[0].text, results[0].data["failed"]) == ("42", False)
    assert results[1].data["failed"]
    assert [event.data["call"] for event in called] == [event.data["call"] for event in results]


def test_a_program_that_is_only_asynchronous_can_be_streamed():
    class Asynchronous(dspy.Module):
        async def aforward(self, question):
            await asyncio.sleep(0)
            return dspy.Prediction(answer=question.upper())

    events = list(stream(Asynchronous(), question="q"))
    assert events[-1].data["outputs"] == {"answer": "Q"}


def test_an_error_ends_the_stream_as_an_event():
    with dspy.context(lm=scripted_lm(lambda *_: dspy.LMServerError("down"))):
        events = list(stream(make_rlm(), context="c", query="q"))
    assert kinds(events)[-1] == "error"
    assert "down" in events[-1].text


def test_leaving_the_loop_stops_the_program_within_a_second():
    lm = scripted_lm(lambda *_: action("import time\nprint('on')\ntime.sleep(60)"))
    started = time.monotonic()
    with dspy.context(lm=lm):
        for event in stream(make_rlm(), context="c", query="q"):
            if event.kind == "code":
                break
    waiting = [t for t in threading.enumerate() if t.name == "fleet-stream"]
    for thread in waiting:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in waiting)
    assert time.monotonic() - started < 5
    assert len(lm.engine.prompts) == 1


def test_a_slow_reader_slows_the_program_and_loses_nothing():
    code = "for n in range(2000):\n    print('line', n)"
    codes = [code, "SUBMIT('x')"]
    with dspy.context(lm=scripted_lm(lambda _, n: action(codes[n - 1]))):
        events = []
        for event in stream(make_rlm(), context="c", query="q"):
            time.sleep(0.002)
            events.append(event)
    text = "".join(event.text for event in events if event.kind == "stdout")
    assert text.count("line") == 2000


def test_streams_of_an_event_loop_run_side_by_side():
    async def read(name):
        lm = scripted_lm(lambda *_: action("SUBMIT(context)"))
        with dspy.context(lm=lm):
            return [event async for event in astream(make_rlm(), context=name, query="q")]

    async def both():
        return await asyncio.gather(*(read(name) for name in "abcdefgh"))

    found = asyncio.run(both())
    assert [events[-1].data["outputs"]["answer"] for events in found] == list("abcdefgh")


def test_a_cancelled_scope_stops_before_the_next_model_call():
    scope = CancelScope()

    def script(_, number):
        if number == 2:
            scope.cancel()
        return action("print(1)")

    lm = scripted_lm(script)
    with pytest.raises(Cancelled):
        ask(make_rlm(), lm, fleet_cancel=scope)
    assert len(lm.engine.prompts) == 2


def test_an_event_is_plain_data():
    event = Event(kind="code", text="x", data={"turn": 1}, depth=2)
    assert (event.kind, event.depth, event.sequence) == ("code", 2, -1)


# ---- the trail ----------------------------------------------------------------------------------


def test_the_trail_is_the_tree_of_what_was_asked_and_spent():
    def script(prompt, _number):
        if "rlm_query" in prompt:
            return action(
                "a = llm_query('x' * 5000)\n"
                "b = llm_query_batched(['y', 'y'])\n"
                "SUBMIT(rlm_query('deeper?', context[:100]))"
            )
        if "llm_query" in prompt:
            return action("SUBMIT('below')")
        return "plain reply"

    ledger = Ledger()
    found = ask(make_rlm(max_depth=1), scripted_lm(script), fleet_ledger=ledger)
    (step,) = found.trail
    assert [(q["kind"], q.get("prompt_chars")) for q in step["queries"]] == [
        ("llm", 5000),
        ("llm", 1),
        ("llm", 1),
        ("rlm", None),
    ]
    long, first, second, child = step["queries"]
    assert len(long["prompt"]) < 2_100
    assert (long["reply"], long["reply_chars"]) == ("plain reply", 11)
    assert first["prompt_digest"] == second["prompt_digest"] != long["prompt_digest"]
    assert (child["query"], child["context_chars"]) == ("deeper?", 100)
    assert (child["answer"], child["stop"]) == ("below", "submitted")
    assert [below["code"] for below in child["steps"]] == ["SUBMIT('below')"]
    # Root action, three sub-queries and the child's one action; the child's account is its own.
    assert step["usage"]["calls"] == ledger.total.calls == 5
    assert child["usage"]["calls"] == child["steps"][0]["usage"]["calls"] == 1
    assert step["seconds"] >= child["seconds"] >= 0
    json.dumps(found.trail)
    assert found.trajectory == [{key: step[key] for key in ("reasoning", "code", "output")}]


def test_queries_that_failed_stay_in_the_trail():
    def script(prompt, _number):
        if "REPL" in prompt:
            return action("print(llm_query_batched(['a']))")
        return dspy.LMServerError("down")

    found = ask(make_rlm(max_iters=1), scripted_lm(script))
    (query,) = found.trail[0]["queries"]
    assert (query["kind"], query["reply"], query["usage"]["calls"]) == ("llm", "", 0)
    assert query["error"] == "LMServerError: down"


def test_calls_of_tools_are_in_the_trail_and_the_parts_of_a_step_are_timed():
    def slow_search(word: str) -> str:
        """Find a word."""
        time.sleep(0.05)
        if word == "lost":
            raise LookupError("not there")
        return word * 3000

    code = "found = slow_search(word='ab')\ntry:\n    slow_search('lost')\nexcept Exception: pass"

    def script(_prompt, number):
        return action(f"{code}\nprint(len(found))" if number == 1 else "SUBMIT('done')")

    found = ask(make_rlm(tools=[slow_search]), scripted_lm(script))
    first, second = found.trail
    assert first["output"].strip() == "6000"
    good, bad = first["queries"]
    assert (good["kind"], good["name"], good["arguments"]) == ("tool", "slow_search", "word='ab'")
    assert good["result"].startswith("abab")
    assert len(good["result"]) < 2_100
    assert (bad["arguments"], bad["error"]) == ("word='lost'", "LookupError: not there")
    assert bad["seconds"] >= 0.05
    assert bad["after_s"] >= good["after_s"] + 0.05
    assert first["seconds"] >= first["start_s"] + first["think_s"] + 0.1
    assert "start_s" not in second  # the session stays open
