"""Candidates for prompts: from successes, proposals and feedback; junk, leaks and outages apart."""

import json
from dataclasses import replace

import dspy
import pytest
from test_study import fate, make_job, paid, run

import fleet_rlm
from fleet_rlm import RLM
from fleet_rlm.errors import BudgetExhausted, UsageError
from fleet_rlm.ledger import Caps
from fleet_rlm.lm import throttle
from fleet_rlm.lm.simulated.launch import simulated_server
from fleet_rlm.program.registry import AnswerQuery
from fleet_rlm.runner.record import Record
from fleet_rlm.scoring import own
from fleet_rlm.search.feedback import explain
from fleet_rlm.search.promote import export
from fleet_rlm.search.stored import open_job
from fleet_rlm.suites.sample import Question, Sample

pytestmark = pytest.mark.filterwarnings("ignore::fleet_rlm.errors.FleetWarning")

JOINT = {
    "optimizer": "joint",
    "train": 6,
    "validation": 6,
    "test": 6,
    "batch": 3,
    "trials": 3,
    "proposals": 3,
    "reflections": 2,
    "policy": "max-score",
    "space": {},
    "overrides": {"lengths": [4000], "windows": 4},
}


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    return run(make_job(tmp_path_factory.mktemp("joint") / "job", **JOINT))


def candidates(folder):
    return json.loads((folder / "candidates.json").read_text())


def test_instructions_come_from_proposals_and_feedback_and_demos_from_successes(joint):
    found = candidates(joint.folder)
    texts = found["instructions"]["generate_action"]
    assert texts[0] == {"text": "Answer the query from the context.", "source": "baseline"}
    sources = {text["source"].partition(" ")[0] for text in texts}
    assert sources == {"baseline", "reflection", "proposal"}
    assert len({text["text"] for text in texts}) == len(texts)
    sets = found["demos"]["generate_action"]
    assert sets[0] == []
    assert all(1 <= len(demos) <= 3 for demos in sets[1:])
    shown = json.dumps(sets)
    assert "[Error]" not in shown, "no worked example shows how to fail"
    assert all(len(json.dumps(demo)) < 20_000 for demos in sets for demo in demos)
    written = [json.loads(x) for x in (joint.folder / "written.jsonl").read_text().splitlines()]
    kinds = [line["key"].split(":")[0] for line in written]
    assert kinds in (["reflect"] * n + ["propose"] * 3 for n in (1, 2)), "none is paid for twice"
    assert joint.winner["score"] >= joint.baseline["score"]


def test_the_writers_calls_count_and_a_cap_in_the_middle_changes_no_candidate(joint, tmp_path):
    # Other samples end first, three at a time: that must choose no candidate either.
    job = replace(make_job(tmp_path / "job", **JOINT), concurrency=3)
    spent = 0.0
    for usd in (0.03, 0.06):
        with pytest.raises(BudgetExhausted):
            run(replace(job, caps=Caps(usd=usd)))
        lines = (job.folder / "spending.jsonl").read_text().splitlines()
        spent = sum(json.loads(line)["usage"]["usd"] for line in lines)
        assert usd <= spent < usd + 0.03
        assert not (job.folder / "candidates.json").exists()
    assert fate(run(job)) == fate(joint)
    resumed, whole = (candidates(folder) for folder in (job.folder, joint.folder))
    # What was cut off was paid for all the same.
    assert resumed.pop("passes")[-1]["calls"] > whole.pop("passes")[-1]["calls"]
    assert resumed == {**whole, "for": resumed["for"]}
    assert max(paid(job.folder).values()) == 1


def test_a_writer_of_junk_leaves_the_programs_own_instruction(monkeypatch, tmp_path):
    monkeypatch.setattr(throttle, "backoff", lambda tried: 0.001)
    with simulated_server(faults={"refuse": 1.0}) as server:
        recipe = JOINT | {"optimizer": "mipro", "models": {"proposer": "openai/sim"}, "trials": 2}
        monkeypatch.setenv("DSPY_LM_API_BASE", server.url)
        job = make_job(tmp_path / "job", env={"DSPY_LM_API_BASE": server.url}, **recipe)
        run(job)
        assert server.stats()["faults"]["refuse"] >= 3
    found = candidates(job.folder)
    assert [t["source"] for t in found["instructions"]["generate_action"]] == ["baseline"]
    assert len(found["demos"]["generate_action"]) > 1


def test_nothing_learned_is_one_line(tmp_path):
    (tmp_path / "strict.py").write_text("def score(answer, gold, query):\n    return 0.5\n")
    metric = f"{tmp_path / 'strict.py'}:score"
    job = make_job(tmp_path / "job", **JOINT | {"optimizer": "bootstrap", "metric": metric})
    with pytest.raises(UsageError, match="one point to search: nothing was learned"):
        run(job)


def test_a_metric_that_fails_is_one_line_and_mended_the_job_goes_on(tmp_path):
    path = tmp_path / "mine.py"
    changes = {"validation": 4, "test": 4, "trials": 2, "space": {"max_iters": [6]}}
    changes |= {"metric": f"{path}:score", "overrides": {"lengths": [4000], "windows": 2}}

    def with_metric(body):
        path.write_text(f"def score(answer, gold, query):\n    {body}\n")
        own._load.cache_clear()  # a command is a process of its own
        return run(make_job(tmp_path / "job", **changes))

    for body, line in (
        ("raise KeyError('colour')", "scorer.*KeyError"),
        ("return 'good'", "scorer.*'good', not a number"),
    ):
        with pytest.raises(UsageError, match=line) as caught:
            with_metric(body)
        assert "\n" not in str(caught.value)
    assert with_metric("return float(answer in gold)").test.n == 4


class Researcher(dspy.Module):
    """A user's module with an RLM inside."""

    def __init__(self):
        super().__init__()
        self.rlm = RLM(AnswerQuery, max_iters=7)

    def forward(self, context, query):
        return self.rlm(context=context, query=query)


def test_a_program_object_compiles_with_the_settings_inside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = Researcher()
    found = fleet_rlm.optimize(
        program,
        "quickstart",
        test=4,
        validation=4,
        trials=2,
        optimizer="settings-only",
        policy="max-score",
        space={"max_iters": [3]},
        overrides={"lengths": [4000], "windows": 2},
        model="sim",
        out="job",
    )
    assert found.baseline["settings"]["max_iters"] == 7
    assert program.rlm.max_iters == 7
    assert {row["params"]["max_iters"] for row in found.front} <= {3, 7}
    # A class of the user's cannot be rebuilt from a bundle; what it learned is kept all the same.
    assert found.bundle is None
    program.load(tmp_path / "job" / "state.json")
    assert program.rlm.max_iters == found.winner["params"]["max_iters"]
    with pytest.raises(UsageError, match="has no bundle: the program is not one of this package's"):
        export(open_job("job", tmp_path), tmp_path / "out")
    with pytest.raises(UsageError, match="no setting 'max_iter'"):
        fleet_rlm.optimize(program, "quickstart", test=4, settings={"max_iter": 3}, model="sim")
    with pytest.raises(UsageError, match="polizy: Extra inputs"):
        fleet_rlm.optimize(program, "quickstart", test=4, polizy="knee", model="sim")


@pytest.mark.parametrize(
    ("answer", "steps", "words"),
    [
        ("7001", [], "Correct."),
        ("it is 7001, I think", [{"code": "context", "output": ""}], "Wrong form"),
        ("8002", [{"code": "print(context)", "output": "codes 7001, 8002"}], "lost afterwards"),
        ("8002", [{"code": "print(context)", "output": "8002"}], "Misread"),
        ("8002", [{"code": "print(1)", "output": "1"}], "Never read"),
        ("8002", [{"code": "context", "output": "[Error] x"}], "1 of 1 steps ended in an error"),
    ],
)
def test_feedback_says_where_an_answer_was_lost_and_not_what_it_is(answer, steps, words):
    question = Question(query="Which code?", gold=("7001",), answer_type="exact")
    sample = Sample(id="s", task="t", cluster="c", length=1, context="x", tokens=1,
                    question=question)  # fmt: skip
    record = Record(
        sample="s", epoch=0, task="t", cluster="c", length=1, status="scored", stop="submitted",
        score=float(answer == "7001"), answer=answer, turns=len(steps),
    )  # fmt: skip
    found = explain(record, steps, sample)
    assert words in found
    assert "7001" not in found
