"""What a sealed test allows: promotion by evidence, leaks kept out, and stored jobs read back."""

import json
import shutil
from dataclasses import asdict
from statistics import fmean

import numpy as np
import pytest
from test_study import RECIPE

import fleet_rlm
from fleet_rlm.cli.optimize import app
from fleet_rlm.errors import FleetError, UsageError
from fleet_rlm.search.leaks import find_leak, know
from fleet_rlm.search.objective import Measured, Values
from fleet_rlm.search.policy import choose
from fleet_rlm.search.promote import judge
from fleet_rlm.statistics.paired import compare
from fleet_rlm.suites.sample import Question, Sample

pytestmark = pytest.mark.filterwarnings("ignore::fleet_rlm.errors.FleetWarning")


@pytest.fixture(scope="module")
def project(tmp_path_factory, calm):
    folder = tmp_path_factory.mktemp("project")
    (folder / "optimize").mkdir()
    lines = [f"{key} = {json.dumps(value)}" for key, value in RECIPE.items() if key != "overrides"]
    text = "\n".join(line for line in lines if not line.startswith("space"))
    tables = {"space": RECIPE["space"], "overrides": RECIPE["overrides"]}
    for name, values in tables.items():
        text += f"\n[{name}]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in values.items())
    (folder / "optimize" / "small.toml").write_text(text)
    shutil.copytree(calm.folder, folder / "runs" / "jobs" / "small--sim")
    return folder


@pytest.fixture
def ask(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    monkeypatch.setenv("PYTHONHASHSEED", "0")

    def ask(*arguments):
        capsys.readouterr()
        assert not app(list(arguments), standalone_mode=False)
        return capsys.readouterr()

    return ask


def test_a_stored_job_tells_where_it_is_and_what_was_tried(ask):
    status = json.loads(ask("status", "small--sim", "--json").out)
    assert (status["stage"], status["trials"], status["wanted"]) == ("done", 7, 7)
    study = json.loads(ask("trials", "small--sim", "--json").out)
    assert [row["trial"] for row in study["trials"]] == list(range(7))
    assert {row["outcome"] for row in study["trials"]} == {"complete", "dropped"}
    shown = ask("trials", "small--sim").out
    assert "winner" in shown
    assert "simulated model" in shown
    with pytest.raises(UsageError, match="Did you mean 'small--sim'"):
        ask("status", "smal--sim")


def test_diff_says_what_each_change_bought(ask):
    found = json.loads(ask("diff", "small--sim", "--json").out)
    change = found["changes"]["sub_model"]
    assert (change["baseline"], change["trial"]) == ("sim", "sim-mini")
    assert change["usd"] < 0
    assert sum(change["n"]) == 7
    low, high = change["usd_interval"]
    assert low < change["usd"] < high
    assert "sub_model" in ask("diff", "small--sim").out
    assert "nothing differs" in ask("diff", "small--sim", "0").out
    with pytest.raises(UsageError, match="No trial 70"):
        ask("diff", "small--sim", "70")


def test_promotion_needs_evidence_or_a_reason_that_is_kept(ask, project):
    with pytest.raises(FleetError, match=r"Not promoted: difference .* not significant") as caught:
        ask("promote", "small--sim")
    assert caught.value.exit_code == 1
    with pytest.raises(UsageError, match="--alias must be a plain name"):
        ask("promote", "small--sim", "--alias", "../x")
    with pytest.raises(UsageError, match="--force needs a reason"):
        ask("promote", "small--sim", "--force", " ")
    words = ("promote", "small--sim", "--alias", "champion", "--no-mlflow")
    said = ask(*words, "--force", "a drill").out
    assert "forced: a drill" in said
    home = project / "bundles" / "small"
    (line,) = map(json.loads, (home / "promotions.jsonl").read_text().splitlines())
    assert (line["forced"], line["verdict"]["reason"]) == ("a drill", "unproven")
    assert fleet_rlm.load(home / "champion").max_iters in {4, 20}
    ask("export", "small--sim", "-o", str(project / "out"))
    assert fleet_rlm.load(project / "out").max_iters == fleet_rlm.load(home / "champion").max_iters


def test_a_rollback_swaps_champion_and_previous(ask, project):
    home = project / "bundles" / "small"
    ask("promote", "small--sim", "--no-mlflow", "--force", "a drill")
    with pytest.raises(UsageError, match=r"no earlier champion to go back to\.( Try|$)"):
        ask("rollback", "small", "--no-mlflow")
    first = (home / "champion").readlink()
    (home / "older").mkdir()
    (home / "previous").symlink_to("older")
    for champion, previous in (("older", str(first)), (str(first), "older")):
        assert champion in ask("rollback", "small", "--no-mlflow").out
        assert str((home / "champion").readlink()) == champion
        assert str((home / "previous").readlink()) == previous
    with pytest.raises(UsageError, match="Did you mean 'small'"):
        ask("rollback", "smal", "--no-mlflow")


def test_a_dry_run_starts_nothing_and_warns_of_a_cap_that_is_too_small(ask, project):
    said = ask("run", "small", "--dry-run", "--json", "--max-usd", "0.5", "--out", "elsewhere")
    plan = json.loads(said.out)
    assert not (project / "elsewhere").exists()
    assert [stage["name"] for stage in plan["stages"]] == ["first trials", "study", "sealed test"]
    assert [stage["samples"] for stage in plan["stages"]] == [8, 48, 16]
    assert plan["usd"] == pytest.approx(sum(stage["usd"] for stage in plan["stages"]))
    assert plan["fits"] < 3
    assert "room for" in said.err
    assert "warning" not in ask("run", "small", "--dry-run", "--max-usd", "1000").err


def noisy(rng, *, truth=0.6, usd=1.0, clusters=12, each=2):
    luck = rng.normal(0, 0.2, clusters).repeat(each)
    names = [f"s{number}" for number in range(clusters * each)]
    scores = rng.binomial(1, np.clip(truth + luck, 0, 1))
    return Measured(
        score=dict(zip(names, map(float, scores), strict=True)),
        usd=dict(zip(names, usd * rng.lognormal(0, 0.4, len(names)), strict=True)),
        seconds=dict.fromkeys(names, 1.0),
        failed=0,
    )


def searched(rng, candidates):
    """The result of a search among candidates: chosen on a validation, tested on another draw."""
    tries = {number: noisy(rng, **about) for number, about in enumerate(candidates)}
    values = {
        number: Values(
            score=fmean(found.score.values()), usd=fmean(found.usd.values()), latency_s=1.0
        )
        for number, found in tries.items()
    }
    trial = choose(values, "cheapest-within=0.02")
    before, after = (noisy(rng, **candidates[n], each=4) for n in (0, trial))
    cluster_of = {name: f"c{int(name[1:]) // 4}" for name in before.score}
    whole = {"coverage": 1.0}
    return {
        "baseline": whole,
        "winner": whole | {"trial": trial},
        "test": asdict(compare(before.score, after.score, cluster_of)),
        "cost": asdict(compare(before.usd, after.usd, cluster_of)),
    }


def test_a_search_among_equals_is_rarely_promoted_and_a_better_one_mostly_is():
    rng = np.random.default_rng(5)
    equals = [{}] * 8
    promoted = sum(judge(searched(rng, equals)).reason != "unproven" for _ in range(200))
    assert promoted <= 10
    better = [{"truth": 0.3}, *[{"truth": 0.9}] * 3]
    reasons = [judge(searched(rng, better)).reason for _ in range(20)]
    assert reasons.count("better") >= 18


@pytest.mark.parametrize(
    ("change", "reason", "text"),
    [
        ({}, "better", "p = 0.01"),
        ({"trial": 0}, "unproven", "the winner is the baseline"),
        ({"coverage": 0.5}, "unproven", "only 50% of the test"),
        ({"p": 0.2}, "unproven", "not significant, and it may lose 0.010"),
        ({"p": 0.2, "dollars": (-0.2, -0.1)}, "cheaper", "at least -0.010"),
        ({"p": 0.2, "dollars": (-0.2, 0.1)}, "unproven", "not significant"),
        # All of 20 contexts alike: one in seven others may still differ.
        ({"p": 1.0, "degenerate": True, "dollars": (-2, -1)}, "unproven", "may lose 0.1"),
    ],
)
def test_what_a_test_carries(change, reason, text):
    coverage = change.get("coverage", 1.0)
    test = {"difference": 0.03, "p": change.get("p", 0.01), "n": 40, "clusters": 20}
    test |= {"ci": (-0.01, 0.07), "degenerate": change.get("degenerate", False)}
    found = judge(
        {
            "baseline": {"coverage": 1.0},
            "winner": {"coverage": coverage, "trial": change.get("trial", 3)},
            "test": test,
            "cost": {"difference": -0.15, "ci": change.get("dollars", (0.1, 0.2))},
        }
    )
    assert found.reason == reason
    assert text in found.text


def test_what_a_prompt_holds_of_validation_or_test_is_a_leak():
    def sample(name, context, gold):
        question = Question(query=f"What is {name}?", gold=(gold,), answer_type="exact")
        return Sample(id=name, task="t", cluster=name, length=1, context=context, tokens=1,
                      question=question)  # fmt: skip

    shared = "a line of filler that stands in every context there is, word for word"
    secret = "the quarterly figure for the northern branch was four hundred and two"
    known = know(
        [sample("a", f"{shared}\nthe code is 1111", "1111")],
        [sample("b", f"{shared}\n{secret}", "x-402")],
        ["Answer the query from the context."],
    )
    assert find_leak([f"look for\n{shared}"], known, check_gold=True) is None
    assert find_leak(["the code is 1111"], known, check_gold=True) is None
    assert "line of a validation" in find_leak([f"like\n  {secret}\n"], known, check_gold=False)
    assert "answer of a" in find_leak(["It is usually x-402."], known, check_gold=True)
    assert find_leak(["SUBMIT('x-402')"], known, check_gold=False) is None
