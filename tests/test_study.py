"""The joint study: races that are fair, caps that hold, kills and outages that change nothing."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fleet_rlm.config import resolve
from fleet_rlm.errors import BudgetExhausted, Paused, UsageError
from fleet_rlm.ledger import Caps
from fleet_rlm.lm import throttle
from fleet_rlm.lm.simulated.launch import simulated_server
from fleet_rlm.runner.progress import make_progress
from fleet_rlm.runner.record import Record
from fleet_rlm.runner.store import repair_and_read
from fleet_rlm.search.job import prepare, run_job
from fleet_rlm.search.objective import Measured, Values, estimate, measure, violations
from fleet_rlm.search.policy import choose, front, selection_noise
from fleet_rlm.search.race import survivors
from fleet_rlm.search.recipe import make_recipe
from fleet_rlm.search.space import Space
from fleet_rlm.search.surrogate import Seen, propose

RECIPE = {
    "name": "small",
    "optimizer": "settings-only",
    "suite": "quickstart",
    "seed": 8,
    "validation": 8,
    "test": 8,
    "batch": 4,
    "trials": 7,
    "policy": "cheapest-within=0.05",
    "space": {"max_iters": [20, 4], "max_llm_calls": [50, 2], "sub_model": ["sim-mini"]},
    "overrides": {"lengths": [4000], "windows": 4},
}
RUN = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_study import compile_job
print(json.dumps(compile_job(Path(sys.argv[2])).to_json()))
"""


def make_job(folder, *, env=None, flags=None, **changes):
    recipe = make_recipe(RECIPE | changes, "recipe")
    resolved = resolve(recipe.flags(flags or {}), env or {}, folder.parent)
    return replace(prepare(recipe, resolved, folder.parent, folder), patience_s=())


def compile_job(folder, **changes):
    return run(make_job(folder, **changes))


def run(job):
    silent = make_progress("none", "", io.StringIO())
    return run_job(job, {"baseline": silent, "winner": silent})


def fate(result):
    """All of a result that is a function of recipe and model."""
    found = result.to_json()
    study = found["study"] | {"front": found["front"], "test": found["test"]}
    return study | {"winner": found["winner"]["params"], "score": found["winner"]["score"]}


def history(folder):
    rows = json.loads((folder / "trials.json").read_text())["history"]
    return [(row["trials"], row["best"]) for row in rows]


def paid(folder):
    return Counter(
        (path.parent, record.key)
        for path in folder.rglob("records.jsonl")
        for record in repair_and_read(path)
    )


def test_a_study_finds_what_costs_less_and_scores_alike(calm):
    found = calm.to_json()
    assert found["winner"]["params"]["sub_model"] == "sim-mini"
    before, after = (found[side]["usage"]["usd"] for side in ("baseline", "winner"))
    assert after < 0.95 * before
    assert found["study"]["trials"] == 7
    assert 2 <= found["study"]["complete"] < 7, "a race drops some before the whole validation"
    assert {"trial", "score", "usd", "latency_s", "params"} == set(found["front"][0])
    assert set(found["study"]["importances"]) == set(RECIPE["space"])
    assert max(paid(calm.folder).values()) == 1
    booked = sum(
        json.loads(p.read_text())["usage"]["usd"] for p in calm.folder.rglob("summary.json")
    )
    assert _spent(calm.folder) == pytest.approx(booked, rel=1e-6)


def test_the_sealed_test_is_named_by_count_and_digest(calm):
    seal = json.loads((calm.folder / "sealed.json").read_text())
    lines = (calm.folder / "baseline" / "records.jsonl").read_text().splitlines()
    ids = sorted({json.loads(line)["sample"] for line in lines})
    assert seal["opened"]
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()
    assert seal["test"] == {"samples": len(ids), "sha256": digest}


def test_kills_change_nothing_and_nothing_finished_is_paid_twice(calm, tmp_path):
    folder = tmp_path / "job"
    command = [sys.executable, "-c", RUN, str(Path(__file__).parent), str(folder)]
    for calls in (60,):
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, start_new_session=True
        ) as process:
            _wait_for(folder / "spending.jsonl", calls, process)
            os.killpg(process.pid, signal.SIGKILL)
        assert not (folder / "sealed.json").exists()
    resumed = compile_job(folder)
    assert fate(resumed) == fate(calm)
    assert history(folder) == history(calm.folder)
    assert max(paid(folder).values()) == 1


def _wait_for(path, lines, process):
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.005)
    raise AssertionError("the job ended before it could be killed")


def test_an_outage_pauses_the_study_and_scores_nothing_zero(calm, monkeypatch, tmp_path):
    monkeypatch.setattr(throttle, "backoff", lambda tried: 0.001)
    with simulated_server(faults={"500": 1.0}) as server:
        env, flags = {"DSPY_LM_API_BASE": server.url}, {"model": "openai/sim"}
        job = make_job(tmp_path / "job", env=env, flags=flags)
        with pytest.raises(Paused, match=r"The job pauses: .*provider") as caught:
            run(job)
        assert caught.value.exit_code == 4
        records = [r for p in job.folder.rglob("records.jsonl") for r in repair_and_read(p)]
        assert {record.score for record in records} == {None}
        server.configure(faults={})
        # The same model by another name: once it is back, the study goes as without an outage.
        assert json.loads(json.dumps(fate(run(job))).replace("openai/sim", "sim")) == json.loads(
            json.dumps(fate(calm))
        )


def test_caps_are_hard_over_sessions_and_leave_room_for_the_test(tmp_path):
    job = make_job(tmp_path / "job")
    with pytest.raises(BudgetExhausted, match="--max-usd"):
        run(replace(job, caps=Caps(usd=0.01)))
    spent = _spent(job.folder)
    assert 0.01 <= spent < 0.03, "no more than the calls in flight go over it"
    with pytest.raises(BudgetExhausted):
        run(replace(job, caps=Caps(usd=0.01)))
    assert _spent(job.folder) == spent
    found = run(replace(job, caps=Caps(usd=0.43))).to_json()
    assert "budget of the study is used up" in found["study"]["ended"]
    assert found["study"]["trials"] < 8
    assert found["test"]["n"] == 8
    assert _spent(job.folder) <= 0.43


def _spent(folder):
    lines = (folder / "spending.jsonl").read_text().splitlines()
    return sum(json.loads(line)["usage"]["usd"] for line in lines)


def test_a_folder_keeps_to_its_job_and_bad_spaces_are_one_line(tmp_path, calm):
    with pytest.raises(UsageError, match="holds another job: recipe and suite differ"):
        compile_job(calm.folder, seed=3)
    for changes, line in (
        ({"space": {}}, "one point to search: its \\[space\\] has no value"),
        ({"space": {"max_iter": [3]}}, "Did you mean 'max_iters'"),
        ({"space": {"max_iters": [0]}}, "must be a whole number from 1"),
        ({"space": {"max_iters": []}}, "'max_iters' of \\[space\\] is empty"),
        ({"space": {"sub_model": ["nomodel"]}}, "Unknown model 'nomodel'"),
        ({"policy": "best"}, "policy: .*max-score, knee or cheapest-within"),
        ({"optimizer": "bootstrap", "train": 0}, "train = 0 leaves 'bootstrap' nothing"),
    ):
        with pytest.raises(UsageError, match=line):
            compile_job(tmp_path / "bad", **changes)


def measured(scores, usd=1.0):
    names = [f"s{number}" for number in range(len(scores))]
    return Measured(
        score=dict(zip(names, scores, strict=True)),
        usd=dict.fromkeys(names, usd),
        seconds=dict.fromkeys(names, 1.0),
        failed=0,
    )


def test_a_race_drops_what_is_worse_for_sure_and_keeps_half():
    cluster_of = {f"s{number}": f"c{number}" for number in range(8)}
    leader = measured([1, 1, 1, 1, 0, 1, 1, 1])
    running = {
        1: measured([0, 0, 0, 0, 0, 0, 0, 1]),
        2: measured([1, 1, 1, 1, 0, 1, 1, 0]),
        3: measured([1, 1, 1, 1, 0, 1, 1, 0], usd=0.5),
        4: measured([1, 1, 1, 1, 1, 1, 1, 1], usd=2.0),
    }
    assert set(survivors(running, leader, cluster_of, tolerance=0.0)) == {3, 4}
    tied = {number: measured([1] * 8, usd=number) for number in range(1, 5)}
    assert len(survivors(tied, leader, cluster_of, tolerance=0.0)) == 4, "price alone drops nobody"
    worst = {1: running[1]}
    assert survivors(worst, leader, cluster_of, tolerance=0.0) == []
    assert survivors(worst, leader, cluster_of, tolerance=1.0) == [1]


def test_a_dearer_trial_that_can_gain_nothing_is_dropped():
    cluster_of = {f"s{number}": f"c{number}" for number in range(8)}
    full, missing = measured([1] * 8), measured([1] * 7 + [0])
    dear, cheap = ({1: measured([1] * 4, usd=usd)} for usd in (1.5, 0.5))
    assert survivors(dear, full, cluster_of, tolerance=0.0) == []
    assert survivors(dear, missing, cluster_of, tolerance=0.0) == [1]
    assert survivors(cheap, full, cluster_of, tolerance=0.0) == [1]


def test_proposals_settle_on_what_has_shown_to_be_worth_most():
    choices = {"text": tuple(range(6)), "turns": (20, 8), "model": ("big", "mini")}
    space = Space(choices)
    rng = np.random.default_rng(1)
    points = [space.baseline] + [
        {name: options[rng.integers(len(options))] for name, options in choices.items()}
        for _ in range(30)
    ]
    seen = [
        Seen(
            params=point,
            samples=48,
            score=0.3 * (point["text"] == 4) - 0.1 * (point["turns"] == 8),
            usd=-2.0 * (point["model"] == "mini"),
            latency=0.0,
        )
        for point in points
    ]
    found = [propose(space, seen, rate, seed) for rate in (0.02, 0.05) for seed in range(20)]
    assert sum(point == {"text": 4, "turns": 20, "model": "mini"} for point in found) > 30
    hinted = [Seen(params={"text": 2}, samples=24, score=0.4)]
    first = [propose(space, hinted, 0.0, seed)["text"] for seed in range(40)]
    assert first.count(2) > 12 > len(set(first)) > 1, "a hint is followed, not obeyed"


def test_a_trial_that_is_as_good_is_rarely_dropped_for_luck():
    rng = np.random.default_rng(0)
    cluster_of = {f"s{number}": f"c{number}" for number in range(12)}
    kept = sum(
        bool(
            survivors(
                {1: measured(list(rng.binomial(1, 0.6, 12)))},
                measured(list(rng.binomial(1, 0.6, 12))),
                cluster_of,
                tolerance=0.0,
            )
        )
        for _ in range(400)
    )
    assert kept >= 340


def test_estimates_lean_on_the_baseline_where_a_trial_ran_less():
    baseline = measured([1, 0, 1, 0], usd=2.0)
    half = measured([1, 1], usd=1.0)
    found = estimate(half, baseline)
    assert (found.score, found.usd, found.latency_s) == (1.0, 1.0, 1.0)


def test_what_keeps_a_trial_from_winning():
    def broken(found, score, usd, max_usd=None):
        values = Values(score=score, usd=usd, latency_s=1.0)
        limits = violations(found, values, Values(score=0.8, usd=1.0, latency_s=1.0), max_usd)
        return {name for name, value in limits.items() if value > 0}

    fine = measured([1] * 20)
    assert broken(fine, 0.75, 9.0) == set()
    assert broken(fine, 0.65, 0.1) == {"score_floor"}
    assert broken(fine, 0.9, 1.5, max_usd=1.2) == {"price"}
    assert broken(replace(fine, failed=2), 0.9, 1.0) == {"failed_share"}


def test_a_judge_is_none_of_the_others_and_its_price_is_not_the_programs(tmp_path):
    for role in ("root", "sub", "proposer"):
        with pytest.raises(UsageError, match="models favour their own answers"):
            make_job(tmp_path / "job", models={role: "sim-mini", "judge": "sim-mini"})
    record = Record(
        sample="s", epoch=0, task="t", cluster="c", length=1, status="scored", stop="submitted",
        score=1.0, usage={"root": {"usd": 0.5}, "judge": {"usd": 2.0}},
    )  # fmt: skip
    found = measure([record], ["s"], workers=1, is_simulated=True)
    assert found.usd == {"s": 0.5}


def test_policies_choose_from_the_front():
    def at(score, usd, latency_s=1.0):
        return Values(score=score, usd=usd, latency_s=latency_s)

    values = {0: at(0.70, 1.0), 1: at(0.90, 2.0), 2: at(0.89, 0.9), 3: at(0.3, 0.1), 4: at(0.2, 3)}
    assert front(values) == [1, 2, 3]
    assert choose(values, "max-score") == 1
    assert choose(values, "cheapest-within=0.02") == 2
    assert choose(values, "knee") == 2
    assert choose({0: at(0.5, 1.0)}, "knee") == 0


def test_selection_noise_is_the_luck_of_picking_the_best_of_many_equals():
    rng = np.random.default_rng(1)
    cluster_of = {f"s{number}": f"c{number}" for number in range(40)}
    equals = {n: measured(list(rng.binomial(1, 0.5, 40))) for n in range(8)}
    noise = selection_noise(equals, cluster_of, "max-score", seed=0)
    assert 0.02 < noise.optimism < 0.2
    sure = {0: measured([0] * 40), 1: measured([1] * 40)}
    assert selection_noise(sure, cluster_of, "max-score", seed=0) == (0.0, 1.0)
