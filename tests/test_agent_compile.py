"""The chat agent under DSPy's optimizers, on the simulated model."""

import random

import dspy
import pytest
from agent_scripts import make_agent
from dspy.teleprompt import BootstrapFewShot, MIPROv2
from simulated_arms import judge, make_lm, make_samples

from fleet_rlm.lm.simulated import SimulatedEngine
from fleet_rlm.program.agent.agent import RLMReActChatAgent

pytestmark = pytest.mark.filterwarnings("ignore")  # dspy's, optuna's and gepa's own

LEARNING = ("act", "rlm.generate_action")


@pytest.fixture
def engine():
    return SimulatedEngine()


def examples(*, windows, seed):
    samples = make_samples(lengths=[2000], windows=windows, seed=seed)
    random.Random(0).shuffle(samples)
    return [
        dspy.Example(user_request=s.query, documents={"notes": s.context}, sample=s).with_inputs(
            "user_request", "documents"
        )
        for s in samples
    ]


@pytest.fixture(scope="module")
def train():
    return examples(windows=1, seed=1)


def metric(example, prediction, trace=None):
    found = judge(example.sample, prediction.assistant_response).robust
    return found >= 0.99 if trace is not None else found


def feedback(example, prediction, trace=None, pred_name=None, pred_trace=None):
    found = judge(example.sample, prediction.assistant_response)
    return dspy.Prediction(score=found.robust, feedback=found.feedback or "Correct.")


def learned(agent):
    return {name: predictor for name, predictor in agent.named_predictors() if name in LEARNING}


def score(agent, samples):
    return sum(metric(one, agent(**one.inputs())) for one in samples) / len(samples)


def test_the_simulated_model_knows_every_prompt_of_the_agent(engine, tmp_path):
    (tmp_path / "notes.txt").write_text("The access code for Alpha is 4711.\n")
    agent = make_agent(tmp_path, react_max_iters=3)
    with dspy.context(lm=make_lm(engine)):
        found = agent.chat_turn("Load notes.txt. What is the access code for Alpha?")
        agent.settings.update({"react_max_iters": 1})
        agent.chat_turn("What is the access code for Alpha?")
    assert found["trajectory"][0]["tool_name"] == "load_document"
    assert "4711" in found["assistant_response"]
    assert engine.kinds["chat"] >= 4
    assert engine.kinds["unknown"] == 0


def test_bootstrapped_demos_land_where_they_help(engine, train):
    fresh = examples(windows=2, seed=2)
    tuner = BootstrapFewShot(metric=metric, max_bootstrapped_demos=3, max_labeled_demos=0)
    with dspy.context(lm=make_lm(engine)):
        compiled = tuner.compile(make_agent(), trainset=train)
        assert all(predictor.demos for predictor in learned(compiled).values())
        assert score(compiled, fresh) > score(make_agent(), fresh)
    demo = learned(compiled)["act"].demos[0]
    assert max(len(str(value)) for value in demo.values()) < 20_000, "no document in a demo"
    assert engine.kinds["unknown"] == 0


def test_mipro_searches_instructions_and_demos_of_the_agent(engine, train):
    lm = make_lm(engine)
    tuner = MIPROv2(
        metric=metric,
        auto=None,
        num_candidates=3,
        max_bootstrapped_demos=2,
        max_labeled_demos=0,
        num_threads=2,
        seed=3,
        prompt_model=lm,
        task_model=lm,
    )
    asked = {"program_aware_proposer": False, "data_aware_proposer": False}
    with dspy.context(lm=lm):
        compiled = tuner.compile(
            make_agent(react_max_iters=6),
            trainset=train,
            valset=train,
            num_trials=5,
            minibatch=False,
            **asked,
        )
        assert compiled(**train[0].inputs()).stop == "answered"
    tried = [learned(one["program"]) for one in compiled.candidate_programs]
    for name in LEARNING:
        assert any(candidate[name].demos for candidate in tried)
    assert compiled.settings["react_max_iters"] == 6
    assert compiled.protocol == make_agent().protocol
    assert engine.kinds["propose"] > 0
    assert engine.kinds["unknown"] == 0


def test_gepa_reflects_on_the_agents_steps(engine, train):
    lm = make_lm(engine)
    tuner = dspy.GEPA(
        metric=feedback,
        reflection_lm=lm,
        max_metric_calls=30,
        num_threads=2,
        seed=0,
        component_selector=lambda state, *_, **__: [LEARNING[state.i % 2]],
    )
    with dspy.context(lm=lm):
        compiled = tuner.compile(make_agent(), trainset=train, valset=train)
        assert score(compiled, train) >= score(make_agent(), train)
    before = learned(make_agent())
    assert any(
        predictor.signature.instructions != before[name].signature.instructions
        for name, predictor in learned(compiled).items()
    )
    assert engine.kinds["reflect"] > 0
    assert engine.kinds["unknown"] == 0


def test_optimizers_in_a_row_keep_what_the_first_one_found(engine, train):
    lm = make_lm(engine)
    tuners = {
        name: BootstrapFewShot(metric=metric, max_bootstrapped_demos=count, max_labeled_demos=0)
        for name, count in (("few", 1), ("more", 2))
    }
    agent = make_agent()
    agent.set_lm(lm)
    with dspy.context(lm=lm):
        tuner = dspy.BetterTogether(metric=metric, **tuners)
        compiled = tuner.compile(agent, trainset=train, valset=train, strategy="few -> more")
        assert score(compiled, train) > score(make_agent(), train)
    assert learned(compiled)["act"].demos


def test_a_compiled_agent_is_saved_whole_and_stays_in_sight(engine, train, tmp_path):
    tuner = BootstrapFewShot(metric=metric, max_bootstrapped_demos=2, max_labeled_demos=0)
    with dspy.context(lm=make_lm(engine)):
        compiled = tuner.compile(make_agent(), trainset=train)
        compiled._compiled = False
        compiled.save(tmp_path / "agent.json")
        loaded = make_agent()
        loaded.load(tmp_path / "agent.json")
        wanted = [len(predictor.demos) for predictor in compiled.predictors()]
        assert sum(wanted) > 1
        assert [len(predictor.demos) for predictor in loaded.predictors()] == wanted
        loaded.register_extra_tool(shout)
        assert [len(predictor.demos) for predictor in loaded.predictors()] == wanted
        same = train[0].inputs()
        assert loaded(**same).assistant_response == compiled(**same).assistant_response


def shout(text: str) -> str:
    """Shout."""
    return text.upper()


def test_the_whole_text_of_a_document_stays_out_of_the_agents_own_prompts(engine):
    text = "filler line\n" * 20_000 + "The access code for Alpha is 4711.\n"
    trace = []
    agent = RLMReActChatAgent(roots=())
    with dspy.context(lm=make_lm(engine), trace=trace):
        agent(user_request="What is the access code for Alpha?", documents={"d": text})
    act = [inputs for predictor, inputs, _ in trace if predictor is agent.act]
    assert act
    assert all(len(str(inputs)) < 20_000 for inputs in act)
