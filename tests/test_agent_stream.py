"""Streams of the chat agent: every kind of event, one end, and cancelling that stops at once."""

import asyncio
import threading
import time

import dspy
import pytest
from agent_scripts import call, chat, finish, in_turn, make_agent
from scripted import action, fields, scripted_lm

from fleet_rlm import LocalInterpreter
from fleet_rlm.ledger import Ledger, Limits
from fleet_rlm.lm.cancel import Cancelled, CancelScope
from fleet_rlm.program.agent.events import KINDS, TERMINAL, StreamEvent, TurnState

SOON_S = 1.0
ENDLESS = "import time\nwhile True:\n    time.sleep(0.01)"


def drain(agent, lm, **arguments):
    with dspy.context(lm=lm):
        return list(agent.iter_chat_turn_stream("hello", **arguments))


def only_end(events):
    assert [event.sequence for event in events] == list(range(len(events)))
    assert [event.kind in TERMINAL for event in events] == [False] * (len(events) - 1) + [True]
    return events[-1]


class SlowModel:
    """Replies with a step; from the second call on only after `release` is set."""

    def __init__(self):
        self.asked_at = 0.0
        self.release = threading.Event()
        self.entered = threading.Event()
        self.lm = scripted_lm(self.reply)

    def reply(self, _, number):
        if number > 1:
            self.asked_at = time.monotonic()
            self.entered.set()
            self.release.wait(20)
        return call("list_documents")


def test_every_kind_of_event_occurs(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    agent = make_agent(tmp_path)
    steps = [call("rlm_query", query="q", context="c"), finish("x" * 200)]
    good = drain(agent, in_turn(*steps), trace=True)
    bad = drain(agent, in_turn(dspy.LMServerError("down")))
    gone = drain(agent, in_turn(finish()), cancel_check=lambda: True)
    seen = {event.kind for events in (good, bad, gone) for event in events}
    assert seen == set(KINDS)
    assert [only_end(events).kind for events in (good, bad, gone)] == [
        "final",
        "error",
        "cancelled",
    ]


def test_events_tell_the_turn_in_order(tmp_path):
    agent = make_agent(tmp_path)
    answer = "word " * 50
    events = drain(agent, in_turn(call("list_files", path="."), finish(answer)), trace=True)
    told = [event.kind for event in events if event.kind != "assistant_token"]
    assert told == [
        *("reasoning_step", "tool_call", "tool_result", "trajectory_step"),
        *("reasoning_step", "trajectory_step", "final"),
    ]
    first, tool, result, step = events[:4]
    assert (first.text, first.payload) == ("thinking", {"source": "next_thought"})
    assert (tool.text, tool.payload["args"]) == ("tool call: list_files", {"path": "."})
    assert (result.text, result.payload) == (
        *("tool result: finished", {"name": "list_files", "ok": True}),
    )
    assert (step.payload["step_index"], step.payload["total_steps"]) == (0, 1)
    assert step.payload["step_data"]["tool_name"] == "list_files"
    end = only_end(events)
    pieces = [event.text for event in events if event.kind == "assistant_token"]
    assert len(pieces) > 1
    assert "".join(pieces) == end.text == answer.strip()
    assert end.payload["history_turns"] == 1
    assert end.payload["final_reasoning"] == "thinking"
    assert len(end.payload["trajectory"]) == 2
    assert all(event.timestamp.utcoffset().total_seconds() == 0 for event in events)


def test_thoughts_are_told_only_when_asked_for(tmp_path):
    with dspy.context(lm=in_turn(call("list_files"), finish())):
        events = list(make_agent(tmp_path).chat_turn_stream(message="hello"))
    assert "reasoning_step" not in {event.kind for event in events}
    assert "trajectory_step" in {event.kind for event in events}


def test_what_happens_inside_of_a_tool_is_told_while_it_happens():
    agent = make_agent()
    lm = in_turn(call("rlm_query", query="q", context="c"), finish(), code="SUBMIT('inside')")
    events = drain(agent, lm)
    kinds = [event.kind for event in events]
    inside = events[kinds.index("tool_call") : kinds.index("tool_result")]
    assert any("SUBMIT('inside')" in event.text for event in inside if event.kind == "status")


def test_a_turn_state_folds_a_stream():
    agent = make_agent()
    lm = in_turn(call("rlm_query", query="q", context="c"), finish("the answer"))
    state = TurnState()
    for event in drain(agent, lm, trace=True):
        assert not state.done
        state.apply(event)
    assert (state.done, state.errored, state.cancelled) == (True, False, False)
    assert state.final_text == state.transcript_text == "the answer"
    assert state.tool_timeline == ["tool call: rlm_query", "tool result: finished"]
    assert state.reasoning_lines == state.thought_chunks == ["thinking", "thinking"]
    assert state.status_lines == state.status_messages != []
    assert state.token_count == len(state.assistant_tokens) == 1
    assert (state.history_turns, len(state.trajectory)) == (1, 2)
    state.apply(StreamEvent(kind="error", text="too late"))
    assert not state.errored

    failed = TurnState()
    for event in drain(make_agent(), in_turn(dspy.LMServerError("down"))):
        failed.apply(event)
    assert failed.errored
    assert "down" in failed.error_message


def test_a_failing_stream_ends_in_one_error_and_makes_no_second_call():
    agent = make_agent()
    chat(agent, finish("kept"))
    lm = in_turn(
        call("core_memory_append", section="human", content="x"), dspy.LMServerError("down")
    )
    end = only_end(drain(agent, lm))
    assert len(lm.engine.prompts) == 2
    assert (end.kind, end.payload["error_type"]) == ("error", "LMServerError")
    assert "down" in end.text
    assert "\n" not in end.text
    assert len(agent.chat_history.messages) == 1
    assert "x" not in agent.fmt_core_memory().split("scratchpad")[0].split()


def test_a_limit_ends_a_stream_with_what_there_is():
    steps = iter([call("list_documents"), fields(assistant_response="partial")])
    lm = scripted_lm(lambda *_: next(steps))
    with dspy.context(fleet_ledger=Ledger(Limits(tokens=15))):
        events = drain(make_agent(), lm)
    end = only_end(events)
    assert (end.kind, end.text, end.payload["stop"]) == ("final", "partial", "tokens")
    assert "status" in {event.kind for event in events}


def test_cancel_interrupts_the_running_cell_and_starts_no_further_call():
    boxes = []

    def factory():
        boxes.append(LocalInterpreter())
        return boxes[-1]

    agent = make_agent(interpreter_factory=factory)
    lm = in_turn(call("rlm_query", query="q", context="c"), finish("never"), code=ENDLESS)
    begun, events = [], []

    def cancel():
        return bool(begun) and time.monotonic() > begun[0]

    with dspy.context(lm=lm):
        for event in agent.iter_chat_turn_stream("hello", cancel_check=cancel):
            events.append(event)
            if event.text.startswith("code: ") and not begun:
                begun.append(time.monotonic() + 0.3)  # by then the cell runs
    took = time.monotonic() - begun[0]
    end = only_end(events)
    assert (end.kind, end.text, end.payload) == ("cancelled", "[cancelled]", {"history_turns": 0})
    assert took < SOON_S
    deadline = time.monotonic() + SOON_S
    while boxes[0].last is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert boxes[0].last.kind == "interrupted"
    calls = len(lm.engine.prompts)
    time.sleep(0.2)
    assert len(lm.engine.prompts) == calls == 2


@pytest.mark.parametrize("way", ["check", "cancel", "close", "async close", "task"])
def test_whichever_way_a_turn_is_left_it_stops_while_a_model_is_still_talking(way):
    agent, slow = make_agent(), SlowModel()
    chat(agent, finish("before"))

    def check():
        stream = agent.iter_chat_turn_stream("hello", cancel_check=slow.entered.is_set)
        assert only_end(list(stream)).kind == "cancelled"

    def cancel():
        agent.cancel()  # nothing runs: nothing happens
        threading.Thread(target=lambda: (slow.entered.wait(10), agent.cancel())).start()
        assert only_end(list(agent.iter_chat_turn_stream("hello"))).kind == "cancelled"

    def close():
        stream = agent.iter_chat_turn_stream("hello")
        next(stream)
        slow.entered.wait(10)
        stream.close()

    async def close_asynchronously():
        stream = agent.aiter_chat_turn_stream("hello")
        await anext(stream)
        await asyncio.to_thread(slow.entered.wait, 10)
        await stream.aclose()

    async def cancel_task():
        task = asyncio.create_task(agent.achat_turn("hello"))
        await asyncio.to_thread(slow.entered.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    ways = {
        "check": check,
        "cancel": cancel,
        "close": close,
        "async close": lambda: asyncio.run(close_asynchronously()),
        "task": lambda: asyncio.run(cancel_task()),
    }
    with dspy.context(lm=slow.lm):
        ways[way]()
    assert time.monotonic() - slow.asked_at < SOON_S
    slow.release.set()
    time.sleep(0.2)
    assert len(slow.lm.engine.prompts) == 2, "the abandoned turn went on"
    assert len(agent.chat_history.messages) == 1
    assert chat(agent, finish("after"))["history_turns"] == 2


def test_a_cancelled_model_call_is_not_asked_again_in_another_form():
    entered, release = threading.Event(), threading.Event()

    def reply(*_):
        entered.set()
        release.wait(20)
        return "no fields"

    lm = scripted_lm(reply)
    assert only_end(drain(make_agent(), lm, cancel_check=entered.is_set)).kind == "cancelled"
    release.set()
    time.sleep(0.2)
    assert len(lm.engine.prompts) == 1


def test_code_that_swallows_errors_asks_no_model_after_cancel():
    code = (
        "while True:\n    try:\n        llm_query('again')\n    except BaseException:\n        pass"
    )
    asked = threading.Event()

    def reply(prompt, _):
        if "repl_history" in prompt:
            return action(code)
        if prompt.strip() == "again":
            asked.set()
            return "yes"
        return call("rlm_query", query="q", context="c")

    agent = make_agent(rlm_max_llm_calls=10_000)
    lm = scripted_lm(reply)
    with dspy.context(lm=lm):
        events = list(agent.iter_chat_turn_stream("hello", cancel_check=asked.is_set))
    assert only_end(events).kind == "cancelled"
    time.sleep(0.1)
    calls = len(lm.engine.prompts)
    time.sleep(0.3)
    assert len(lm.engine.prompts) == calls


def test_whoever_watches_the_calling_program_hears_and_stops_the_agent():
    agent, heard = make_agent(), []
    lm = in_turn(call("rlm_query", query="q", context="c"), finish("done"))
    with dspy.context(lm=lm, fleet_events=heard.append):
        agent(user_request="x")
    told = [(event.kind, event.depth) for event in heard]
    for one in (("thought", 0), ("tool_call", 0), ("code", 1), ("tool_result", 0), ("final", 0)):
        assert one in told
    assert told.count(("final", 0)) == 1

    scope = CancelScope()
    slow = SlowModel()
    timer = threading.Thread(target=lambda: (slow.entered.wait(10), scope.cancel()))
    timer.start()
    with dspy.context(lm=slow.lm, fleet_cancel=scope):
        threading.Timer(0.5, slow.release.set).start()
        with pytest.raises(Cancelled):
            agent(user_request="x")
    timer.join()


def test_a_slow_turn_leaves_the_event_loop_free():
    async def main():
        agent, beats = make_agent(), []

        def slow(*_):
            time.sleep(0.3)
            return finish()

        async def beat():
            while True:
                beats.append(time.monotonic())
                await asyncio.sleep(0.01)

        with dspy.context(lm=scripted_lm(slow)):
            heart = asyncio.create_task(beat())
            async for _ in agent.aiter_chat_turn_stream("x"):
                pass
            heart.cancel()
        return beats

    assert len(asyncio.run(main())) > 10


def test_events_are_plain_data():
    event = StreamEvent(kind="tool_call", text="x", payload={"name": "n"}, sequence=3)
    assert event.to_json() == {
        "kind": "tool_call",
        "text": "x",
        "payload": {"name": "n"},
        "timestamp": event.timestamp.isoformat(),
        "sequence": 3,
    }
