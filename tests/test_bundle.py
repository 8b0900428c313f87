"""Saving: what a bundle keeps of a compiled program, and what it refuses to hold."""

import json
import os
import stat
import sys
import warnings
from pathlib import Path

import dspy
import numpy as np
import pytest
from bundles import ROOT, compile_rlm, read, rewrite, simulated
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import action, scripted_lm

from fleet_rlm import RLM, LocalInterpreter, RecursionSettings, RLMReActChatAgent
from fleet_rlm.cli.fleet import main as fleet
from fleet_rlm.errors import UsageError
from fleet_rlm.program.baselines import BASELINES
from fleet_rlm.program.bundle import load, save
from fleet_rlm.program.context_ref import ContextRef
from fleet_rlm.program.fields import describe, make_signature
from fleet_rlm.program.manifest import ProgramState, encode, parse
from fleet_rlm.program.probe import reload_digest
from fleet_rlm.program.rebuild import difference
from fleet_rlm.program.recursion import ProgramSettings
from fleet_rlm.program.registry import AnswerQuery
from fleet_rlm.program.state import apply_state, dump_state, parts, state_digest

SETTING = st.fixed_dictionaries(
    {},
    optional={
        name: st.integers(spec.lowest, spec.highest)
        for name, spec in RecursionSettings.SPEC.items()
    },
)
NUMBER = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda item: st.lists(item, max_size=3) | st.dictionaries(TEXT, item, max_size=3),
    max_leaves=6,
)
DEMO = st.fixed_dictionaries(
    {"iteration": st.text(max_size=9), "code": st.text(max_size=40)},
    optional={"repl_history": JSON, "reasoning": JSON, "augmented": st.booleans()},
)


@pytest.fixture(scope="module")
def compiled():
    with simulated():
        return compile_rlm()


@pytest.fixture(scope="module")
def bundle(compiled, tmp_path_factory):
    evidence = {
        "suite": "quickstart",
        "before": {"score": 0.5, "n": 12},
        "after": {"score": 0.75, "n": 12, "ci": [0.6, 0.9]},
    }
    with simulated():
        path = tmp_path_factory.mktemp("saved") / "bundle"
        return save(compiled.program, path, evidence=evidence)


def prompts(program, **inputs):
    """What the model reads when the program is called, word for word."""
    lm = scripted_lm(lambda *_: action("SUBMIT(context[:5])"))
    with dspy.context(lm=lm, interpreter_factory=LocalInterpreter):
        program(**({"context": "The code is 4711.", "query": "Which code?"} | inputs))
    return lm.engine.prompts


def test_a_compiled_program_answers_alike_after_loading(compiled, bundle):
    with pytest.warns(UserWarning, match="simulated model: these numbers show the harness"):
        loaded = load(bundle)
    assert len(loaded.generate_action.demos) == len(compiled.program.generate_action.demos) == 2
    assert loaded.recursion.to_json() == compiled.program.recursion.to_json()
    assert prompts(loaded) == prompts(compiled.program)
    with simulated():
        for example in compiled.unseen:
            before, after = (program(**example.inputs()) for program in (compiled.program, loaded))
            assert (before.answer, before.trajectory) == (after.answer, after.trajectory)


def test_a_bundle_is_two_files_of_json_and_says_where_it_comes_from(compiled, bundle):
    assert sorted(item.name for item in bundle.iterdir()) == ["manifest.json", "program.json"]
    manifest, program = read(bundle, "manifest.json"), read(bundle, "program.json")
    assert (manifest["program"], manifest["format"]) == ("rlm.qa@1", 1)
    assert (manifest["model_kind"], manifest["roles"]) == ("simulated", ["root", "sub"])
    assert manifest["evidence"]["before"] == {"score": 0.5, "n": 12}
    assert manifest["evidence"]["after"] == {"score": 0.75, "n": 12, "ci": [0.6, 0.9]}
    assert manifest["settings"]["recursion"]["max_iters"] == 7
    assert manifest["versions"]["dspy"] == dspy.__version__
    types = {f["name"]: f["type"] for f in manifest["signatures"]["generate_action"]["fields"]}
    assert types["repl_history"] == "dspy.primitives.repl_types.REPLHistory"
    assert sorted(program["predictors"]) == ["extract", "generate_action"]
    kept = set(program["predictors"]["generate_action"])
    assert kept == {"instructions", "fields", "demos"}
    assert "llm_query" not in program["predictors"]["generate_action"]["instructions"]
    assert not list(bundle.parent.glob(".*")), "nothing temporary is left"
    assert bundle.stat().st_mode & stat.S_IRWXU == stat.S_IRWXU


def test_the_rules_of_the_serving_sandbox_are_shown_whatever_was_active_at_save(bundle):
    class Elsewhere:
        execution_instructions = "RULES-OF-ELSEWHERE"

        def __call__(self):
            return LocalInterpreter()

    with pytest.warns(UserWarning, match="simulated"):
        loaded = load(bundle)
    lm = scripted_lm(lambda *_: action("SUBMIT('x')"))
    with dspy.context(lm=lm, interpreter_factory=Elsewhere()):
        loaded(context="c", query="q")
    assert lm.engine.prompts[0].count("RULES-OF-ELSEWHERE") == 1
    assert LocalInterpreter.execution_instructions not in lm.engine.prompts[0]
    stored = (bundle / "program.json").read_text()
    assert LocalInterpreter.execution_instructions not in stored


def test_saving_again_replaces_an_earlier_bundle_and_knows_its_parent(bundle, tmp_path):
    target = tmp_path / "deep" / "mine"
    target.mkdir(parents=True)
    for file in bundle.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    with pytest.warns(UserWarning, match="simulated"):
        loaded = load(target)
    loaded.generate_action.signature = loaded.generate_action.signature.with_instructions("Better.")
    loaded.max_iters = 3
    assert read(save(loaded, tmp_path / "copy"), "manifest.json")["model_kind"] == "simulated"
    assert save(loaded, target, evidence={"model_kind": "live"}) == target
    manifest = read(target, "manifest.json")
    assert manifest["parent"] == read(bundle, "manifest.json")["bundle"]
    again = load(target)  # and no warning: pytest would make it an error
    assert again.generate_action.signature.instructions == "Better."
    assert again.max_iters == 3
    assert [item.name for item in target.parent.iterdir()] == ["mine"]


def test_fields_and_tools_of_ones_own_come_back_and_tools_must_fit(tmp_path):
    def search(text: str, limit: int = 3) -> str:
        """Find text."""
        return text * limit

    signature = "document: str, question: str -> answer: float | None, kind: Literal['a', 'b']"
    program = RLM(signature, tools=[search], max_iters=4)
    folder = save(program, tmp_path / "own")
    manifest = read(folder, "manifest.json")
    assert manifest["program"] == "rlm@1"
    assert list(manifest["tools"]) == ["search"]
    loaded = load(folder, tools=[search])
    assert state_digest(loaded) == state_digest(program)
    assert prompts_of_action(loaded) == prompts_of_action(program)

    def reworded(text: str, limit: int = 3) -> str:
        """Find text, in other words."""
        return text

    def changed(text: str, limit: str = "3") -> str:
        return text

    load(folder, tools=[dspy.Tool(reworded, name="search")])
    for tools, part in [
        ([], "Tool 'search' is missing. Try: load(path, tools=[search])"),
        (["search"], "A tool must be a function or a dspy.Tool, not str"),
        ([search, reworded], "Tool 'reworded' is not one of the bundle"),
        ([dspy.Tool(changed, name="search")], "takes other arguments"),
    ]:
        with pytest.raises(UsageError, match=r"[tT]ool") as caught:
            load(folder, tools=tools)
        assert part in str(caught.value)


def prompts_of_action(program):
    return program.render_protocol(LocalInterpreter, recursive=True)


def test_a_loader_that_loses_something_fails_the_save(compiled, tmp_path, monkeypatch):
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "sitecustomize.py").write_text(
        "import fleet_rlm.program.bundle as bundle\n"
        "whole = bundle.load\n"
        "def load(*arguments, **others):\n"
        "    program = whole(*arguments, **others)\n"
        "    program.generate_action.demos.pop()\n"
        "    return program\n"
        "bundle.load = load\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(shadow), str(ROOT)])}
    target = tmp_path / "out" / "bundle"
    with pytest.raises(UsageError, match="A fresh process loads another program"):
        save(compiled.program, target, env=env)
    assert not list(target.parent.iterdir())


def test_a_bundle_that_a_fresh_process_cannot_load_says_why(bundle, tmp_path):
    rewrite(bundle, tmp_path / "b", manifest=lambda m: m.update(program="rlm.qa@9"))
    with pytest.raises(UsageError, match=r"this version of fleet-rlm has rlm\.qa@1"):
        reload_digest(tmp_path / "b", (), os.environ)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    instructions=st.text(max_size=200),
    descriptions=st.lists(st.text(max_size=40), min_size=3, max_size=3),
    demos=st.lists(DEMO, max_size=3),
    chosen=SETTING,
)
def test_what_a_program_learned_survives_the_files(instructions, descriptions, demos, chosen):
    program = RLM("context, query -> answer", recursion=RecursionSettings(**chosen))
    program.generate_action.signature.instructions = instructions
    for name, text in zip(program.signature.fields, descriptions, strict=True):
        program.signature = program.signature.with_updated_fields(name, desc=text)
    program.generate_action.demos = [dspy.Example(**demo) for demo in demos]
    data = encode(dump_state(program).model_dump(mode="json"))
    copy = RLM("context, query -> answer")
    apply_state(copy, parse(ProgramState, data, "program.json"))
    assert state_digest(copy) == state_digest(program)
    assert encode(dump_state(copy).model_dump(mode="json")) == data
    shown = copy.generate_action.signature.instructions
    assert shown == program.generate_action.signature.instructions


@pytest.mark.parametrize("text", ["", "\n   deeper\n first", "a\n\tb"])
def test_instructions_are_read_alike_where_dspy_would_change_them(text):
    program, copy = dspy.Predict(AnswerQuery), dspy.Predict(AnswerQuery)
    program.signature = program.signature.with_instructions("x")
    program.signature.instructions = text
    apply_state(copy, dump_state(program))
    assert copy.signature.instructions == program.signature.instructions


def test_a_compiled_child_and_what_optimizers_leave_behind():
    class Outer(dspy.Module):
        def __init__(self):
            super().__init__()
            self.rlm = RLM("context, query -> answer")
            self.steps = [dspy.Predict("a -> b")]

    outer = Outer()
    outer.rlm._compiled = True
    outer.candidate_programs = [{"score": 1.0, "program": RLM("context, query -> answer")}]
    paths = set(dump_state(outer).predictors)
    assert paths == {"rlm.generate_action", "rlm.extract", "steps[0]"}
    assert "rlm.recursion" in parts(outer)


def test_labelled_examples_that_no_prompt_shows_are_left_out():
    program = RLM("context, query -> answer")
    reference = ContextRef("/data/book.txt", "0" * 64, 10**9, "Call me")
    program.generate_action.demos = [
        dspy.Example(context=reference, query="q", answer="a"),
        dspy.Example(iteration="1/2", code="print(1)", sample="needle-0", augmented=True),
    ]
    demos = dump_state(program).predictors["generate_action"].demos
    assert demos == [{"iteration": "1/2", "code": "print(1)", "augmented": True}]


def predictor(**demo):
    program = dspy.Predict(AnswerQuery)
    program.demos = [dspy.Example(query="q", answer="a"), dspy.Example(**demo)]
    return program


class Renamed(RLM):
    pass


def with_part(name, value):
    program = RLM("context, query -> answer")
    setattr(program, name, value)
    return program


def tuned(program, **config):
    program.config = config
    return program


REFUSED_PROGRAMS = {
    "not a program": ("rlm", "takes a dspy.Module, got a str"),
    "stock class": (dspy.RLM("context, query -> answer"), "its class dspy.predict.rlm.RLM is not"),
    "own class": (Renamed("context, query -> answer"), "its class test_bundle.Renamed is not"),
    "other class": (dspy.ChainOfThought("q -> a"), "ChainOfThought is not that of a program here"),
    "unknown type": (RLM("context, query -> answer: dspy.Image"), "a bundle can rebuild str, int"),
    "extra predictor": (with_part("judge", dspy.Predict("a -> b")), "its part 'judge' is unknown"),
    "other predictor": (
        with_part("extract", dspy.ChainOfThought("a -> b")),
        "'extract' is a dspy.predict.chain_of_thought.ChainOfThought",
    ),
    "other fields": (
        with_part("extract", dspy.Predict("a -> b")),
        "'extract' has the fields (a: str, b: str), not (variables_info: str",
    ),
    "call settings": (tuned(dspy.Predict(AnswerQuery), n=2), "call settings of its own"),
    "reference": (
        predictor(context=ContextRef("/x", "0" * 64, 9, "p"), answer="a"),
        "Demo 2 of predictor 'self', field 'context', is a ContextRef",
    ),
    "raw context": (
        predictor(context="x" * 300_000, answer="a"),
        "holds 300,000 characters: raw contexts do not belong",
    ),
    "object": (predictor(context=object(), answer="a"), "is a object that JSON cannot hold"),
    "array": (predictor(context=np.zeros(2), answer="a"), "is a ndarray that JSON cannot hold"),
    "not a number": (predictor(context=float("nan"), answer="a"), "is a float that JSON cannot"),
    "numbered keys": (predictor(context={1: "x"}, answer="a"), "is a dict that JSON cannot hold"),
    "half a character": (predictor(context="\ud800", answer="a"), "half a character"),
    "too large": (
        predictor(context=["x" * 200_000] * 25, answer="a"),
        "over 4,194,304: predictor 'self' takes most",
    ),
}


@pytest.mark.parametrize("case", REFUSED_PROGRAMS)
def test_a_program_that_cannot_be_rebuilt_is_refused_with_the_reason(case, tmp_path):
    program, part = REFUSED_PROGRAMS[case]
    with pytest.raises(UsageError) as caught:
        save(program, tmp_path / "bundle")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_name_that_does_not_fit_the_program_is_refused_with_the_difference(tmp_path):
    program = RLM("document, question -> answer")
    for name, part in [
        ("rlm.qa@1", "'self' has the fields (document: str, question: str, answer: str)"),
        ("predict@1", "'self' is a fleet_rlm.program.rlm.RLM, not a dspy.predict.predict.Predict"),
        ("rlm", "names no program that a bundle can hold"),
        ("rmlm@1", "Did you mean 'rlm'?"),
        ("os.system", "No program 'os.system'"),
    ]:
        with pytest.raises(UsageError) as caught:
            save(program, tmp_path / "bundle", name=name)
        assert part in str(caught.value)


KEY = "sk-proj-4f9aB27cD81eF03a"


@pytest.mark.parametrize(
    ("plant", "place"),
    [
        ({"instructions": "Use {}."}, "predictors.self.instructions"),
        ({"desc": "like {}"}, "predictors.self.fields.query.desc"),
        ({"demo": {"query": "q", "answer": "x={}"}}, "predictors.self.demos[0].answer"),
        ({"demo": {"query": {"{}": 1}, "answer": "a"}}, "predictors.self.demos[0].query"),
    ],
    ids=["instructions", "description", "demo", "key of a demo"],
)
@pytest.mark.parametrize("secret", [KEY, "correct horse battery"])
def test_a_secret_is_refused_by_place_and_never_shown(plant, place, secret, tmp_path):
    planted = json.loads(json.dumps(plant).replace("{}", secret))
    signature = AnswerQuery.with_instructions(planted.get("instructions", "Answer."))
    signature = signature.with_updated_fields("query", desc=planted.get("desc", "it"))
    program = dspy.Predict(signature)
    program.demos = [planted["demo"]] if "demo" in planted else []
    with pytest.raises(UsageError, match="A secret") as caught:
        save(program, tmp_path / "bundle", env={"MY_API_KEY": "correct horse battery"})
    assert place in str(caught.value)
    assert secret not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_secret_in_the_evidence_is_refused_too(tmp_path):
    with pytest.raises(UsageError, match=r"manifest\.evidence\.suite"):
        save(dspy.Predict(AnswerQuery), tmp_path / "b", evidence={"suite": KEY})


@pytest.mark.parametrize(
    ("evidence", "part"),
    [
        ({"scroe": 1}, "evidence: scroe: is not part of a bundle"),
        ({"after": {"score": 0.5, "n": -1}}, "evidence: after.n: "),
        ({"model_kind": "human"}, "evidence: model_kind: "),
    ],
)
def test_evidence_has_a_form(evidence, part, tmp_path):
    with pytest.raises(UsageError) as caught:
        save(dspy.Predict(AnswerQuery), tmp_path / "b", evidence=evidence)
    assert part in str(caught.value)


def test_what_is_not_a_bundle_is_never_replaced(tmp_path):
    program = dspy.Predict(AnswerQuery)
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("irreplaceable")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(full)
    for name in ("full", "file", "link"):
        with pytest.raises(UsageError, match="exists and is not a bundle"):
            save(program, tmp_path / name)
    with pytest.raises(UsageError, match="bundles are folders"):
        save(program, "models:/mine@champion")
    with pytest.raises(UsageError, match="Cannot write bundle"):
        save(program, Path("/proc/nowhere/bundle"))
    assert (full / "thesis.txt").read_text() == "irreplaceable"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "full", "link"]


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_can_be_rebuilt_with_what_it_learned(name):
    program = BASELINES[name]("context, query -> answer: int")
    for part in parts(program).values():
        if isinstance(part, ProgramSettings):
            part.update({key: spec.highest for key, spec in part.SPEC.items()})
        elif isinstance(part, dspy.Predict):
            part.signature = part.signature.with_instructions(f"For {name}.")
    copy = BASELINES[name](make_signature(describe(program.signature).fields))
    assert difference(program, copy) is None
    assert state_digest(copy) != state_digest(program)
    apply_state(copy, dump_state(program))
    assert state_digest(copy) == state_digest(program)


def test_a_command_line_shows_the_warning_however_the_folder_is_spelt(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with simulated():
        save(RLM(AnswerQuery), "champion")
    Path("notes.txt").write_text("The access code for Halcyon-37 is 1234567.\n" * 40)
    query = "What is the current access code for Halcyon-37? Answer with the code only."
    words = ["run", "--program", "champion", "--context", "notes.txt", "--query", query]
    monkeypatch.setattr(sys, "argv", ["fleet-rlm", *words])
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # the suite turns warnings into errors
        with pytest.raises(SystemExit):
            fleet()
    assert "warning: champion was compiled on a simulated model" in capfd.readouterr().err


def test_the_chat_agent_itself_is_a_bundle(tmp_path):
    agent = RLMReActChatAgent(react_max_iters=7)
    agent.act.signature = agent.act.signature.with_instructions("Learned how to act.")
    demo = {"variables_info": "v", "repl_history": "h", "iteration": "1/2", "reasoning": "r"}
    agent.rlm.generate_action.demos = [{**demo, "code": "c", "augmented": True}]
    loaded = load(save(agent, tmp_path / "agent"))
    assert type(loaded) is RLMReActChatAgent
    assert loaded.act.signature.instructions == "Learned how to act."
    assert loaded.settings["react_max_iters"] == 7
    assert [dict(demo)["code"] for demo in loaded.rlm.generate_action.demos] == ["c"]
