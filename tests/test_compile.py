"""Every optimizer of DSPy that we use compiles the RLM and a user's module around it."""

import gc
import tracemalloc
import warnings

import dspy
import pytest
from scripted import action, scripted_lm

from fleet_rlm import RLM, LocalInterpreter
from fleet_rlm.lm.connect import connect, specify
from fleet_rlm.project import find_content
from fleet_rlm.runner.attempt import score_answer
from fleet_rlm.suites.suite import load_suite

warnings.filterwarnings("ignore", category=UserWarning)


OPTIMIZERS = ["bootstrap", "mipro", "gepa", "better-together"]


class Researcher(dspy.Module):
    """A user's module with an RLM inside."""

    def __init__(self):
        super().__init__()
        self.rlm = make_rlm()

    def forward(self, context, query):
        return self.rlm(context=context, query=query)


def make_rlm():
    return RLM("context, query -> answer", max_iters=8, interpreter_factory=LocalInterpreter)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    suite = load_suite(find_content("evals", "quickstart", tmp_path_factory.mktemp("p")).path)
    return suite.override({"lengths": [3000], "windows": 2}).plan()


@pytest.fixture(scope="module")
def data(samples):
    def example(planned):
        built = planned.build()
        made = dspy.Example(context=built.context, query=built.query, sample=planned.id)
        return made.with_inputs("context", "query")

    return [example(planned) for planned in samples]


@pytest.fixture(scope="module")
def metric(samples):
    planned = {sample.id: sample for sample in samples}

    def score(example, prediction, trace=None, *_):
        asked, said = planned[example.sample], str(prediction.get("answer") or "")
        return score_answer(asked, asked.build(), said)["score"]

    return score


@pytest.fixture
def lm():
    return connect(specify("sim", env={}), "root")


def compile_with(name, metric, program, data):
    if name == "bootstrap":
        optimizer = dspy.BootstrapFewShot(
            metric=metric, metric_threshold=0.9, max_bootstrapped_demos=2, max_labeled_demos=0
        )
        return optimizer.compile(program, trainset=data)
    if name == "mipro":
        optimizer = dspy.MIPROv2(
            metric=metric,
            auto=None,
            num_candidates=2,
            max_bootstrapped_demos=1,
            max_labeled_demos=0,
            num_threads=4,
            verbose=False,
        )
        return optimizer.compile(
            program,
            trainset=data[:6],
            valset=data[6:],
            num_trials=2,
            minibatch=False,
            program_aware_proposer=False,
            data_aware_proposer=False,
        )
    if name == "gepa":
        optimizer = dspy.GEPA(
            metric=lambda *given: dspy.Prediction(score=metric(*given), feedback="verify; form"),
            reflection_lm=dspy.settings.lm,
            max_metric_calls=24,
            num_threads=4,
            seed=0,
        )
        return optimizer.compile(program, trainset=data[:6], valset=data[6:])
    demos = dspy.BootstrapFewShot(metric=metric, max_bootstrapped_demos=1, max_labeled_demos=0)
    chain = dspy.BetterTogether(metric=metric, demos=demos)
    program.set_lm(dspy.settings.lm)
    return chain.compile(program, trainset=data[:6], valset=data[6:], strategy="demos")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_rlm_compiles_and_keeps_settings_and_protocol(optimizer, metric, data, lm, tmp_path):
    rlm = make_rlm()
    rlm.max_llm_calls = 37
    with dspy.context(lm=lm):
        compiled = compile_with(optimizer, metric, rlm, data)
        assert (compiled.max_iters, compiled.max_llm_calls) == (8, 37)
        protocol = compiled.action_signature(LocalInterpreter, recursive=True).instructions
        assert "SUBMIT(answer)" in protocol
        assert "max 37 sub-LLM calls" in protocol
        assert compiled(**data[0].inputs()).stop == "submitted"
        compiled.set_lm(None)  # the application's, not the program's: stock load refuses it
        compiled.save(tmp_path / "state.json")
        again = make_rlm()
        again.load(tmp_path / "state.json")
    assert again.max_llm_calls == 37
    assert len(again.generate_action.demos) == len(compiled.generate_action.demos)
    if optimizer == "bootstrap":
        assert compiled.generate_action.demos
    if optimizer == "better-together":  # it returns the best candidate, which may be the first
        tried = [candidate["program"] for candidate in compiled.candidate_programs]
        assert any(program.generate_action.demos for program in tried)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_module_around_an_rlm_shows_and_saves_its_parts(optimizer, metric, data, lm, tmp_path):
    program = Researcher()
    names = [name for name, _ in program.named_predictors()]
    assert names == ["rlm.generate_action", "rlm.extract"]
    with dspy.context(lm=lm):
        compiled = compile_with(optimizer, metric, program, data)
    assert [name for name, _ in compiled.named_predictors()] == names
    assert "rlm.recursion" in [name for name, _ in compiled.named_parameters()]
    compiled.set_lm(None)
    compiled.save(tmp_path / "state.json")
    again = Researcher()
    again.load(tmp_path / "state.json")
    learned, loaded = compiled.rlm.generate_action, again.rlm.generate_action
    assert loaded.signature.instructions == learned.signature.instructions
    assert len(loaded.demos) == len(learned.demos)
    if optimizer == "bootstrap":
        assert learned.demos


def test_copies_share_models_and_sandboxes():
    lm = scripted_lm(lambda *_: action("SUBMIT('x')"))
    rlm = make_rlm()
    rlm.set_lm(lm)
    copy = rlm.deepcopy()
    assert copy.generate_action.lm is lm
    assert copy._interpreter_factory is rlm._interpreter_factory


def test_memory_stays_flat_over_many_large_contexts():
    lm = scripted_lm(lambda *_: action("print(len(context))\nSUBMIT(context[:2])"))
    rlm = make_rlm()

    def run(count):
        for number in range(count):
            with dspy.context(lm=lm, trace=[]):
                rlm(context=f"{number:04d}" * 250_000, query="q")
        lm.engine.prompts.clear()
        gc.collect()

    run(20)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    run(200)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 5_000_000
