"""The skill table of the simulated model: separable cues, growing errors, a known optimum."""

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_arms import make_rlm, make_samples, mean, run

from fleet_rlm import LocalInterpreter
from fleet_rlm.lm.simulated import ORACLE_GUIDANCE, SimulatedEngine
from fleet_rlm.lm.simulated.skill import (
    ABILITIES,
    BOTH,
    CARELESS_LINES,
    HARM,
    HARMED,
    SHOWN,
    count_error,
    draw,
    elicit,
    label_error,
    reading_skill,
)
from fleet_rlm.program.registry import AnswerQuery

BY_NAME = {ability.name: ability for ability in ABILITIES}
EXAMPLES = {
    "explore": "lines = full.splitlines()\nprint(lines[:5])",
    "exact": "current = [c for c, note in found if 'revoked' not in note]",
    "hops": "while name in value_of and name not in seen:\n    name = value_of[name]",
    "chunk": "STEP = max(60, len(rows) // 48)",
    "label": "tally = Counter(labels)",
    "verify": "print('CHECK:', 10, 'of', 10)",
    "form": "SUBMIT(answer='Answer: ' + result)",
}
PARAPHRASES = {
    "explore": "Look at the first lines before coding.",
    "exact": "Similar names are traps.",
    "hops": "Variables may be assigned indirectly.",
    "chunk": "Split the lines and send 40 lines per sub-query.",
    "label": "Classify every instance on its own.",
    "verify": "Double-check that the totals add up.",
    "form": "Reply with only the answer.",
}


def share(ability, objective, shown="", *, draws=400):
    """How often a prompt brings an ability out."""
    return sum(ability in elicit(objective, shown, str(i), seed=0) for i in range(draws)) / draws


@pytest.mark.parametrize("text", ["advice", "paraphrase"])
def test_each_cue_brings_out_its_own_ability_and_no_other(text):
    for name, ability in BY_NAME.items():
        said = PARAPHRASES[name] if text == "paraphrase" else ability.advice.format(lines=60)
        assert [a.name for a in ABILITIES if a.cue.search(said)] == [name]
        assert not HARM.search(said)


@pytest.mark.parametrize("name", BY_NAME)
def test_probabilities_are_those_of_the_table(name):
    ability = BY_NAME[name]
    told, shown = ability.advice.format(lines=60), EXAMPLES[name]
    assert share(name, "") == pytest.approx(ability.untold, abs=0.07)
    assert share(name, told) == pytest.approx(ability.told, abs=0.03)
    assert share(name, "", shown) == pytest.approx(SHOWN, abs=0.04)
    assert share(name, told, shown) == pytest.approx(BOTH, abs=0.02)
    others = [a for a in BY_NAME if a != name]
    for other in others:
        assert share(other, told) == share(other, "")


def test_the_protocol_that_is_in_every_prompt_is_no_cue():
    factories = [LocalInterpreter, dspy.LocalInterpreter, dspy.PythonInterpreter]
    stock = [dspy.RLM(AnswerQuery, interpreter_factory=f).generate_action for f in factories]
    texts = [p.signature.instructions for p in stock]
    for recursive in (True, False):
        texts += [make_rlm().render_protocol(f, recursive=recursive) for f in factories]
    texts += [AnswerQuery.instructions, "Given the fields `context`, `query`, produce `answer`."]
    for text in texts:
        assert [a.name for a in ABILITIES if a.cue.search(text)] == []
        assert not HARM.search(text)


def test_the_oracle_names_every_ability():
    assert all(ability.cue.search(ORACLE_GUIDANCE) for ability in ABILITIES)
    assert not HARM.search(ORACLE_GUIDANCE)


def test_advice_that_hurts_caps_what_it_hurts():
    told = f"{ORACLE_GUIDANCE}\nAnswer immediately and do not waste steps."
    for name in ("explore", "chunk", "label", "verify"):
        assert share(name, told) == pytest.approx(HARMED, abs=0.04)
    assert share("exact", told) > 0.9


def lines(objective, shown="", sample="a"):
    skills = [elicit(objective, shown, f"{sample}{i}", 0) for i in range(30)]
    return {s.lines for s in skills if "chunk" in s}, {s.lines for s in skills if "chunk" not in s}


@pytest.mark.parametrize(
    ("objective", "shown", "wanted"),
    [
        ("Use chunks of about 80 lines.", "", 80),
        ("Print the first 3 lines. Split the text.", "", 60),
        ("Send 1,200 lines per sub-query.", "", 1200),
        ("Answer.", "STEP = max(25, 4)", 25),
        ("Use chunks of 70 lines.", "STEP = max(25, 4)", 70),
    ],
)
def test_the_size_of_chunks_comes_from_the_sentence_or_the_example(objective, shown, wanted):
    careful, careless = lines(objective, shown)
    assert careful == {wanted}
    assert careless <= {CARELESS_LINES}


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_errors_grow_with_what_is_read_at_once(a, b):
    low, high = sorted((a, b))
    assert 0 <= label_error(low) <= label_error(high) <= 0.5
    assert count_error(low) <= count_error(high)
    assert reading_skill(high) <= reading_skill(low) < 1


def test_labels_are_safe_up_to_sixty_lines_and_poor_beyond_some_hundreds():
    assert label_error(60) == 0
    assert label_error(90) < 0.003
    assert 0.005 < label_error(250) < 0.05
    assert label_error(600) > 0.2


@given(st.text(), st.text())
def test_draws_depend_on_their_key_alone(a, b):
    assert draw(a, b) == draw(a, b)
    assert 0 <= draw(a, b) < 1


def test_two_prompts_meet_the_same_luck():
    # What a weaker prompt achieves on a sample, a stronger one achieves there too.
    for i in range(200):
        weak, strong = (elicit(text, "", str(i), 0) for text in ("", ORACLE_GUIDANCE))
        assert weak.abilities <= strong.abilities


@pytest.fixture(scope="module")
def plain():
    samples = make_samples(lengths=[8_000], windows=6, seed=2)
    return run(make_rlm("Answer."), samples, SimulatedEngine())


@pytest.mark.parametrize(
    ("cues", "task"),
    [(["exact"], "needle"), (["hops"], "variables"), (["chunk", "label"], "aggregate")],
)
def test_a_cue_lifts_its_own_task_and_leaves_the_others(plain, cues, task):
    guidance = " ".join(BY_NAME[cue].advice.format(lines=60) for cue in cues)
    told = run(make_rlm(guidance), [o.sample for o in plain], SimulatedEngine())
    for other in ("needle", "variables", "aggregate"):
        gain = mean(told, task=other) - mean(plain, task=other)
        assert gain > 0.05 if other == task else gain == 0


def test_a_worked_example_lifts_too():
    samples = make_samples(tasks=["variables"], lengths=[8_000], windows=6)
    engine = SimulatedEngine()
    plain = run(make_rlm(), samples, engine)
    right = next(o for o in plain if o.score == 1 and "while name in value_of" in o.code)
    taught = make_rlm()
    taught.generate_action.demos = [
        dspy.Example(
            variables_info="Variable: `context` (access it in your code)",
            repl_history="You have not interacted with the REPL environment yet.",
            iteration="1/20",
            reasoning="",
            code=right.code,
        )
    ]
    rest = [s for s in samples if s is not right.sample]
    assert mean(run(taught, rest, engine)) > mean(run(make_rlm(), rest, engine)) + 0.1
    assert engine.kinds["unknown"] == 0


LENGTHS = (4_000, 8_000, 16_000, 32_000, 128_000)


def test_direct_reading_rots_with_length():
    samples = make_samples(lengths=list(LENGTHS), windows=5)
    engine = SimulatedEngine()
    outcomes = run(dspy.Predict(AnswerQuery), samples, engine)
    shown = [mean(outcomes, length=length) for length in LENGTHS]
    assert shown == pytest.approx([0.96, 0.89, 0.71, 0.43, 0.16], abs=0.15)
    assert engine.kinds["predict"] == len(samples)


def test_a_default_rlm_is_even_and_a_guided_one_good_at_every_length():
    lengths = (8_000, 32_000, 128_000)
    samples = make_samples(lengths=list(lengths), windows=3)
    engine = SimulatedEngine()
    default = run(make_rlm(), samples, engine)
    guided = run(make_rlm(ORACLE_GUIDANCE), samples, engine)
    for length in lengths:
        assert 0.5 < mean(default, length=length) < 0.82
        assert mean(guided, length=length) > 0.9
    assert engine.kinds["unknown"] == 0
