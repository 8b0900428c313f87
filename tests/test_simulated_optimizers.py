"""DSPy's own optimizers move the simulated model toward its known optimum."""

import random

import dspy
import pytest
from dspy.teleprompt import BootstrapFewShot, MIPROv2
from simulated_arms import judge, make_lm, make_rlm, make_samples, mean, run

from fleet_rlm.lm.simulated import SimulatedEngine
from fleet_rlm.lm.simulated.advisor import propose, reflect, shorten
from fleet_rlm.lm.simulated.skill import ABILITIES

pytestmark = pytest.mark.filterwarnings("ignore")  # dspy's, optuna's and gepa's own


@pytest.fixture(scope="module")
def train():
    samples = make_samples(lengths=[8000], windows=3, seed=1)
    random.Random(0).shuffle(samples)
    return [
        dspy.Example(context=s.context, query=s.query, sample=s).with_inputs("context", "query")
        for s in samples
    ]


@pytest.fixture(scope="module")
def fresh():
    return make_samples(lengths=[8000], windows=5, seed=2)


def metric(example, prediction, trace=None):
    found = judge(example.sample, prediction.answer).robust
    return found >= 0.99 if trace is not None else found


def feedback(example, prediction, trace=None, pred_name=None, pred_trace=None):
    found = judge(example.sample, prediction.answer)
    return dspy.Prediction(score=found.robust, feedback=found.feedback or "Correct.")


def gain(program, fresh, engine):
    return mean(run(program, fresh, engine)) - mean(run(make_rlm(), fresh, engine))


def test_bootstrapped_demos_help(train, fresh):
    engine = SimulatedEngine()
    with dspy.context(lm=make_lm(engine)):
        tuner = BootstrapFewShot(metric=metric, max_bootstrapped_demos=3, max_labeled_demos=0)
        compiled = tuner.compile(make_rlm(), trainset=train)
    assert compiled.generate_action.demos
    assert gain(compiled, fresh, engine) > 0.02
    assert engine.kinds["unknown"] == 0


def test_mipro_proposals_help(train, fresh):
    engine = SimulatedEngine()
    with dspy.context(lm=make_lm(engine)):
        tuner = MIPROv2(
            metric=metric,
            auto=None,
            num_candidates=4,
            max_bootstrapped_demos=0,
            max_labeled_demos=0,
            num_threads=4,
            seed=9,
        )
        compiled = tuner.compile(
            make_rlm(), trainset=train, valset=train, num_trials=4, minibatch=False
        )
    assert gain(compiled, fresh, engine) > 0.02  # the least over hash seeds, which dspy depends on
    assert engine.kinds["propose"] >= 4
    assert engine.kinds["describe"] > 0
    assert engine.kinds["unknown"] == 0


def test_gepa_reflection_helps(train, fresh):
    engine = SimulatedEngine()
    with dspy.context(lm=make_lm(engine)):
        tuner = dspy.GEPA(
            metric=feedback,
            max_metric_calls=100,
            reflection_lm=make_lm(engine, temperature=1.0),
            num_threads=4,
            reflection_minibatch_size=4,
            component_selector="all",
            seed=0,
        )
        compiled = tuner.compile(make_rlm(), trainset=train, valset=train)
    assert gain(compiled, fresh, engine) > 0.15
    assert engine.kinds["reflect"] > 0
    assert engine.kinds["unknown"] == 0


def told(text):
    return {ability.name for ability in ABILITIES if ability.cue.search(text)}


def test_proposals_differ_by_request_and_some_lose_the_tools():
    base = "Answer.\nUse `llm_query` and SUBMIT(answer)."
    made = [propose(base, "", key=key, seed=0) for key in range(60)]
    assert len({frozenset(told(text)) for text in made}) > 20
    assert 0.03 < sum("llm_query" not in text for text in made) / 60 < 0.25
    assert propose(base, "", key=1, seed=0) == made[1]


@pytest.mark.parametrize(
    ("words", "ability"),
    [
        ("the code of another line was given: match the whole name", "exact"),
        ("3 of 5 names are missing", "hops"),
        ("2 numbers stand in the answer: end with 'Answer: number'", "form"),
        ("the count is too low by 3", "label"),
    ],
)
def test_reflection_takes_the_hint_of_the_feedback(words, ability):
    evidence = f'[{{"Inputs": {{}}, "Generated Outputs": {{}}, "Feedback": "{words}"}}]'
    assert ability in told(reflect("Answer.", evidence, key=0, seed=0))
    assert told(reflect("Answer.", evidence.replace(words, "Correct."), key=0, seed=0)) == set()


def test_reflection_drops_advice_that_hurts():
    mended = reflect("Answer.\n- Answer immediately.", "[]", key=0, seed=0)
    assert "immediately" not in mended
    assert "Answer." in mended


def test_shortening_keeps_what_matters():
    text = "Answer.\n- Work step by step.\n- Label each line.\n- Stay calm."
    assert shorten(text, 30) == "Answer.\n- Label each line."
    assert shorten(text, 5) == "Answe"
