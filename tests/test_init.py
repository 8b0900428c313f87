"""`fleet-eval init`: a project around questions, whole or not at all."""

import json
import tomllib
from pathlib import Path

import pytest
import yaml

ROWS = [
    {"doc": f"Line {n}. The lift stops at {n}.", "query": "Where does it stop?", "gold": str(n)}
    for n in range(6)
]


@pytest.fixture
def questions(project, monkeypatch):
    monkeypatch.setenv("FLEET_DATA_DIR", str(project / "cache"))
    path = Path("our questions.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def written(project):
    found = {str(p.relative_to(project)) for p in project.rglob("*") if p.is_file()}
    return {place for place in found if not place.startswith("cache/")}


def test_a_project_is_written_that_runs(questions, project, command):
    done = command("init", questions, "--context", "doc")
    assert done.returncode == 0, done.stderr
    assert written(project) == {
        "our questions.jsonl",
        "fleet.toml",
        ".gitignore",
        ".github/workflows/gate.yml",
        "datasets/our-questions.toml",
        "datasets/our-questions.lock",
        "evals/our-questions.toml",
        "optimize/our-questions.toml",
    }
    assert "6 questions on 6 contexts" in done.stdout
    assert "compare runs/direct runs/rlm" in done.stdout
    workflow = yaml.safe_load(Path(".github/workflows/gate.yml").read_text())
    steps = "\n".join(step.get("run", "") for step in workflow["jobs"]["gate"]["steps"])
    assert "fleet-eval run our-questions" in steps
    assert "fleet-eval gate" in steps
    ran = command("run", "our-questions", "--program", "direct", "--no-mlflow", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["coverage"] == 1
    recipe = tomllib.loads(Path("optimize/our-questions.toml").read_text())
    assert {part: recipe[part] for part in ("train", "validation", "test")} == {
        "train": 1,
        "validation": 2,
        "test": 3,
    }
    again = command("init", questions, "--context", "doc")
    assert (again.returncode, again.stderr) == (
        2,
        "error: evals/our-questions.toml exists already. Try: fleet-eval init FILE --name OTHER\n",
    )
    second = command("init", questions, "--context", "doc", "--name", "other")
    assert second.returncode == 0, second.stderr
    assert Path("evals/other.toml").exists()
    assert "run our-questions" in Path(".github/workflows/gate.yml").read_text(), "as it was"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing.jsonl"], "No file 'nothing.jsonl'"),
        (["our questions.jsonl", "--split", "test"], "are for a Hugging Face dataset"),
        (["our questions.jsonl"], "no column that looks like the context; it has doc, query, gold"),
        (["our questions.jsonl", "--context", "dock"], "no column 'dock'"),
        (["our questions.jsonl", "--context", "doc", "--answer", "doc"], "gold column"),
        (["our questions.jsonl", "--name", "§"], "makes no name"),
        (["notes.txt"], "does not end in"),
        (["broken.json", "--context", "doc"], "row"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_writes_nothing(
    questions, project, command, words, says
):
    Path("notes.txt").write_text("nothing")
    Path("broken.json").write_text(json.dumps(ROWS[0] | {"query": ""}) + "\n")
    before = written(project)
    done = command("init", *words)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert says in done.stderr
    assert written(project) == before


def test_few_contexts_give_no_recipe_and_say_so(questions, project, command):
    questions.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:5]))
    done = command("init", questions, "--context", "doc")
    assert done.returncode == 0, done.stderr
    assert "no recipe: a compilation needs at least 6 contexts" in done.stdout
    assert not list(project.glob("optimize/*"))
