"""A sealed benchmark run from end to end: nothing that is written holds its texts."""

from __future__ import annotations

import gzip
import json

import pytest

import fleet_rlm
from fleet_rlm.cli.suites import print_suite
from fleet_rlm.errors import UsageError
from fleet_rlm.suites.seal import withheld
from tests import tiny_datasets as tiny
from tests.openai_server import openai_server
from tests.test_datasets import lay_browsecomp, project  # noqa: F401 - a fixture
from tests.test_judge import verdict

SUITE = '[suite]\nname = "sealed"\n[[tasks]]\nname = "b"\ndataset = "browsecomp-plus"\n'


def everything(folder):
    """The bytes of all files, unpacked."""
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            yield path, gzip.decompress(data) if path.suffix == ".gz" else data


@pytest.mark.parametrize("program", ["direct", "rlm"])
def test_no_file_of_a_run_holds_the_query_or_the_answer(project, monkeypatch, program):  # noqa: F811
    lay_browsecomp(project)
    (project / "evals" / "sealed.toml").write_text(SUITE)
    with openai_server(lambda _: verdict("correct: yes")) as server:
        monkeypatch.setenv("DSPY_LM_API_BASE", server.url)
        run = fleet_rlm.evaluate(program, "sealed", model="sim", judge="openai/gpt-4o")
    assert run.summary["scored"] == 1
    asked = json.dumps(server.requests)
    assert tiny.QUERY in asked, "the judge did read it"
    assert tiny.ANSWER in asked
    kept = list(everything(project))
    assert {path.name for path, _ in kept} >= {"records.jsonl", "summary.json", "run.json"}
    words = (tiny.QUERY, tiny.ANSWER, "Zwickau", "Ottokar")
    leaks = [(path.name, word) for path, data in kept for word in words if word.encode() in data]
    assert not leaks
    (record,) = run.records().to_dict("records")
    assert record["answer"].startswith("[sealed: ")


def test_a_failing_sample_does_not_tell_either(project):  # noqa: F811
    lay_browsecomp(project)
    (project / "evals" / "sealed.toml").write_text(SUITE + 'rule = "broken.py:score"\n')
    (project / "evals" / "broken.py").write_text(
        "def score(answer, gold, query):\n    raise ValueError(gold[0] + query)\n"
    )
    run = fleet_rlm.evaluate("direct", "sealed", model="sim")
    assert run.summary["errors"] == 1
    leaks = [path for path, data in everything(run.folder) if b"Ottokar" in data]
    assert not leaks


def test_a_cache_is_refused(project, monkeypatch):  # noqa: F811
    lay_browsecomp(project)
    (project / "evals" / "sealed.toml").write_text(SUITE + 'rule = "match-part"\n')
    (project / "fleet.toml").write_text("cache = true\n")
    with pytest.raises(UsageError, match="is sealed, and a cache would store its texts"):
        fleet_rlm.evaluate("direct", "sealed", model="sim")


def test_a_preview_says_that_it_is_sealed(project, capsys):  # noqa: F811
    lay_browsecomp(project)
    (project / "evals" / "sealed.toml").write_text(SUITE)
    assert print_suite(project, "sealed", 2, None, [], project / "texts") == 0
    assert not (project / "texts").exists()
    shown = capsys.readouterr().out
    assert "sealed: its texts are opened in a run's memory only" in shown
    assert "Zwickau" not in shown


def test_withheld_keeps_shape_and_numbers():
    assert withheld([{"a": "xyz", "n": 1}, None]) == [{"a": "[sealed: 3 characters]", "n": 1}, None]
