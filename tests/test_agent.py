"""The chat agent: its loop, memory, tools, commands and copies, on models that follow a script."""

import asyncio
import json
import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import dspy
import pytest
from agent_scripts import call, chat, finish, in_turn, make_agent, observe
from scripted import DOLLAR, fields, scripted_lm

from fleet_rlm import LocalInterpreter
from fleet_rlm.errors import BudgetExhausted, SandboxError, UsageError
from fleet_rlm.ledger import Ledger, Limits
from fleet_rlm.program.agent.agent import RLMReActChatAgent
from fleet_rlm.program.agent.commands import COMMAND_DISPATCH
from fleet_rlm.program.agent.program import AgentProgram
from fleet_rlm.program.agent.tools import list_react_tool_names
from fleet_rlm.scoring.dialogue import pose

SAVED = {"act", "respond", "rlm.generate_action", "rlm.extract", "settings", "rlm.recursion"}
TASKS = ("analyze", "summarize", "extract_logs")
TOO_LONG = dspy.ContextWindowExceededError(message="too long")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "notes.md").write_text("# Codes\nThe door code is 4711.\n# Rest\nnothing\n")
    return tmp_path


@pytest.fixture
def agent(folder):
    made = make_agent(folder, volume=folder / "volume")
    yield made
    made.shutdown()


def test_a_turn_loads_a_document_delegates_and_answers(agent):
    found = chat(
        agent,
        call("load_document", path="notes.md"),
        call("rlm_query", query="Which code?"),
        finish("It is 4711."),
        message="What is the door code in notes.md?",
    )
    assert found["assistant_response"] == "It is 4711."
    assert [step["tool_name"] for step in found["trajectory"]] == [
        *("load_document", "rlm_query", "finish"),
    ]
    assert found["history_turns"] == 1
    assert found["core_memory_snapshot"] == {"persona": "", "human": "", "scratchpad": ""}
    assert agent.active_alias == "active"
    assert agent.documents["active"].startswith("# Codes")


def test_a_delegated_query_runs_an_rlm_over_the_active_document(agent):
    agent.add_document("notes", "The door code is 4711.\n")
    assert agent.active_alias == "notes"
    code = "import re\nSUBMIT(re.findall(r'[0-9]{4}', context)[0])"
    found = json.loads(observe(agent, "rlm_query", query="Which code?", code=code))
    assert (found["status"], found["answer"], found["depth"]) == ("ok", "4711", 1)
    assert (found["calls"], found["tokens"], found["stop"]) == (1, 15, "submitted")
    assert found["sub_agent_history"][0]["code"] == code
    own = "SUBMIT(context.upper())"
    found = json.loads(observe(agent, "rlm_query", query="q", context="given", code=own))
    assert found["answer"] == "GIVEN"


def test_the_model_is_shown_memory_documents_conversation_and_steps(agent):
    agent.core_memory_append("human", "Name: Ada")
    chat(agent, finish("Hi Ada."), message="hello there")
    agent.tools["load_document"](path="notes.md", alias="n")
    lm = in_turn(call("list_documents", _thought="let me see"), finish())
    with dspy.context(lm=lm):
        agent.chat_turn("and now?")
    first, second = lm.engine.prompts
    for part in ("<human>\nName: Ada\n</human>", "User: hello there\nAssistant: Hi Ada."):
        assert part in first
    assert "n: 46 characters, 4 lines (active)" in first
    assert "(no steps yet)" in first
    assert "1/10" in first
    assert "let me see" in second
    assert '"cache_limit": 100' in second
    assert "2/10" in second


def test_the_protocol_survives_any_instruction_and_leaves_out_tools_that_cannot_work(folder):
    agent = make_agent(folder, guidance="Only this.")
    lm = in_turn(finish())
    with dspy.context(lm=lm):
        agent.chat_turn("x")
    prompt = lm.engine.prompts[0]
    assert "Only this." in prompt
    assert "`rlm_query(query: str, context: str = '')`" in prompt
    assert "`load_document(path: str, alias: str = 'active')`" in prompt
    assert "memory_write" not in prompt
    assert agent.act.signature.instructions == "Only this."
    assert "load_document" not in make_agent().protocol
    assert "memory_write" in make_agent(volume=folder).protocol


def test_replies_that_are_no_step_are_told_to_the_model(agent):
    wrong = fields(next_thought="t", next_tool_name="finish", next_tool_args="not json")
    found = chat(
        agent,
        *("nothing of the sort", "{}", wrong, wrong),
        call("load_documents", path="notes.md"),
        call("load_document", file="notes.md"),
        call("load_document"),
        call("read_file_slice", path="notes.md", start_line="first"),
        finish(""),
        finish("made it"),
    )
    observations = [step["observation"] for step in found["trajectory"]]
    assert found["assistant_response"] == "made it"
    assert "Send all three" in observations[0]
    assert "Did you mean 'load_document'?" in observations[2]
    for observation, part in zip(
        observations[3:], ("Arg file", "missing 1 required", "start_line"), strict=False
    ):
        assert json.loads(observation)["status"] == "error"
        assert part in observation
    assert "takes assistant_response" in observations[6]


def test_steps_used_up_end_in_a_response(folder):
    agent = make_agent(folder, react_max_iters=2)
    found = chat(
        agent,
        call("list_files"),
        call("list_files"),
        lambda prompt: fields(
            assistant_response="from " + "two steps"[: 9 * ("=== Step 2" in prompt)]
        ),
    )
    assert found["assistant_response"] == "from two steps"
    with dspy.context(lm=in_turn(call("list_files"), call("list_files"), "no", "no")):
        found = agent(user_request="x")
    assert found.stop == "iterations"
    assert "stopped (iterations) after 2 steps" in found.assistant_response


def test_a_met_limit_ends_the_turn_with_what_there_is(folder):
    agent = make_agent(folder)
    ledger = Ledger(Limits(tokens=20))
    script = iter([call("list_files"), call("list_files"), fields(assistant_response="partial")])
    lm = scripted_lm(lambda *_: next(script), price=DOLLAR)
    with dspy.context(lm=lm, fleet_ledger=ledger):
        found = agent(user_request="x")
    assert (found.assistant_response, found.stop, len(found.trajectory)) == ("partial", "tokens", 2)
    assert ledger.total.calls == 3
    assert ledger.total.usd == pytest.approx(45.0)


def test_a_turn_has_a_time_limit_of_its_own(folder):
    agent = make_agent(folder, timeout=0.05)

    def slow(prompt, _):
        time.sleep(0.06)
        return (
            fields(assistant_response="late") if "no more can be" in prompt else call("list_files")
        )

    with dspy.context(lm=scripted_lm(slow)):
        found = agent(user_request="x")
    assert (found.stop, found.assistant_response, len(found.trajectory)) == ("wall", "late", 1)


def test_a_spent_budget_is_not_taken_for_a_failing_tool(folder):
    def spend():
        raise BudgetExhausted("the run's cap is reached")

    agent = make_agent(folder, extra_tools=[spend])
    with dspy.context(lm=in_turn(call("spend"))), pytest.raises(BudgetExhausted):
        agent(user_request="x")


def test_a_failing_model_raises_its_own_error_and_changes_nothing(agent):
    chat(agent, finish("first"))
    before = agent.export_session_state()
    down = dspy.LMServerError("down")
    for use in (agent.chat_turn, lambda message: agent(user_request=message)):
        lm = in_turn(call("load_document", path="notes.md"), down)
        with dspy.context(lm=lm), pytest.raises(dspy.LMServerError):
            use("x")
        assert len(lm.engine.prompts) == 2
    assert agent.export_session_state() == before


def test_an_error_of_the_models_service_carries_the_steps_so_far(folder):
    lm = in_turn(call("list_files"), dspy.LMServerError("down"))
    with dspy.context(lm=lm), pytest.raises(dspy.LMServerError) as caught:
        make_agent(folder)(user_request="x")
    assert [step["tool_name"] for step in caught.value.trajectory] == ["list_files"]


def test_a_history_that_does_not_fit_is_shown_shorter(folder):
    (folder / "long.txt").write_text("word " * 2_000)
    agent = make_agent(folder)
    sizes = []

    def script(prompt, number):
        sizes.append(len(prompt))
        if number <= 4:
            return call("read_file_slice", path="long.txt")
        return TOO_LONG if len(prompt) > 12_000 else finish()

    with dspy.context(lm=scripted_lm(script)):
        found = agent(user_request="x")
    assert found.stop == "answered"
    assert max(sizes) > 12_000 > sizes[-1]


def test_a_prompt_that_never_fits_ends_the_turn(folder):
    with dspy.context(lm=scripted_lm(lambda _, n: call("list_files") if n == 1 else TOO_LONG)):
        found = make_agent(folder)(user_request="x")
    assert (found.stop, len(found.trajectory)) == ("context", 1)
    assert "stopped (context) after 1 steps" in found.assistant_response


def test_long_results_and_long_conversations_are_cut(folder):
    (folder / "long.txt").write_text("word " * 2_000)
    agent = make_agent(folder)
    agent.settings.update({"max_observation_chars": 300})
    seen = observe(agent, "read_file_slice", path="long.txt")
    assert re.fullmatch(r".{300}\.\.\. \[[\d,]+ more characters\]", seen)
    for number in range(9):
        chat(agent, finish("z" * 9_000), message=f"m{number}")
    lm = in_turn(finish())
    with dspy.context(lm=lm):
        agent.chat_turn("x")
    assert "earlier turns are left out)" in lm.engine.prompts[0]
    assert "User: m8" in lm.engine.prompts[0]
    assert len(lm.engine.prompts[0]) < 60_000


def test_the_only_argument_of_finish_is_the_reply_under_any_name(agent):
    assert chat(agent, call("finish", answer=["a", 1]))["assistant_response"] == '["a", 1]'


def test_forward_leaves_the_chat_alone_and_takes_history_and_documents(agent):
    chat(agent, finish("one"))
    before = agent.export_session_state()
    lm = in_turn(call("core_memory_append", section="human", content="x"), finish("two"))
    with dspy.context(lm=lm):
        found = agent(
            user_request="q",
            history=dspy.History(messages=[{"user_request": "A", "assistant_response": "B"}]),
            documents={"given": "some text"},
        )
    assert found.assistant_response == "two"
    assert "User: A\nAssistant: B" in lm.engine.prompts[0]
    assert "given: 9 characters, 1 lines (active)" in lm.engine.prompts[0]
    assert agent.export_session_state() == before
    for history in ([{"role": "user"}], [{"user_request": 1, "assistant_response": "x"}]):
        with pytest.raises(ValueError, match="user_request and assistant_response"):
            agent(user_request="q", history=history)


@pytest.mark.parametrize("message", ["", "  \n", None])
def test_an_empty_message_is_refused_everywhere(agent, message):
    async def streamed():
        return [event async for event in agent.aiter_chat_turn_stream(message)]

    for use in (
        lambda: agent.chat_turn(message),
        lambda: agent(user_request=message),
        lambda: list(agent.iter_chat_turn_stream(message)),
        lambda: asyncio.run(agent.achat_turn(message)),
        lambda: asyncio.run(streamed()),
    ):
        with pytest.raises(ValueError, match="message cannot be empty"):
            use()


def test_asynchronous_calls_give_the_same_and_run_side_by_side(folder):
    async def both():
        agents = [make_agent(folder) for _ in range(4)]
        met = threading.Barrier(4, timeout=10)

        def script(prompt, _):
            met.wait()
            return finish(prompt.split("## user_request ## ]]\n")[-1][:2])

        with dspy.context(lm=scripted_lm(script)):
            turns = [agent.achat_turn(f"m{n}") for n, agent in enumerate(agents)]
            found = await asyncio.gather(*turns)
            again = await asyncio.gather(*(agents[0].acall(user_request=f"n{n}") for n in range(4)))
            return [one["assistant_response"] for one in found], [
                p.assistant_response for p in again
            ]

    assert asyncio.run(both()) == (["m0", "m1", "m2", "m3"], ["n0", "n1", "n2", "n3"])


def test_synchronous_calls_work_inside_of_a_running_loop(folder):
    async def notebook():
        with dspy.context(lm=in_turn(finish("here"), finish("there"))):
            events = list(make_agent(folder).iter_chat_turn_stream("x"))
            return make_agent(folder).chat_turn("x")["assistant_response"], events[-1].text

    assert asyncio.run(notebook()) == ("there", "here")


def test_eight_agents_in_threads_do_not_mix(folder):
    met = threading.Barrier(8, timeout=30)

    def one(number):
        (folder / f"f{number}.txt").write_text(f"mine is {number}")
        met.wait()
        with make_agent(folder, volume=folder / f"v{number}") as agent:
            seen = chat(
                agent,
                call("load_document", path=f"f{number}.txt"),
                call("chunk_sandbox", strategy="size", size=4),
                call("read_buffer", name="chunks"),
                call("rlm_query", query="q"),
                call("memory_write", path="n", content=str(number)),
                finish(f"answer {number}"),
                message=f"message {number}",
                code="SUBMIT(context)",
            )
            return seen, agent.export_session_state(), (folder / f"v{number}/memory/n").read_text()

    with ThreadPoolExecutor(8) as pool:
        for number, (seen, state, note) in enumerate(pool.map(one, range(8))):
            mine = f"mine is {number}"
            steps = [step["observation"] for step in seen["trajectory"]]
            assert "".join(json.loads(steps[2])["items"]) == mine
            assert json.loads(steps[3])["answer"] == mine
            assert state["documents"] == {"active": mine}
            assert state["history"][0]["user_request"] == f"message {number}"
            assert note == str(number)


def test_one_agent_is_called_from_many_threads_at_once(folder):
    agent = make_agent(folder)

    def script(prompt, _):
        own = prompt.rsplit("## user_request ## ]]\n")[-1].partition("\n")[0]
        if '"items"' in prompt:
            return finish(json.loads(prompt.rsplit("Result:\n")[-1].partition("\n")[0])["items"][0])
        if '"chunk_count"' in prompt:
            return call("read_buffer", name="chunks")
        return call("chunk_sandbox", strategy="size", size=100) if own else ""

    with dspy.context(lm=scripted_lm(script)):
        inputs = [{"user_request": f"r{n}", "documents": {"d": f"text {n}"}} for n in range(8)]
        examples = [dspy.Example(**one).with_inputs(*one) for one in inputs]
        found = agent.batch(examples, num_threads=8, disable_progress_bar=True)
    assert [one.assistant_response for one in found] == [f"text {n}" for n in range(8)]
    assert agent.documents == {}


def test_a_second_turn_at_the_same_time_is_refused(agent):
    errors = []

    def meanwhile(_):
        for use in (
            lambda: agent.chat_turn("me too"),
            agent.reset,
            lambda: agent.import_session_state(agent.export_session_state()),
            lambda: agent.core_memory_append("human", "x"),
        ):
            with pytest.raises(UsageError, match="is running") as caught:
                use()
            errors.append(caught.value)
        return finish("first")

    assert chat(agent, meanwhile)["assistant_response"] == "first"
    assert len(errors) == 4
    assert chat(agent, finish("next"))["history_turns"] == 2


def test_the_chat_remembers_as_many_turns_as_told(folder):
    agent = make_agent(folder, history_max_turns=2)
    for number in range(4):
        chat(agent, finish(f"a{number}"), message=f"m{number}")
    assert agent.chat_history.messages == [
        {"user_request": "m2", "assistant_response": "a2"},
        {"user_request": "m3", "assistant_response": "a3"},
    ]


def test_core_memory_refuses_and_never_cuts(agent):
    assert agent.core_memory_replace("human", "x" * 2_001) == (
        "Error: Content exceeds limit for 'human' (2001 > 2000)."
    )
    assert agent.core_memory_append("scratchpad", "x" * 999) == (
        "Appended to 'scratchpad'. New content length: 999 chars."
    )
    assert agent.core_memory_append("scratchpad", "y" * 200) == (
        "Error: Appending content would exceed limit for 'scratchpad' (1200 > 1000). "
        "Please summarize or replace."
    )
    assert agent.core_memory_append("x", "y") == (
        "Error: Core memory block 'x' does not exist. Available: ['persona', 'human', 'scratchpad']"
    )
    assert agent.core_memory_replace("human", "Ada") == "Updated block 'human'."
    agent.core_memory_replace("scratchpad", "note")
    assert agent.fmt_core_memory() == (
        "<persona>\n\n</persona>\n\n<human>\nAda\n</human>\n\n<scratchpad>\nnote\n</scratchpad>"
    )


def test_core_memory_is_kept_in_every_kind_of_turn(agent):
    async def later():
        await agent.achat_turn("b")
        return [event async for event in agent.aiter_chat_turn_stream("d")]

    steps = [
        step
        for word in "abcd"
        for step in (call("core_memory_append", section="human", content=word), finish())
    ]
    lm = in_turn(*steps)
    with dspy.context(lm=lm):
        agent.chat_turn("a")
        first = asyncio.run(later())
        list(agent.iter_chat_turn_stream("c"))
    assert first[-1].kind == "final"
    assert agent.export_session_state()["core_memory"]["human"] == "a\nb\nc\nd"
    assert "<human>\na\nb\nc\n" in lm.engine.prompts[-2]


def test_a_session_goes_out_and_comes_back(agent, folder):
    agent.tools["load_document"](path="notes.md", alias="n")
    agent.core_memory_append("persona", "curt")
    chat(agent, finish("yes"))
    state = json.loads(json.dumps(agent.export_session_state()))
    assert set(state) == {
        *("history", "documents", "active_alias", "document_access_order", "core_memory"),
    }
    other = make_agent(folder)
    assert other.import_session_state(state) == {
        "status": "ok",
        "history_turns": 1,
        "documents": 1,
        "active_alias": "n",
        "core_memory_keys": ["persona", "human", "scratchpad"],
    }
    assert other.export_session_state() == state
    other.core_memory_append("persona", "kind")
    state["core_memory"]["human"] = "someone else"
    assert agent.export_session_state()["core_memory"]["persona"] == "curt"
    assert other.export_session_state()["core_memory"]["human"] == ""


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"extra": 1}, "extra"),
        ({"history": [{"user_request": "x"}]}, "assistant_response"),
        ({"history": "x"}, "history"),
        ({"documents": {"a": 1}}, "documents.a"),
        ({"active_alias": "nope"}, "nope"),
        ({"document_access_order": ["nope"]}, "order"),
        ({"core_memory": {"human": "x" * 2_001}}, "2001 > 2000"),
        ({"core_memory": {"soul": "x"}}, "soul"),
        ({"documents": {f"{n}": "" for n in range(101)}}, "at most 100"),
    ],
)
def test_a_session_that_is_none_is_refused_and_changes_nothing(agent, change, part):
    chat(agent, finish("kept"))
    before = agent.export_session_state()
    with pytest.raises(ValueError, match=part):
        agent.import_session_state(before | change)
    with pytest.raises(ValueError, match="core_memory"):
        agent.import_session_state({k: v for k, v in before.items() if k != "core_memory"})
    assert agent.export_session_state() == before


def test_reset_forgets_everything_core_memory_included(agent):
    agent.tools["load_document"](path="notes.md")
    agent.tools["chunk_sandbox"](strategy="headers")
    agent.core_memory_append("human", "Ada")
    chat(agent, finish("x"))
    assert agent.reset(clear_sandbox_buffers=False)["buffers_cleared"] is False
    assert agent.tools["read_buffer"](name="chunks")["count"] == 2
    assert agent.reset() == {
        "status": "ok",
        "history_turns": 0,
        "documents_cleared": 0,
        "buffers_cleared": True,
    }
    assert agent.tools["read_buffer"](name="chunks")["count"] == 0
    assert "Ada" not in json.dumps(agent.export_session_state())
    assert agent.chat_history.messages == []


def test_there_are_23_tools():
    assert len(list_react_tool_names()) == 23
    assert list(make_agent().tools) == list_react_tool_names()


def test_document_tools_have_their_result_keys(agent, folder):
    tools = agent.tools
    assert tools["load_document"](path="notes.md", alias="n") == {
        "status": "ok", "alias": "n", "path": "notes.md", "chars": 46, "lines": 4,
    }  # fmt: skip
    (folder / "page.html").write_text("<h1>Hi</h1>")
    page = tools["load_document"](path="page.html")
    assert {"source_type", "extraction_method", "page_count"} < set(page)
    found = tools["load_document"](path=".")
    assert (found["status"], found["total_count"]) == ("directory", 2)
    assert found["files"] == ["notes.md", "page.html"]
    assert tools["set_active_document"](alias="n") == {"status": "ok", "active_alias": "n"}
    listed = tools["list_documents"]()
    assert listed["documents"][-1] == {"alias": "n", "chars": 46, "lines": 4}
    assert (listed["active_alias"], listed["cache_size"], listed["cache_limit"]) == ("n", 2, 100)
    with pytest.raises(ValueError, match="No document has the alias 'zz'"):
        tools["set_active_document"](alias="zz")
    for path in ("../x", "/etc/passwd"):
        with pytest.raises(ValueError, match="outside"):
            tools["load_document"](path=path)
    assert agent.active_alias == "n"


def test_chunks_on_the_host_and_in_the_sandbox(agent):
    tools = agent.tools
    tools["load_document"](path="notes.md", alias="n")
    found = tools["chunk_host"](strategy="header")
    assert found["strategy"] == "headers"
    assert found["chunk_count"] == 2
    assert len(found["preview"]) <= 400
    assert tools["chunk_host"](strategy="headers", pattern="^The ")["chunk_count"] == 2
    assert tools["chunk_sandbox"](strategy="size", size=30, buffer_name="b") == {
        "status": "ok", "strategy": "size", "chunk_count": 2, "buffer_name": "b",
    }  # fmt: skip
    items = tools["read_buffer"](name="b")["items"]
    assert "".join(items) == agent.documents["n"]
    again = tools["chunk_sandbox"](strategy="size", variable_name="b", size=10, buffer_name="c")
    assert again["chunk_count"] == 5
    with pytest.raises(ValueError, match="no document and no buffer 'zz'"):
        tools["chunk_sandbox"](strategy="size", variable_name="zz")
    with pytest.raises(ValueError, match="overlap must be less than size"):
        tools["chunk_sandbox"](strategy="size", size=3, overlap=3)
    with pytest.raises(ValueError, match="Unsupported strategy"):
        tools["chunk_host"](strategy="zz")
    assert tools["clear_buffer"](name="b") == {"status": "ok", "scope": "single"}
    assert tools["read_buffer"](name="b")["count"] == 0
    assert tools["clear_buffer"]() == {"status": "ok", "scope": "all"}
    assert tools["read_buffer"](name="c") == {"status": "ok", "name": "c", "count": 0, "items": []}


def test_another_documents_name_cuts_that_document(agent):
    tools = agent.tools
    tools["load_document"](path="notes.md", alias="n")
    agent.volume.write("other.txt", "one two")
    tools["load_text_from_volume"](path="other.txt", alias="o")
    tools["chunk_sandbox"](strategy="size", variable_name="n")
    assert tools["read_buffer"](name="chunks")["items"] == [agent.documents["n"]]


def test_a_map_sends_whole_parts_and_says_what_was_left_out(agent):
    text = "".join(f"# H{n}\n{'word ' * 30_000}\n" for n in range(6))
    agent.volume.write("long.md", text)
    agent.tools["load_text_from_volume"](path="long.md")
    bad = dspy.LMServerError("down")
    sub = scripted_lm(lambda prompt, _: bad if "# H1\n" in prompt else f"read {len(prompt)}")
    with dspy.context(lm=sub, fleet_sub_lm=sub):
        found = agent.tools["parallel_semantic_map"](query="What?", max_chunks=4)
    sent = "".join(prompt.partition("\nText:\n")[2] for prompt in sorted(sub.engine.prompts))
    assert found["chunk_count"] == len(sub.engine.prompts) == 4
    assert found["left_out_chars"] == len(text) - len(sent) > 0
    assert all("Question: What?" in prompt for prompt in sub.engine.prompts)
    assert (found["strategy"], found["buffer_name"]) == ("headers", "findings")
    items = agent.tools["read_buffer"](name="findings")["items"]
    assert [one["chunk_index"] for one in items] == [0, 1, 2, 3]
    failed = sum(one["response"].startswith("[ERROR]") for one in items)
    assert found["findings_count"] == 4 - failed < 4


@pytest.mark.parametrize(
    ("tool", "args", "code", "wanted"),
    [
        (
            "analyze_long_document",
            {"query": "q"},
            "SUBMIT(findings=[document[:3]], answer='a', sections_examined=2)",
            {"findings": ["# C"], "answer": "a", "sections_examined": 2, "doc_chars": 46},
        ),
        (
            "summarize_long_document",
            {"focus": "f"},
            "SUBMIT(summary='s', key_points=['k'], coverage_pct=170)",
            {"summary": "s", "key_points": ["k"], "coverage_pct": 100, "doc_chars": 46},
        ),
        (
            "extract_from_logs",
            {"query": "q"},
            "SUBMIT(matches=logs.splitlines()[:1], patterns={'p': 'x'}, time_range='t')",
            {"matches": ["# Codes"], "patterns": {"p": "x"}, "time_range": "t"},
        ),
    ],
)
def test_long_documents_are_read_by_recursive_programs(agent, tool, args, code, wanted):
    agent.tools["load_document"](path="notes.md")
    found = json.loads(observe(agent, tool, code=code, **args))
    assert wanted.items() <= found.items()
    assert found["status"] == "ok"
    assert found["trajectory_steps"] == len(found["trajectory"]) == 1
    bare = json.loads(observe(agent, tool, code=code, include_trajectory=False, **args))
    assert "trajectory" not in bare


def test_volume_tools_have_their_result_keys(agent):
    tools = agent.tools
    assert tools["memory_write"](path="a/b.md", content="hello") == {
        "status": "ok", "path": "a/b.md", "chars": 5,
    }  # fmt: skip
    assert tools["memory_read"](path="a/b.md")["content"] == "hello"
    assert tools["memory_list"](path="a") == {
        "status": "ok", "path": "a", "items": [{"name": "b.md", "type": "file"}], "count": 1,
    }  # fmt: skip
    edited = tools["edit_file"](path="memory/a/b.md", old_snippet="ell", new_snippet="ipp")
    assert (edited["status"], edited["path"]) == ("ok", "memory/a/b.md")
    assert tools["memory_read"](path="a/b.md")["content"] == "hippo"
    tools["load_text_from_volume"](path="memory/a/b.md")
    tools["chunk_sandbox"](strategy="size", size=3)
    assert tools["save_buffer_to_volume"](name="chunks", path="output/c.json") == {
        "status": "ok", "saved_path": "output/c.json", "item_count": 2,
    }  # fmt: skip
    assert json.loads(agent.volume.read("output/c.json")) == ["hip", "po"]


@pytest.mark.parametrize(
    ("tool", "args", "part"),
    [
        ("edit_file", {"path": "no", "old_snippet": "a", "new_snippet": "b"}, "File not found: no"),
        (
            "edit_file",
            {"path": "f", "old_snippet": "z", "new_snippet": "b"},
            "old_snippet not found",
        ),
        (
            "edit_file",
            {"path": "f", "old_snippet": "", "new_snippet": "b"},
            "old_snippet not found",
        ),
        ("edit_file", {"path": "f", "old_snippet": "a", "new_snippet": "b"}, "(found 2 times)"),
        ("edit_file", {"path": "../f", "old_snippet": "a", "new_snippet": "b"}, "leads out"),
        ("memory_read", {"path": "none"}, "File not found"),
        ("memory_read", {"path": "../f"}, "leads out"),
        ("memory_read", {"path": "/etc/passwd"}, "leads out"),
        ("memory_write", {"path": "../../f", "content": "x"}, "leads out"),
        ("memory_list", {"path": "/"}, "leads out"),
        ("load_text_from_volume", {"path": "none.txt"}, "File not found"),
        ("save_buffer_to_volume", {"name": "none", "path": "x"}, "no buffer 'none'"),
        ("rlm_query", {"query": " "}, "takes a query"),
        ("parallel_semantic_map", {"query": "q", "max_chunks": 0}, "max_chunks"),
        ("analyze_long_document", {"query": "q"}, "No document is loaded"),
    ],
)
def test_errors_of_tools_are_errors(agent, tool, args, part):
    agent.volume.write("f", "a a")
    with pytest.raises(ValueError, match=re.escape(part)):
        agent.tools[tool](**args)
    found = json.loads(observe(agent, tool, **args))
    assert found["status"] == "error"
    assert part in found["error"]
    assert agent.documents == {}
    assert agent.volume.read("f") == "a a"


def test_without_a_volume_its_tools_say_how_to_get_one():
    with pytest.raises(ValueError, match=r"RLMReActChatAgent\(volume='folder'\)"):
        make_agent().tools["memory_list"]()


def test_secrets_do_not_leave_a_turn(folder):
    secret = "sk-abcdefghijklmnop1234"
    (folder / "env.txt").write_text(f"OPENAI_API_KEY={secret}\n")
    with make_agent(folder, volume=folder / "v") as agent:
        steps = [
            call("read_file_slice", path="env.txt"),
            call("memory_write", path="n", content=f"key {secret}"),
            call("load_document", path="env.txt"),
            call("chunk_sandbox", strategy="size"),
            call("save_buffer_to_volume", name="chunks", path="b"),
            finish(f"The key is {secret}."),
        ]
        lm = in_turn(*steps)
        with dspy.context(lm=lm):
            events = list(agent.iter_chat_turn_stream("x", trace=True))
        told = json.dumps([event.to_json() for event in events])
        assert "[REDACTED" in events[-1].text
        assert secret not in told
        assert secret not in agent.volume.read("memory/n") + agent.volume.read("b")


def test_commands_are_the_tools_by_name(agent, folder):
    def run(command, **args):
        return asyncio.run(agent.execute_command(command, args))

    assert len(COMMAND_DISPATCH) == 17
    assert run("load_document", path="notes.md", alias="n")["chars"] == 46
    assert agent.active_alias == "n"
    assert run("chunk_sandbox", strategy="headers")["chunk_count"] == 2
    assert run("read_buffer", name="chunks")["count"] == 2
    assert run("save_buffer", name="chunks", path="c.json")["item_count"] == 2
    assert run("load_volume", path="c.json", alias="c")["status"] == "ok"
    with dspy.context(lm=in_turn(code="SUBMIT(findings=[], answer='a', sections_examined=1)")):
        assert run("analyze_document", query="q")["answer"] == "a"
    found = run("list_files", pattern="*.md", colour="red")
    assert (found["files"], found["ignored_args"]) == (["notes.md"], ["colour"])
    assert run("reset")["documents_cleared"] == 2
    with pytest.raises(ValueError, match=r"Unknown command: zz\. Available: load_document, "):
        run("zz")
    with pytest.raises(ValueError, match="Missing required args for save_buffer: name, path"):
        run("save_buffer")
    with pytest.raises(ValueError, match="outside"):
        run("load_document", path="/etc/passwd")


def test_extra_tools_join_and_keep_what_was_learned(folder):
    def weather(city: str) -> str:
        """Tell the weather."""
        return f"sunny in {city}"

    async def forecast(city: str, days: int = 2) -> str:
        """Tell it in advance."""
        await asyncio.sleep(0)
        return f"{days} days of rain in {city}"

    agent = make_agent(folder, extra_tools=[weather])
    agent.act.demos = [dspy.Example(user_request="q", next_thought="t")]
    assert agent.register_extra_tool(forecast) == {"status": "ok", "tool_name": "forecast"}
    assert len(agent.act.demos) == 1
    assert "`weather(city: string)` - Tell the weather." in agent.protocol
    assert observe(agent, "weather", city="Rome") == "sunny in Rome"
    assert observe(agent, "forecast", city="Oslo") == "2 days of rain in Oslo"
    for tool in (weather, dspy.Tool(weather, name="rlm_query"), dspy.Tool(weather, name="finish")):
        with pytest.raises(UsageError, match="There is a tool"):
            agent.register_extra_tool(tool)
    with pytest.raises(UsageError, match="is no tool"):
        agent.register_extra_tool("weather")


def test_what_can_be_learned_is_in_sight():
    names = {name for name, _ in make_agent().named_parameters()}
    assert names == SAVED | {f"{t}.{p}" for t in TASKS for p in ("generate_action", "extract")}


def test_settings_are_saved_loaded_and_copied(tmp_path):
    agent = make_agent(
        react_max_iters=7, rlm_max_iterations=4, rlm_max_llm_calls=9, rlm_max_depth=2
    )
    agent.save(tmp_path / "agent.json")
    loaded = make_agent()
    loaded.load(tmp_path / "agent.json")
    for other in (
        loaded,
        agent.deepcopy(),
        agent.reset_copy(),
        cloudpickle.loads(cloudpickle.dumps(agent)),
    ):
        assert other.settings["react_max_iters"] == 7
        rlm = other.rlm
        assert (other.analyze.max_iters, rlm.max_llm_calls, rlm.max_depth) == (4, 9, 2)
        assert other.analyze.recursion is other.rlm.recursion is not agent.recursion


def test_a_copy_has_its_own_memory_tools_and_session(folder):
    original = make_agent(folder, volume=folder / "v")
    original.tools["load_document"](path="notes.md", alias="both")
    for copy in (original.deepcopy(), original.reset_copy()):
        copy.tools["load_document"](path="notes.md", alias="mine")
        copy.core_memory_append("human", "Ada")
        assert list(copy.documents) == ["both", "mine"]
        assert copy.volume is original.volume
        copy.tools["chunk_sandbox"](strategy="headers")
        assert original.tools["read_buffer"](name="chunks")["count"] == 0
        copy.shutdown()
    assert list(original.documents) == ["both"]
    assert "Ada" not in original.fmt_core_memory()


def test_a_session_that_was_ended_is_opened_again(folder):
    agent = make_agent(folder)
    agent.tools["load_document"](path="notes.md")
    with agent:
        agent.tools["chunk_sandbox"](strategy="headers")
    assert agent.tools["read_buffer"](name="chunks")["count"] == 0
    assert agent.tools["chunk_sandbox"](strategy="headers")["chunk_count"] == 2
    agent.shutdown()
    agent.shutdown()


def test_a_session_that_is_lost_is_replaced(agent):
    agent.tools["load_document"](path="notes.md")
    agent.tools["chunk_sandbox"](strategy="headers")
    with pytest.raises(SandboxError, match="gone"):
        agent._bench.call("__import__('os')._exit(1)")
    assert agent.tools["read_buffer"](name="chunks")["count"] == 0
    assert agent.tools["chunk_sandbox"](strategy="headers")["chunk_count"] == 2


def test_the_sandbox_is_the_one_that_is_told(folder):
    made = []

    def factory():
        made.append(LocalInterpreter())
        return made[-1]

    for arguments in ({"interpreter_factory": factory}, {"interpreter": factory}):
        observe(make_agent(folder, **arguments), "rlm_query", query="q", context="c")
    with dspy.context(interpreter_factory=factory):
        observe(make_agent(folder), "rlm_query", query="q", context="c")
    assert len(made) == 3


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"secret_name": "LITELLM"}, "no secret enters a sandbox"),
        ({"react_max_iters": 0}, "from 1 to 100"),
        ({"rlm_max_iterations": 0}, "max_iters"),
        ({"rlm_max_llm_calls": -1}, "max_llm_calls"),
        ({"rlm_max_depth": 99}, "max_depth"),
        ({"timeout": 0}, "timeout must be positive"),
        ({"history_max_turns": 0}, "history_max_turns must be positive"),
        ({"volume": "v", "volume_name": "v"}, "not both"),
        ({"volume_name": "../v"}, "cannot be the name of a volume"),
        ({"interpreter": LocalInterpreter, "interpreter_factory": LocalInterpreter}, "not both"),
        ({"interpreter": "local"}, "interpreter_factory=fleet_rlm.LocalInterpreter"),
        ({"docs_path": "/nowhere"}, "There is no '/nowhere'"),
        ({"roots": ["/nowhere"]}, "is not a folder"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, part):
    with pytest.raises(UsageError) as caught:
        RLMReActChatAgent(**arguments)
    assert part in str(caught.value)


def test_one_interpreter_for_all_is_refused():
    with pytest.raises(UsageError, match="shared by programs"):
        RLMReActChatAgent(interpreter=LocalInterpreter())


def test_docs_path_is_loaded_and_its_folder_is_the_root(folder, monkeypatch):
    agent = RLMReActChatAgent(docs_path=folder / "notes.md")
    assert agent.active_alias == "active"
    assert agent.roots.folders == (folder.resolve(),)
    assert RLMReActChatAgent(docs_path=folder).documents == {}
    monkeypatch.chdir(folder)
    assert RLMReActChatAgent().roots.folders == (folder.resolve(),)
    named = RLMReActChatAgent(volume_name="notes")
    assert named.volume.root == folder.resolve() / ".fleet-rlm" / "volumes" / "notes"


def test_verbose_logs_what_happens(folder, caplog):
    caplog.set_level(logging.INFO, "fleet_rlm.program.agent.agent")
    chat(make_agent(folder, verbose=True), call("list_files"), finish())
    assert "tool_call: tool call: list_files" in caplog.text
    caplog.clear()
    chat(make_agent(folder), call("list_files"), finish())
    assert not caplog.text


def test_the_agent_is_a_program_that_suites_score():
    program = AgentProgram("context, query -> count: int")
    assert not program.agent.roots.folders
    code = "SUBMIT(str(context.count('x')))"
    with dspy.context(lm=in_turn(call("rlm_query", query="how many"), finish("3"), code=code)):
        found = program(context="x x x", query="how many x?")
    assert (found.count, found.stop, len(found.trajectory)) == (3, "answered", 2)
    with dspy.context(lm=in_turn(finish("many"))):
        assert program(context="x", query="q").count is None

    def second(prompt):
        return finish("yes" if "Assistant: the code" in prompt else "no")

    with dspy.context(lm=in_turn(finish("the code\nis 7"), second)):
        query = pose(["What is the code?", "Is it odd?"])
        found = AgentProgram("context, query -> answer")(context="x", query=query)
    assert found.answer == "the code is 7\nyes", "a turn each, with the earlier ones in mind"
    assert len(found.trajectory) == 2
    with pytest.raises(UsageError, match="one output"):
        AgentProgram("context, query -> a, b")
