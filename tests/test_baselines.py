"""Baselines: they keep to budgets, report what they left out, and compile like any program."""

import asyncio
import threading
from pathlib import Path

import dspy
import pytest
from dspy.utils.exceptions import ContextWindowExceededError
from hypothesis import given
from hypothesis import strategies as st
from scripted import action, fields, scripted_lm

from fleet_rlm import ContextRef, LocalInterpreter, RecursionSettings
from fleet_rlm.errors import LimitReached, UsageError
from fleet_rlm.ledger import Ledger, Limits
from fleet_rlm.lm.metered import MeteredLM
from fleet_rlm.lm.simulated import PRICES, SimulatedEngine
from fleet_rlm.program.baselines import BASELINES, WINDOW, WITHHELD, input_window, rank
from fleet_rlm.program.pieces import cut, keep_ends
from fleet_rlm.program.reader import EXCERPT_CHARS, Reader
from fleet_rlm.program.recursion import ProgramSettings
from fleet_rlm.program.registry import AnswerQuery
from fleet_rlm.runner.attempt import score_answer
from fleet_rlm.suites.suite import load_suite
from fleet_rlm.suites.tokens import count_tokens

SUITE = load_suite(Path(__file__).parents[1] / "evals" / "quickstart.toml")
SAMPLES = SUITE.override({"lengths": [8000], "windows": 1}).plan()
LONGER = SUITE.override({"lengths": [32000], "windows": 1, "questions": 1}).plan()

PREDICTORS = {
    "direct": {"answer"},
    "truncate": {"answer"},
    "bm25": {"answer"},
    "mapreduce": {"map", "reduce"},
    "router": {"classify", "direct", "rlm.generate_action", "rlm.extract"},
    "blind": {"answer"},
}
BUDGETS = {
    "truncate": {"max_tokens": 4_000},
    "bm25": {"max_tokens": 4_000, "passage_tokens": 100},
    "mapreduce": {"chunk_tokens": 3_000, "max_tokens": 2_000},
}
TOO_LONG = ContextWindowExceededError(model="scripted", message="too long")
LINES = "".join(f"Line {n}: the colour of box {n} is shade{n * 7 % 101}.\n" for n in range(1300))


def make(name, *, signature=AnswerQuery, guidance="", **settings):
    kind = BASELINES[name]
    return kind(signature, guidance=guidance, settings=kind.settings_type(**settings))


class Watched(SimulatedEngine):
    """The simulated model, with the prompts that it saw."""

    def __init__(self):
        super().__init__(seed=0)
        self.prompts = []

    def complete(self, request):
        texts = [request.system or "", *(message.text or "" for message in request.messages)]
        self.prompts.append("\n".join(t if isinstance(t, str) else t[0].text for t in texts))
        return super().complete(request)


def simulated():
    return MeteredLM("sim", role="root", price=PRICES["sim"], engine=Watched(), cache=False)


def ask(program, lm, context=LINES, query="Which colour is box 3?", **context_settings):
    with dspy.context(lm=lm, interpreter_factory=LocalInterpreter, trace=[], **context_settings):
        return program(context=context, query=query)


def answers(program, lm, samples=SAMPLES):
    return [str(ask(program, lm, *texts(sample)).answer) for sample in samples]


def texts(sample):
    built = sample.build()
    return built.context, built.query


@pytest.fixture(params=BASELINES)
def name(request):
    return request.param


# Cutting


@given(
    st.text(st.sampled_from("ab, .\n\té漢🙂") | st.characters(codec="utf-8")), st.integers(4, 60)
)
def test_pieces_cover_the_text_and_keep_to_the_budget(text, max_tokens):
    pieces = cut(text, max_tokens)
    assert "".join(text[piece.start : piece.end] for piece in pieces) == text
    assert all(0 < count_tokens(text[p.start : p.end]) <= max_tokens for p in pieces)


@given(st.lists(st.text(st.characters(codec="ascii", exclude_characters="\n"))), st.integers(4, 60))
def test_pieces_end_where_lines_end_and_their_tokens_add_up(lines, max_tokens):
    lines = [line for line in lines if count_tokens(line + "\n") <= max_tokens and line.strip()]
    text = "".join(f"{line}\n" for line in lines)
    pieces = cut(text, max_tokens)
    assert all(text[piece.end - 1] == "\n" for piece in pieces)
    assert sum(piece.tokens for piece in pieces) == count_tokens(text)


def test_a_line_without_end_is_cut_at_spaces_and_in_time_that_grows_with_it():
    text = "word and number 1234, " * 20_000
    pieces = cut(text, 500)
    assert all(text[piece.start] in " w" and piece.tokens <= 500 for piece in pieces)
    assert len(pieces) < 1.3 * count_tokens(text) / 500


def test_the_ends_are_kept_as_longbench_keeps_them():
    kept = keep_ends(LINES, 1_000)
    head, mark, tail = kept.text.partition("\n[... ")
    assert LINES.startswith(head)
    assert LINES.endswith(tail.partition("...]\n")[2])
    assert mark
    assert 980 <= count_tokens(kept.text) <= 1_000
    assert kept.tokens == count_tokens(LINES)
    assert kept.dropped == pytest.approx(kept.tokens - 1_000, abs=40)
    assert f"{kept.dropped:,} tokens left out" in kept.text
    assert keep_ends(LINES, kept.tokens) == (LINES, kept.tokens, 0)


@given(st.text(max_size=3000), st.integers(24, 200))
def test_no_text_is_too_odd_to_be_kept_within_a_budget(text, max_tokens):
    assert count_tokens(keep_ends(text, max_tokens).text) <= max_tokens + 2  # where texts meet


# Every program


def test_the_simulated_model_answers_and_knows_every_prompt(name):
    lm = simulated()
    found = answers(make(name), lm)
    assert all(found)
    assert lm.engine.kinds["unknown"] == 0
    scores = [score_answer(s, s.build(), a)["score"] for a, s in zip(found, SAMPLES, strict=True)]
    if name == "blind":
        assert not any(scores), "nobody knows what was drawn for this text alone"
    else:
        assert sum(scores) / len(scores) > (0.3 if name == "mapreduce" else 0.9)


@pytest.mark.parametrize("name", BUDGETS)
def test_no_prompt_is_over_the_budget_compiled_or_not(name):
    program = make(name, **BUDGETS[name])
    demo = dspy.Example(
        context=LINES, notes=LINES, query="Which colour is box 5?", answer="shade35", augmented=True
    )
    for demos in ([], [demo, demo]):
        for predictor in program.predictors():
            predictor.demos = demos
        lm = simulated()
        answers(program, lm, LONGER)
        sizes = [count_tokens(prompt) for prompt in lm.engine.prompts]
        budget = max(BUDGETS[name].values())
        frame = 350 + 1_500 * len(demos) if name == "mapreduce" else 0
        assert 0.8 * budget < max(sizes) <= budget + frame
        if name == "mapreduce":
            reduce = [s for s, p in zip(sizes, lm.engine.prompts, strict=True) if "`notes` (s" in p]
            assert reduce


def test_the_same_call_gives_the_same(name):
    samples = SAMPLES if name == "router" else LONGER
    runs = []
    for _ in range(2):
        lm = simulated()
        found = answers(make(name, **BUDGETS.get(name, {})), lm, samples)
        runs.append((found, [hash(prompt) for prompt in sorted(lm.engine.prompts)]))
    assert runs[0] == runs[1]


def test_predictors_are_listed_and_everything_survives_copy_save_and_load(name, tmp_path):
    values = {key: spec.highest - 1 for key, spec in BASELINES[name].settings_type.SPEC.items()}
    program = make(name, guidance="Read twice.", **values)
    assert {key for key, _ in program.named_predictors()} == PREDICTORS[name]
    program.predictors()[-1].demos = [dspy.Example(query="q", answer="a", notes="n")]
    program.save(tmp_path / "state.json")
    loaded = make(name)
    loaded.load(tmp_path / "state.json")
    state = program.dump_state()
    for other in (loaded, program.deepcopy()):
        assert other.dump_state() == state
        assert all(part not in program.parameters() for part in other.parameters())
    kept = [p for p in program.reset_copy().parameters() if isinstance(p, ProgramSettings)]
    assert {k: v for p in kept for k, v in p.to_json().items()} == values
    assert not any(predictor.demos for predictor in program.reset_copy().predictors())


def test_guidance_is_the_instruction_and_replaces_the_signatures_own(name):
    instructions = {
        key: predictor.signature.instructions
        for key, predictor in make(name, guidance="Read twice.").named_predictors()
    }
    for key in ("answer", "direct", "rlm.generate_action"):
        assert instructions.get(key, "Read twice.") == "Read twice."
    if name == "mapreduce":
        assert all(text.endswith("\n\nRead twice.") for text in instructions.values())


def test_it_compiles_and_demos_hold_excerpts(name):
    lm = simulated()
    program = make(name)
    trainset = [
        dspy.Example(context=built.context, query=built.query).with_inputs("context", "query")
        for built in (sample.build() for sample in SAMPLES[:3])
    ]
    optimizer = dspy.BootstrapFewShot(
        metric=lambda *_: True, max_bootstrapped_demos=2, max_labeled_demos=0
    )
    with dspy.context(lm=lm, interpreter_factory=LocalInterpreter):
        compiled = optimizer.compile(program, trainset=trainset)
    demos = {key: p.demos for key, p in compiled.named_predictors() if p.demos}
    used = {"router": {"direct"}, "mapreduce": {"map", "reduce"}}.get(name, {"answer"})
    assert demos.keys() == used
    texts = [str(text) for of_one in demos.values() for demo in of_one for text in demo.values()]
    assert max(map(len, texts)) <= EXCERPT_CHARS
    assert sum(len(of_one) for of_one in demos.values()) == 2 * len(used)
    before = len(lm.engine.prompts)
    assert answers(compiled, lm, SAMPLES[-1:])
    shown = WITHHELD if name == "blind" else "..."
    assert any(shown in prompt for prompt in lm.engine.prompts[before:])
    assert lm.engine.kinds["unknown"] == 0


def test_a_context_by_reference_and_an_asynchronous_call_give_the_same(name, tmp_path):
    sample = SAMPLES[0].build()
    (tmp_path / "context.txt").write_text(sample.context, encoding="utf-8")
    reference = ContextRef.from_file(tmp_path / "context.txt")

    async def later(program, context):
        with dspy.context(lm=simulated(), interpreter_factory=LocalInterpreter):
            return await program.acall(context=context, query=sample.query)

    found = [
        ask(make(name), simulated(), sample.context, sample.query),
        ask(make(name), simulated(), reference, sample.query),
        asyncio.run(later(make(name), reference)),
    ]
    assert len({(f.answer, f.stop) for f in found}) == 1


def test_other_fields_than_these_and_contexts_that_are_no_text_are_refused(name):
    with pytest.raises(UsageError, match=r"inputs context and query .* got document, query"):
        make(name, signature="document, query -> answer")
    with pytest.raises(UsageError, match=r"no output named .* got context, query, answer, stop"):
        make(name, signature="context, query -> answer, stop")
    with pytest.raises(UsageError, match="not dict"):
        ask(make(name), simulated(), {"a": 1})


def test_other_outputs_are_filled_and_settings_of_other_programs_do_not_disturb(name):
    program = BASELINES[name](
        "context, query -> reasoning, answer: int, parts, route",
        settings=RecursionSettings(max_iters=3),
    )
    reply = fields(reasoning="r", answer="7", parts="p", route="mine", notes="n")
    found = ask(program, scripted_lm(lambda *_: reply), context="short\n")
    assert (found.reasoning, found.answer, found.parts, found.route) == ("r", 7, "p", "mine")
    assert found.stop == "answered"


def test_an_empty_context_is_answered_or_refused_like_any_other(name):
    lm = scripted_lm(lambda *_: fields(answer="none", notes="nothing"))
    assert ask(make(name), lm, context="").answer == "none"


@pytest.mark.parametrize("name", ["truncate", "bm25", "mapreduce"])
def test_a_budget_without_room_for_text_says_what_to_do(name):
    with pytest.raises(UsageError, match=r"no room for the (context|notes).* Try: max_tokens of"):
        ask(make(name, max_tokens=100), simulated())


# Truncate


def test_truncate_says_what_it_dropped():
    reply = scripted_lm(lambda *_: fields(answer="a"))
    found = ask(make("truncate", max_tokens=2_000), reply)
    total = count_tokens(LINES)
    assert found.dropped_tokens == pytest.approx(total - 1_700, abs=150)
    assert found.final_reasoning.endswith(f"of {total:,} tokens, the two ends.")
    assert found.stop == "answered"
    whole = ask(make("truncate"), reply)
    assert whole.dropped_tokens == 0
    assert LINES.strip() in reply.engine.prompts[-1]


def test_without_a_budget_the_models_window_counts():
    assert input_window(dspy.LM("openai/gpt-5-mini")) == 272_000
    assert input_window(simulated()) == input_window(None) == WINDOW


def test_a_window_that_proves_smaller_is_filled_less_and_a_told_budget_is_not():
    def script(prompt, _):
        too_long = count_tokens(prompt) > 80_000
        return TOO_LONG if too_long else fields(answer="fits")

    text = LINES * 8
    lm = scripted_lm(script)
    assert ask(make("truncate"), lm, context=text).answer == "fits"
    assert [count_tokens(p) // 10_000 for p in lm.engine.prompts] == [11, 8, 6]
    with pytest.raises(ContextWindowExceededError):
        ask(make("truncate", max_tokens=100_000), lm, context=text)
    assert len(lm.engine.prompts) == 4


# BM25


def test_bm25_ranks_by_rare_words_and_keeps_order_on_ties():
    texts = ["the cat sat", "the dog sat", "the cat and the zebra", "no animal"]
    assert rank(texts, "Where is the ZEBRA?")[0] == 2
    assert rank(texts, "cat zebra")[:2] == [2, 0]
    assert rank(texts, "") == rank(texts, "unknown") == [0, 1, 2, 3]
    assert rank(["...", "\n"], "cat") == [0, 1]
    assert rank([], "cat") == []


def test_bm25_shows_the_best_passages_in_the_order_of_the_text():
    lm = scripted_lm(lambda *_: fields(answer="a"))
    program = make("bm25", passage_tokens=60, passages=5)
    found = ask(program, lm, query="What stands in Line 871 and in Line 17?")
    prompt = lm.engine.prompts[0]
    assert len(found.passages) == 5
    assert found.passages == sorted(found.passages)
    for start, end in found.passages:
        assert LINES[start:end].strip() in prompt
        assert f"[characters {start:,} to {end:,}]" in prompt
    assert prompt.index("Line 17:") < prompt.index("Line 871:")
    shown = sum(count_tokens(LINES[start:end]) for start, end in found.passages)
    assert found.dropped_tokens == count_tokens(LINES) - shown


def test_passages_that_the_prompt_has_no_room_for_are_the_worst():
    lm = scripted_lm(lambda *_: fields(answer="a"))
    found = ask(make("bm25", max_tokens=600, passage_tokens=100_000), lm, query="Line 400?")
    (passage,) = found.passages
    assert "Line 400:" in LINES[slice(*passage)]
    assert count_tokens(lm.engine.prompts[0]) <= 600


# Map and reduce


def notes_on(prompt, _=0):
    """Notes in the map step; in the reduce step the notes as they came."""
    if "`notes` (str): what" in prompt:
        return fields(notes=f"note on {prompt.partition('[part ')[2].partition(' of')[0]}")
    return fields(answer=prompt.partition("[[ ## notes ## ]]\n[part")[2])


def test_every_part_is_noted_and_the_notes_come_in_order():
    lm = scripted_lm(notes_on)
    found = ask(make("mapreduce", chunk_tokens=2_000), lm)
    assert (found.stop, found.failed_parts, found.unread_parts) == ("answered", 0, 0)
    assert found.parts == len(lm.engine.prompts) - 1 == len(found.trajectory) > 5
    places = [found.answer.index(f"note on {n}") for n in range(1, found.parts + 1)]
    assert places == sorted(places)


def test_maps_run_as_wide_as_the_setting_says_on_the_model_for_sub_queries():
    wide = threading.Barrier(4, timeout=10)

    def reply(prompt, number):
        if number <= 4:
            wide.wait()
        return notes_on(prompt)

    sub, root = scripted_lm(reply, role="sub"), scripted_lm(notes_on)
    ledger = Ledger()
    found = ask(
        make("mapreduce", chunk_tokens=2_000, batch_workers=4),
        root,
        fleet_sub_lm=sub,
        fleet_ledger=ledger,
    )
    calls = {role: usage.calls for role, usage in ledger.by_role.items()}
    assert calls == {"sub": found.parts, "root": 1}


def test_a_failed_part_is_named_in_the_notes():
    def script(prompt, _):
        failing = "`notes` (str): what" in prompt and "[part 2 of" in prompt
        return dspy.LMServerError("down for lunch") if failing else notes_on(prompt)

    found = ask(make("mapreduce", chunk_tokens=2_000), scripted_lm(script))
    assert found.failed_parts == 1
    assert found.stop == "answered"
    assert "[could not be read:" in found.answer
    assert "down for lunch" in found.answer
    assert "note on 3" in found.answer
    assert "1 failed" in found.final_reasoning


def test_when_no_part_could_be_read_the_failure_is_the_services():
    with pytest.raises(dspy.LMServerError, match="down"):
        ask(
            make("mapreduce", chunk_tokens=2_000),
            scripted_lm(lambda *_: dspy.LMServerError("down")),
        )


def test_a_reply_without_fields_is_a_note_as_it_stands():
    def script(prompt, _):
        return "plain words" if "`notes` (str): what" in prompt else notes_on(prompt)

    found = ask(make("mapreduce", chunk_tokens=4_000), scripted_lm(script))
    assert found.answer.count("plain words") == found.parts
    assert found.failed_parts == 0


def test_parts_that_do_not_help_are_counted_not_listed():
    def script(prompt, _):
        if "`notes` (str): what" in prompt and "[part 3 of" not in prompt:
            return fields(notes="Nothing.")
        return notes_on(prompt)

    found = ask(make("mapreduce", chunk_tokens=2_000), scripted_lm(script))
    assert "note on 3" in found.answer
    assert f"[{found.parts - 1} of {found.parts} parts do not help]" in found.answer
    assert "Nothing." not in found.answer


def test_a_limit_met_on_the_way_still_answers_from_what_is_paid_for():
    lm = scripted_lm(notes_on)
    ledger = Ledger(Limits(tokens=45))
    found = ask(make("mapreduce", chunk_tokens=2_000, batch_workers=1), lm, fleet_ledger=ledger)
    assert found.stop == "tokens"
    assert found.unread_parts == found.parts - 3
    assert "note on 3" in found.answer
    assert found.answer.count("[was not read: ") == found.unread_parts
    assert ledger.total.calls == 4


def test_a_limit_met_between_notes_and_answer_does_too():
    parts = len(cut(LINES, 2_000))
    ledger = Ledger(Limits(tokens=15 * parts))
    lm = scripted_lm(notes_on)
    found = ask(make("mapreduce", chunk_tokens=2_000, batch_workers=1), lm, fleet_ledger=ledger)
    assert (found.stop, found.unread_parts) == ("tokens", 0)
    assert ledger.total.calls == parts + 1


def test_a_limit_met_before_anything_is_read_is_the_answer():
    ledger = Ledger(Limits(tokens=0))
    with pytest.raises(LimitReached):
        ask(make("mapreduce", chunk_tokens=2_000), scripted_lm(notes_on), fleet_ledger=ledger)
    assert ledger.total.calls == 0


def long_notes(words):
    def script(prompt, _):
        if "`notes` (str): what" not in prompt:
            return notes_on(prompt) if "[part" in prompt else fields(answer="from few notes")
        return fields(notes="\n".join(["word " * 40] * (2 if "[notes " in prompt else words)))

    return script


def test_notes_that_are_too_long_are_noted_again():
    lm = scripted_lm(long_notes(20))
    found = ask(make("mapreduce", chunk_tokens=2_000, max_tokens=1_500), lm)
    assert found.answer == "from few notes"
    again = [prompt for prompt in lm.engine.prompts if "\n[notes 1 of " in prompt]
    assert len(again) == 1
    assert count_tokens(lm.engine.prompts[-1]) <= 1_500


def test_notes_that_do_not_get_shorter_lose_their_middle_and_show_it():
    def script(prompt, _):
        if "`notes` (str): what" not in prompt:
            return fields(answer="cut" if "tokens left out ...]" in prompt else "whole")
        return fields(notes="\n".join(["word " * 40] * 60))

    lm = scripted_lm(script)
    assert ask(make("mapreduce", chunk_tokens=2_000, max_tokens=1_500), lm).answer == "cut"
    assert count_tokens(lm.engine.prompts[-1]) <= 1_500


def test_a_limit_met_while_noting_again_keeps_the_notes():
    parts = len(cut(LINES, 2_000))
    ledger = Ledger(Limits(tokens=15 * (parts + 1)))
    lm = scripted_lm(long_notes(20))
    program = make("mapreduce", chunk_tokens=2_000, max_tokens=2_500, batch_workers=1)
    found = ask(program, lm, fleet_ledger=ledger)
    assert (found.stop, found.unread_parts) == ("tokens", 0)
    assert ledger.total.calls == parts + 2
    assert "tokens left out ...]" in lm.engine.prompts[-1]


def test_a_watcher_that_has_seen_enough_ends_the_maps():
    def watch(event):
        if event.data.get("answered"):
            raise RuntimeError("enough")

    lm = scripted_lm(notes_on)
    program = make("mapreduce", chunk_tokens=200, batch_workers=2)
    with pytest.raises(RuntimeError, match="enough"):
        ask(program, lm, fleet_events=watch)
    assert len(lm.engine.prompts) < len(cut(LINES, 200)) / 2


def test_the_trace_has_the_parts_in_the_order_of_the_text():
    program = make("mapreduce", chunk_tokens=2_000)
    with dspy.context(lm=scripted_lm(notes_on), trace=[]):
        found = program(context=LINES, query="q")
        steps = list(dspy.settings.trace)
    assert [step[0] for step in steps] == [program.map] * found.parts + [program.reduce]
    heads = [step[1]["context"].partition(",")[0] for step in steps[:-1]]
    assert heads == [f"[part {n} of {found.parts}" for n in range(1, found.parts + 1)]
    assert max(len(step[1]["context"]) for step in steps[:-1]) <= EXCERPT_CHARS


def test_map_calls_are_told_to_the_watcher():
    events = []
    found = ask(
        make("mapreduce", chunk_tokens=4_000), scripted_lm(notes_on), fleet_events=events.append
    )
    asked = [event for event in events if event.kind == "sub_query"]
    assert len(asked) == 2 * found.parts
    assert {event.data.get("answered", False) for event in asked} == {True, False}


# Router


def route_script(prompt, _):
    if "`needs`" in prompt:
        return fields(needs="one_place" if "Which" in prompt else "everywhere")
    return action("SUBMIT('by code')") if "repl_history" in prompt else fields(answer="read")


@pytest.mark.parametrize(
    ("settings", "query", "route", "calls"),
    [
        ({}, "Which?", "rlm", 1),
        ({"direct_tokens": 100_000}, "Which?", "direct", 1),
        ({"direct_tokens": 0}, "Which?", "rlm", 1),
        ({"direct_tokens": 1_000, "classify": 1}, "Which?", "direct", 2),
        ({"direct_tokens": 1_000, "classify": 1}, "How many?", "rlm", 2),
        ({"direct_tokens": 1_000, "classify": 1, "one_place_tokens": 2_000}, "Which?", "rlm", 1),
        ({"direct_tokens": 100_000, "classify": 1}, "Which?", "direct", 1),
    ],
)
def test_the_route_follows_length_and_question(settings, query, route, calls):
    lm = scripted_lm(route_script)
    found = ask(make("router", **settings), lm, query=query)
    assert found.route == route
    assert found.answer == {"direct": "read", "rlm": "by code"}[route]
    assert found.stop == {"direct": "answered", "rlm": "submitted"}[route]
    assert len(lm.engine.prompts) == calls


def test_the_simulated_model_tells_kinds_of_questions_apart():
    lm, router = simulated(), make("router", direct_tokens=1_000, classify=1)
    with dspy.context(lm=lm):
        names = {s.task: router.choose(*texts(s)).name for s in SAMPLES}
    assert names == {"needle": "direct", "variables": "rlm", "aggregate": "rlm"}
    assert lm.engine.kinds["unknown"] == 0


def test_a_text_that_the_service_finds_too_long_goes_to_the_rlm():
    def script(prompt, number):
        too_long = "repl_history" not in prompt
        return TOO_LONG if too_long else route_script(prompt, number)

    found = ask(make("router", direct_tokens=100_000), scripted_lm(script))
    assert (found.route, found.answer) == ("rlm", "by code")


def test_a_malformed_classification_changes_nothing():
    def script(prompt, number):
        return "no fields" if "`needs`" in prompt else route_script(prompt, number)

    found = ask(make("router", direct_tokens=1_000, classify=1), scripted_lm(script))
    assert found.route == "rlm"


def test_a_router_is_told_its_own_settings_and_those_of_its_rlm():
    router = make("router", direct_tokens=5, max_iters=7)
    assert router.settings["direct_tokens"] == 5
    assert router.rlm.recursion["max_iters"] == 7
    router.settings.update({"direct_tokens": 6})
    loaded = make("router")
    loaded.load_state(router.dump_state())
    assert (loaded.settings["direct_tokens"], loaded.rlm.max_iters) == (6, 7)


# The reader, which all of them are made of


def test_a_reader_leaves_excerpts_in_the_trace_and_shows_demos_as_excerpts():
    reader = Reader(AnswerQuery)
    reader.demos = [dspy.Example(context=LINES, query="q", answer="a", augmented=True)]
    lm = scripted_lm(lambda *_: fields(answer="x"))
    with dspy.context(lm=lm, trace=[]):
        reader(context=LINES, query="q")
        (step,) = dspy.settings.trace
    assert len(step[1]["context"]) <= EXCERPT_CHARS
    assert step[1]["context"][:50] == LINES[:50]
    assert len(lm.engine.prompts[0]) < len(LINES) + 2 * EXCERPT_CHARS
    assert reader.demos[0].context == LINES


def test_a_reader_overrides_methods_that_dspy_has():
    for method in ("_forward_preprocess", "_forward_postprocess"):
        assert callable(getattr(dspy.Predict, method))
