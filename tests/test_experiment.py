"""`fleet-eval experiment`: all cells under one budget, resumed, rendered from records alone."""

import json

import pytest

from fleet_rlm.errors import UsageError
from fleet_rlm.runner.experiment import cells, load_experiment

FILE = """\
question = "Which?"
baseline = "direct"
seeds = [0, 7]
max_usd = 1.0

[[suites]]
suite = "quickstart"
overrides = { lengths = [4000], windows = 1 }

[[arms]]
name = "one turn"
program = "rlm"
settings = { max_iters = 1 }
guidance = "Be brief."

[[arms]]
name = "direct"
program = "direct"

[[references]]
arm = "direct"
source = "A paper"
scores = { needle = 0.25 }
"""


def write(project, text=FILE):
    folder = project / "experiments" / "which"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.toml").write_text(text)
    return folder


def test_an_experiment_runs_resumes_and_is_rendered_from_its_records(project, command):
    folder = write(project)
    words = ("experiment", "run", "which", "--no-mlflow", "--display", "none")
    stopped = command(*words, "--max-usd", "0.03")
    assert stopped.returncode == 3
    runs = project / "runs" / "experiments" / "which"
    before = {p: p.read_bytes() for p in runs.rglob("records.jsonl")}
    assert before
    spent = sum(
        role["usd"]
        for data in before.values()
        for line in data.splitlines()
        for role in json.loads(line)["usage"].values()
    )
    assert 0 < spent < 0.05
    missing = command("experiment", "report", "which")
    assert missing.returncode == 2
    assert "has not been made. Try: fleet-eval experiment run which" in missing.stderr

    done = command(*words)
    assert done.returncode == 0, done.stderr
    for path, data in before.items():
        assert path.read_bytes().startswith(data)
    page = (folder / "results.md").read_text()
    assert done.stdout.strip() == page.strip()
    for part in (
        "simulated model: these",
        "What the RLMs did",
        "### one turn less direct",
        "A paper",
        "0.250 / ",
    ):
        assert part in page
    assert page.count("| needle | ") >= 2
    plot = (folder / "quickstart-score-by-cost.svg").read_text()
    assert "](quickstart-score-by-cost.svg)" in page
    assert "(simulated model)" in plot
    locked = json.loads((folder / "lock.json").read_text())
    assert set(locked) == {p.parent.name for p in runs.rglob("records.jsonl")}
    arm = locked["quickstart-seed7--one-turn"]["arm"]
    assert (arm["settings"]["max_iters"], arm["guidance"]) == (1, "Be brief.")
    assert len({run["suite"]["digest"] for run in locked.values()}) == 2
    assert str(project) not in (folder / "lock.json").read_text()

    again = command("experiment", "report", "which", "--out", "elsewhere")
    assert again.returncode == 0
    assert (project / "elsewhere" / "results.md").read_text() == page


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ('baseline = "direct"', 'baseline = "drect"', "no arm 'drect'. Did you mean 'direct'"),
        ('name = "one turn"', 'name = "direct"', "two arms are named 'direct'"),
        ("max_usd = 1.0", "max_usd = 0", "max_usd: Input should be greater than 0"),
        ("guidance =", "guidence =", "Did you mean 'guidance'"),
        ('question = "Which?"', "", "question: Field required"),
        ("settings = {", 'recipe = "joint"\nsettings = {', "has a recipe, which decides"),
        (
            "seeds = [0, 7]\nmax_usd = 1.0",
            'max_usd = 1.0\n[[arms]]\nname = "compiled"\nrecipe = "joint"',
            "needs seeds",
        ),
    ],
)
def test_a_malformed_file_is_one_line(project, was, now, said):
    path = write(project, FILE.replace(was, now)) / "experiment.toml"
    with pytest.raises(UsageError, match=said.replace("?", r"\?")) as found:
        load_experiment(path)
    assert "\n" not in str(found.value)


def test_every_arm_runs_on_the_samples_of_a_suite_before_the_next(project):
    found = load_experiment(write(project) / "experiment.toml")
    names = [cell.folder for cell in cells(found)]
    assert names == [
        "quickstart-seed0--direct",
        "quickstart-seed0--one-turn",
        "quickstart-seed7--direct",
        "quickstart-seed7--one-turn",
    ]


def test_a_dry_run_takes_stand_ins_and_an_estimate_says_what_is_missing(project, command):
    text = FILE.replace('suite = "quickstart"', 'suite = "rlm-paper"', 1)
    text = text.replace("overrides = { lengths = [4000], windows = 1 }", "")
    text = text.replace("seeds = [0, 7]", "seeds = [3]").replace(
        "[[references]]",
        '[[stand_ins]]\nsuite = "needle"\noverrides = { lengths = [4000], windows = 1 }\n\n'
        "[[references]]",
    )
    text += "usd = { needle = 0.5 }\nquestions = { needle = 20 }\n"
    folder = write(project, text)
    missing = command("experiment", "estimate", "which", "--json")
    found = json.loads(missing.stdout)
    assert found["published_usd"] == {"direct: A paper": 10.0}
    assert all("never fetched" in run["problem"] for run in found["runs"])
    shown = command("experiment", "estimate", "which", "-m", "sim").stdout
    assert "needle-seed3--one-turn" in shown
    assert "2 of 2 runs" in shown
    done = command("experiment", "run", "which", "-m", "sim", "--no-mlflow", "--display", "none")
    assert done.returncode == 0, done.stderr
    page = (folder.parent / "which--sim" / "results.md").read_text()
    assert "fleet-eval experiment run which --model sim" in page
    assert "A paper" not in page
    assert "nothing on this page speaks of rlm-paper" in page
    assert not (folder / "results.md").exists()


RECIPE = """\
name = "thrift"
optimizer = "settings-only"
suite = "needle"
validation = 2
test = 2
trials = 2

[space]
max_iters = [20, 2]

[overrides]
lengths = [4000]
windows = 2
"""

COMPILED = """\
question = "Is it thrifty?"
baseline = "direct"
seeds = [5]
max_usd = 1.0

[[suites]]
suite = "needle"
overrides = { lengths = [4000], windows = 2 }
limit = 2

[[arms]]
name = "direct"
program = "direct"

[[arms]]
name = "thrifty"
recipe = "thrift.toml"
"""


@pytest.mark.filterwarnings("ignore:.*compiled on a simulated")
def test_an_arm_is_compiled_on_other_samples_under_the_same_budget(project, command):
    folder = write(project, COMPILED)
    (folder / "thrift.toml").write_text(RECIPE)
    words = ("experiment", "run", "which", "--no-mlflow", "--display", "none")
    done = command(*words)
    assert done.returncode == 0, done.stderr
    runs = project / "runs" / "experiments" / "which"
    job = json.loads((runs / "jobs" / "thrifty-seed5" / "result.json").read_text())
    locked = json.loads((folder / "lock.json").read_text())["needle-seed5--thrifty"]
    made = locked["compiled"]
    assert (made["seed"], made["train"], made["trials"]) == (1005, 0, 2)
    assert made["usd"] == job["usage"]["usd"] > 0
    assert locked["arm"]["program"] == "runs/experiments/which/jobs/thrifty-seed5/bundle"
    page = (folder / "results.md").read_text()
    assert "### thrifty less direct" in page
    assert "| needle-seed5--thrifty | thrift | settings-only | 1005 | 0 | 2 | 2 | " in page

    # What the search has spent counts: nothing is left for one more seed.
    (folder / "experiment.toml").write_text(COMPILED.replace("[5]", "[5, 6]"))
    poor = command(*words, "--max-usd", str(made["usd"]))
    assert poor.returncode == 3
    assert "The experiment has spent" in poor.stderr


def test_an_arm_is_not_held_against_what_it_learns_from(project, command):
    # Texts of one's own are the same for every seed.
    rows = [
        {"text": f"Word {n}: {n * 37}.", "ask": "Which?", "want": str(n * 37)} for n in range(6)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for where, text in {
        "data/mine.jsonl": lines,
        "datasets/mine.toml": '[dataset]\nname = "mine"\nlicence = "ours"\n[source]\n'
        'path = "../data/mine.jsonl"\n[columns]\ncontext = "text"\nquestion = "ask"\n'
        '[gold]\nanswer = "want"\n',
        "evals/mine.toml": '[suite]\nname = "mine"\n[[tasks]]\nname = "word"\ndataset = "mine"\n'
        'rule = "exact"\n',
    }.items():
        (project / where).parent.mkdir(exist_ok=True)
        (project / where).write_text(text)
    mine = 'suite = "mine"\n'
    folder = write(
        project,
        COMPILED.replace('suite = "needle"\noverrides = { lengths = [4000], windows = 2 }\n', mine),
    )
    recipe = RECIPE.partition("[overrides]")[0].replace('suite = "needle"\n', mine)
    (folder / "thrift.toml").write_text(recipe)
    words = ("experiment", "run", "which", "--no-mlflow", "--display", "none")
    refused = command(*words)
    assert refused.returncode == 2
    assert "would be held against" in refused.stderr
    # A part of the bank alone makes no other contexts of the same draw.
    write(project, COMPILED.replace('"needle"', '"aggregate"'))
    same = RECIPE.replace('"needle"', '"aggregate"').replace("windows", "seed = 5\nwindows")
    (folder / "thrift.toml").write_text(same)
    refused = command(*words)
    assert refused.returncode == 2
    assert "would be held against 1 contexts" in refused.stderr
    assert not list(project.rglob("records.jsonl"))
