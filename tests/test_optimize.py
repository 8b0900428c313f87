"""`fleet-optimize`: a recipe compiled for real, compared on a sealed test, resumed for nothing."""

import json
import re
import subprocess
import sys

import pytest

import fleet_rlm
from fleet_rlm.config import resolve
from fleet_rlm.errors import UsageError
from fleet_rlm.project import find_content
from fleet_rlm.runner.progress import make_progress
from fleet_rlm.search.job import prepare, run_job
from fleet_rlm.search.recipe import Recipe, load_recipe
from fleet_rlm.search.split import split, split_suite
from fleet_rlm.suites.suite import load_suite, parse_suite

SMALL = {
    "name": "small",
    "optimizer": "bootstrap",
    "suite": "quickstart",
    "train": 8,
    "validation": 6,
    "test": 12,
    "batch": 3,
    "demos": 2,
    "policy": "max-score",
    "overrides": {"lengths": [4000], "windows": 6},
}


@pytest.fixture
def plan(tmp_path):
    suite = load_suite(find_content("evals", "quickstart", tmp_path).path)
    return suite.override({"lengths": [4000, 8000], "windows": 6}).plan()


def test_no_context_is_on_both_sides_of_a_split(plan):
    found = split(plan, train=18, validation=18, test=30, seed=3)
    assert list(map(len, found)) == [18, 18, 30]
    contexts = [{sample.cluster for sample in part} for part in found]
    assert sum(map(len, contexts)) == len(set.union(*contexts))
    # A race looks at the beginning: as many contexts and tasks as it can hold.
    assert len({s.cluster for s in found.validation[:9]}) == 9
    assert {s.task for s in found.validation[:9]} == {"needle", "variables", "aggregate"}
    assert {s.task for s in found.test} == {"needle", "variables", "aggregate"}
    assert {s.length for s in found.test} == {4000, 8000}


def test_a_split_is_the_same_for_the_same_seed_only(plan):
    ids = [
        [s.id for s in split(plan, train=10, validation=10, test=10, seed=seed).test]
        for seed in (1, 1, 2)
    ]
    assert ids[0] == ids[1] != ids[2]


def test_too_few_samples_for_a_split_is_one_line(plan):
    with pytest.raises(UsageError, match="too few for 60 to train on, 6 to validate on and 60"):
        split(plan, train=60, validation=6, test=60, seed=0)


BANKS = """
[suite]
name = "banks"
[[tasks]]
name = "own"
generator = "aggregate"
lengths = [1000]
windows = 6
[tasks.params]
bank = "BANK"
labels = 3
[[tasks]]
name = "kept"
generator = "aggregate"
lengths = [1000]
windows = 3
[tasks.params]
bank_part = "train"
[[tasks]]
name = "lines"
generator = "aggregate"
lengths = [1000]
windows = 6
[[tasks]]
name = "pairs"
generator = "pairs"
lengths = [3000]
windows = 6
[tasks.params]
users = 10
[[tasks]]
name = "batch"
generator = "routing"
lengths = [4300]
windows = 6
[tasks.params]
route = "batch"
users = 6
[[tasks]]
name = "needle"
generator = "needle"
lengths = [1000]
windows = 6
"""


def own_bank(path, texts):
    rows = [f"text {n} of sort {sort},{sort * 2}" for sort in "abc" for n in range(texts)]
    path.write_text("\n".join(["text,label", *rows]))
    return parse_suite(BANKS.replace("BANK", str(path)), "banks.toml")


def test_no_line_of_a_bank_is_on_two_sides_of_a_split(tmp_path):
    suite = own_bank(tmp_path / "bank.csv", 30)
    found = split_suite(suite, train=11, validation=11, test=11, seed=1)
    ids = {sample.id for sample in suite.plan()}
    lines = []
    for part in found:
        texts = {}
        for sample in part:
            context = sample.build().context
            texts.setdefault(sample.task, set()).update(re.findall("Instance: (.+)", context))
            # Only what draws on a part of a bank has other samples than the suite's own run.
            assert (sample.id in ids) == (sample.task in ("needle", "kept"))
        assert {"own", "lines", "pairs", "batch"} <= set(texts)
        assert all(texts[task] for task in set(texts) - {"needle"})
        lines.append(set().union(*(texts[task] for task in set(texts) - {"kept"})))
    train, validation, test = lines
    assert not (train | validation) & test
    assert not train & validation


def test_a_bank_too_small_for_three_parts_is_one_line(tmp_path):
    suite = own_bank(tmp_path / "bank.csv", 12)
    with pytest.raises(UsageError, match=r"bank\.csv: .* 0 labels .* 'validation' part") as caught:
        split_suite(suite, train=8, validation=8, test=8, seed=1)
    assert caught.value.fix == "write 25 texts or more for each label"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('name = "x"\noptimiser = "bootstrap"\n', "Did you mean 'optimizer'"),
        (
            'name = "x"\noptimizer = "magic"\nsuite = "quickstart"\ntrain = 1\ntest = 2\n',
            "optimizer",
        ),
        ('name = "x"\noptimizer = "bootstrap"\n', "suite"),
        ("name = ", "not valid TOML"),
    ],
)
def test_a_bad_recipe_is_one_line(tmp_path, text, part):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"bad\.toml") as caught:
        load_recipe(path)
    assert part in str(caught.value)


def test_a_job_compiles_compares_and_resumes_for_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(**SMALL)

    def run():
        job = prepare(recipe, resolve({}, {}, tmp_path), tmp_path, tmp_path / "job")
        silent = make_progress("none", "")
        return run_job(job, {"baseline": silent, "winner": silent})

    first = run()
    assert 1 <= first.demos <= 2
    assert first.test.n == 12
    assert first.compile_usd > 0
    with pytest.warns(UserWarning, match="simulated model"):
        program = fleet_rlm.load(first.bundle)
    assert len(program.generate_action.demos) == first.demos
    assert program.extract.demos == []
    # A preview of the context stands in a demo, never the whole.
    assert all(len(str(dict(demo))) < 20_000 for demo in program.generate_action.demos)
    manifest = json.loads((first.bundle / "manifest.json").read_text())
    assert manifest["evidence"]["after"]["n"] == 12
    parts = {}
    for path in (tmp_path / "job").rglob("run.json"):
        tasks = json.loads(path.read_text())["suite"]["tasks"]
        side = path.relative_to(tmp_path / "job").parts[0]
        parts[side] = [task["params"].get("bank_part") for task in tasks]
    assert parts["train"] == [None, None, "train"]
    assert parts["trials"] == [None, None, "validation"]
    assert parts["baseline"] == [None, None, "test"]
    files = {p: p.read_bytes() for p in (tmp_path / "job").rglob("records.jsonl")}
    assert run().to_json() == first.to_json()
    assert all(path.read_bytes() == before for path, before in files.items())


def test_the_command_prints_only_its_result_on_stdout(tmp_path):
    recipe = {key: value for key, value in SMALL.items() if key != "overrides"}
    lines = [f"{key} = {json.dumps(value)}" for key, value in recipe.items()]
    lines += ["[overrides]", "lengths = [4000]", "windows = 6"]
    (tmp_path / "small.toml").write_text("\n".join(lines))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "fleet_rlm.cli.optimize",
            "run",
            "small.toml",
            "--json",
            "--no-mlflow",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"job", "bundle", "baseline", "winner", "test", "usage"} <= set(found)
    assert found["test"]["n"] == 12
    assert "simulated model" in done.stderr


def test_recipes_are_listed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fleet_rlm.cli.optimize", "list", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    rows = {row["name"]: row["optimizer"] for row in json.loads(done.stdout)}
    assert rows.pop("agent") == rows.pop("quickstart") == "joint"
    assert rows == {name: name for name in ("bootstrap", "gepa", "joint", "mipro", "settings-only")}
