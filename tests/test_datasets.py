"""Datasets: rows of real schemas through `datasets`, gold apart, locked; what bad input is told."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import replace

import datasets
import pytest

import fleet_rlm
from fleet_rlm.cli.fetch import fetch_command
from fleet_rlm.errors import DataError, UsageError
from fleet_rlm.runner.rescore import rescore
from fleet_rlm.runner.stored import open_run
from fleet_rlm.scoring import score
from fleet_rlm.suites.fetch import fetch, open_shelf
from fleet_rlm.suites.manifest import find_manifest, load_manifest, write_manifest
from fleet_rlm.suites.seal import Seal
from fleet_rlm.suites.shelf import data_dir
from fleet_rlm.suites.suite import load_suite, parse_suite
from tests import tiny_datasets as tiny


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project whose fetched data stays inside."""
    monkeypatch.setenv("FLEET_DATA_DIR", str(tmp_path / "shelves"))
    (tmp_path / "evals").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def task_of(project, dataset, **keys):
    text = (
        tiny.to_toml({"suite": {"name": "mine"}})
        + f'[[tasks]]\nname = "t"\ndataset = "{dataset}"\n'
    )
    text += "".join(f"{key} = {tiny.inline(value)}\n" for key, value in keys.items())
    return parse_suite(text, str(project / "evals" / "mine.toml"), project)


def samples_of(project, dataset, **keys):
    return [planned.build() for planned in task_of(project, dataset, **keys).plan()]


def scores(planned, answer):
    found = score(answer, planned.build().question, task_rule=planned.rule)
    return found.official, found.robust


def lay_oolong(project, rows=None, name="oolong.parquet"):
    tiny.write_rows(project / "datasets" / name, rows or tiny.oolong_rows())
    return tiny.point_at(project, tiny.shipped("oolong-synth"), name)


# What each benchmark's rows become


def test_oolong(project):
    lay_oolong(project)
    suite = task_of(project, "oolong-synth", where={"dataset": "trec_coarse"}, lengths=1024)
    plan = suite.plan()
    assert [planned.length for planned in plan] == [1024] * 3
    assert len({planned.cluster for planned in plan}) == 1, "25 questions stand on one window"
    label, number, day = (planned.build() for planned in plan)
    assert label.context == tiny.LINES
    assert label.question.options == ("entity", "human being")
    assert scores(plan[0], "human being") == (1, 1)
    assert scores(plan[1], "Answer: 11") == (0.75, 0.75)
    assert scores(plan[2], "12/12/2022") == (1, 1)
    assert (number.question.kind, day.question.answer_type) == ("numeric_one_class", "date")
    assert (day.question.gold, number.tokens > 100) == (("2022-12-12",), True)


def test_longbench_and_its_slice_of_code(project):
    tiny.write_rows(project / "datasets" / "data.json", tiny.longbench_rows())
    tiny.point_at(project, tiny.shipped("longbench-v2"), "data.json")
    slice_ = {"domain": "Code Repository Understanding"}
    (planned,) = task_of(project, "longbench-v2", where=slice_).plan()
    sample = planned.build()
    assert "(C) choice C" in sample.query
    assert sample.context.startswith("def f")
    assert scores(planned, "C") == (1, 1)
    assert len(task_of(project, "longbench-v2").plan()) == 2


def test_graphwalks(project):
    tiny.write_rows(project / "datasets" / "g.parquet", tiny.graphwalks_rows())
    tiny.point_at(project, tiny.shipped("graphwalks"), "g.parquet")
    parents, nobody = task_of(project, "graphwalks").plan()
    sample = parents.build()
    assert sample.context.startswith("Here is the graph to operate on")
    assert sample.context.endswith("bb -> cc")
    assert "an example" in sample.query
    assert sample.query.endswith("Find the parents of node bb.")
    assert scores(parents, "Final Answer: [aa]") == (1, 1)
    assert scores(nobody, "Final Answer: []") == (1, 1)


def test_mrcr(project):
    tiny.write_rows(project / "datasets" / "m.parquet", tiny.mrcr_rows())
    tiny.point_at(project, tiny.shipped("mrcr"), "m.parquet")
    (planned,) = task_of(project, "mrcr").plan()
    sample = planned.build()
    assert sample.context.startswith("user: write a poem")
    assert sample.query.endswith("Prepend Xy9 to the 1st poem about tapirs.")
    assert "Prepend" not in sample.context
    assert scores(planned, sample.question.gold[0]) == (1, 1)


def test_babilong_reads_tasks_and_lengths_from_where_rows_stand(project):
    raw = tiny.shipped("babilong")
    for config in raw["source"]["config"]:
        for split in raw["source"]["split"]:
            tiny.write_rows(project / f"datasets/{config}/{split}.jsonl", tiny.babilong_rows())
    tiny.point_at(project, raw, "{config}/{split}.jsonl")
    plan = task_of(project, "babilong", where={"kind": "qa1"}).plan()
    assert [planned.length for planned in plan] == [4000, 16_000, 64_000, 128_000]
    assert plan[0].build().query.endswith("Question: Where is John?")
    assert scores(plan[0], "The most recent location of John is hallway.") == (1, 1)
    assert scores(plan[0], "kitchen") == (0, 0)


def test_longmemeval_drops_what_marks_the_answer(project):
    tiny.write_rows(project / "datasets" / "l.json", tiny.longmemeval_rows())
    tiny.point_at(project, tiny.shipped("longmemeval"), "l.json")
    stated, unstated = samples_of(project, "longmemeval")
    assert stated.context == (
        "### Session of 2023/05/01\nuser: I moved to Oslo.\nassistant: How nice!"
    )
    assert "2023/05/20. Where do I live?" in stated.query
    assert (stated.question.kind, unstated.question.kind) == ("single-session-user", "abstention")


def test_infinitebench_scores_each_task_by_its_own_rule(project):
    raw = tiny.shipped("infinitebench")
    rows = tiny.infinitebench_rows()
    for task, found in rows.items():
        tiny.write_rows(project / "datasets" / f"{task}.jsonl", found)
    raw["source"]["split"] = list(rows)
    tiny.point_at(project, raw, "{split}.jsonl")
    passkey, choice, find = task_of(project, "infinitebench").plan()
    assert scores(passkey, "71432") == scores(choice, "B") == scores(find, "88") == (1, 1)
    assert "B. Georgie" in choice.build().query
    assert choice.build().question.gold == ("Georgie", "B")


def test_oolong_pairs_on_the_one_context_that_its_digest_names(project):
    lay_oolong(project)
    raw = tiny.shipped("oolong-pairs")
    asked = [
        {"id": n, "question": f"Q{n}", "answer": ["(11, 22)"][:n], "type": "x"} for n in (0, 1)
    ]
    tiny.write_rows(project / "datasets" / "pairs.json", asked)
    raw["texts"]["filter"] = {"dataset": "agnews"}
    tiny.point_at(project, raw, "pairs.json", "oolong.parquet")
    with pytest.raises(UsageError, match=r"texts\.sha256: the text found has \w+…: upstream"):
        samples_of(project, "oolong-pairs")
    del raw["texts"]["sha256"]
    tiny.point_at(project, raw, "pairs.json", "oolong.parquet")
    nobody, one = task_of(project, "oolong-pairs").plan()
    assert nobody.cluster == one.cluster
    assert one.build().context == tiny.LINES * 4
    assert scores(one, "(22, 11)") == (1, 1)
    assert scores(nobody, "there are none") == (1, 1)
    raw["texts"]["filter"] = {}
    tiny.point_at(project, raw, "pairs.json", "oolong.parquet")
    with pytest.raises(UsageError, match="4 rows fit its filter, not one"):
        fetch(find_manifest("oolong-pairs", project), relock=True)


def lay_browsecomp(project):
    raw = tiny.shipped("browsecomp-plus")
    rows, corpus = tiny.browsecomp_rows(raw["dataset"]["canary"])
    tiny.write_rows(project / "datasets" / "q.parquet", rows)
    tiny.write_rows(project / "datasets" / "corpus.parquet", corpus)
    fetch(load_manifest(tiny.point_at(project, raw, "q.parquet", "corpus.parquet"), project))


def test_browsecomp_is_composed_and_opened_in_memory_only(project):
    lay_browsecomp(project)
    (planned,) = task_of(project, "browsecomp-plus").plan()
    sample = planned.build()
    assert planned.is_sealed
    assert sample.query == tiny.QUERY
    assert sample.question.gold == (tiny.ANSWER,)
    documents = sample.context.split("\n\n---\n\n")
    assert {text[:10] for text in documents} >= {"Document 1", "Document 2", "Document 3"}
    assert len(documents) == 12, "filled with others from the corpus"
    kept = b"".join(path.read_bytes() for path in project.rglob("*") if path.is_file())
    for text in (tiny.QUERY, tiny.ANSWER, '"d1"'):
        assert text.encode() not in kept
        assert text not in repr((planned, sample.question))


def test_a_changed_document_of_a_corpus_is_noticed(project):
    lay_browsecomp(project)
    manifest = find_manifest("browsecomp-plus", project)
    fetch(manifest)
    _, corpus = tiny.browsecomp_rows(manifest.file.dataset.canary)
    corpus[0]["text"] = corpus[0]["text"].replace("tells", "sings")
    tiny.write_rows(project / "datasets" / "corpus.parquet", corpus)
    with pytest.raises(UsageError, match="questions_sha256 was"):
        fetch(manifest)


def test_the_seal_opens_what_the_benchmarks_own_code_closed():
    raw = tiny.shipped("browsecomp-plus")
    seal = Seal(raw["dataset"]["canary"])
    closed = "d0Adh66ja4lhU9i1qch4ob9XycA8uZYuduApoME="
    assert seal.open(closed) == "What is the synthetic answer?"
    assert seal.close("What is the synthetic answer?") == closed
    assert seal.open(seal.close("")) == ""


# Gold apart


def test_labelled_columns_are_never_kept_and_gold_stands_in_a_file_of_its_own(project):
    lay_oolong(project)
    shelf = open_shelf(find_manifest("oolong-synth", project))
    files = {path.name: path.read_bytes() for path in shelf.folder.iterdir()}
    assert set(files) == {"questions.sqlite", "gold.sqlite"}
    assert not [name for name, data in files.items() if tiny.SENTINEL.encode() in data]
    assert b"datetime" not in files["questions.sqlite"]
    assert b"2022-12-12" in files["gold.sqlite"]


def test_a_sample_is_planned_and_built_without_gold_and_scored_with_it(project):
    lay_oolong(project)
    (planned, *_) = task_of(project, "oolong-synth").plan()
    shelf = open_shelf(find_manifest("oolong-synth", project))
    (shelf.folder / "gold.sqlite").rename(project / "away.sqlite")
    sample = planned.build()
    assert "gold" not in repr(sample.question)
    with pytest.raises(DataError, match=r"gold\.sqlite is unreadable"):
        score("human being", sample.question, task_rule=planned.rule)


def test_parquet_is_read_by_column(project):
    """A column that is not asked for is not even decoded: its broken pages do no harm."""
    path = project / "datasets" / "oolong.parquet"
    lay_oolong(project)
    place = path.read_bytes().find(tiny.SENTINEL.encode())
    assert place > 0
    data = bytearray(path.read_bytes())
    data[place - 4 : place + 4] = b"\xff" * 8
    path.write_bytes(data)
    assert len(task_of(project, "oolong-synth").plan()) == 3


# Locks


def test_the_first_fetch_locks_and_later_ones_hold_to_it(project, capsys):
    lay_oolong(project)
    lock_path = project / "datasets" / "oolong-synth.lock"
    assert fetch_command(project, "oolong-synth", pin=False, relock=False, as_json=True) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    lock = json.loads(lock_path.read_text())
    assert (lock["rows"], lock["contexts"], shown["rows"]) == (3, 1, 3)
    assert re.fullmatch("[0-9a-f]{64}", lock["gold_sha256"])
    fetch(find_manifest("oolong-synth", project))
    assert json.loads(lock_path.read_text()) == lock


def test_a_changed_file_is_refused_until_it_is_locked_again(project):
    lay_oolong(project)
    before = task_of(project, "oolong-synth")
    (first, *_) = before.plan()
    digest = before.digest
    rows = tiny.oolong_rows()
    rows[1]["answer"] = "[13]"
    lay_oolong(project, rows)
    with pytest.raises(UsageError, match=r"oolong\.parquet was changed since .* --relock"):
        before.plan()
    with pytest.raises(UsageError, match=r"is not what .* locked: gold_sha256 was"):
        fetch(find_manifest("oolong-synth", project))
    fetch(find_manifest("oolong-synth", project), relock=True)
    after = task_of(project, "oolong-synth")
    assert after.digest != digest, "a run on other gold is another run"
    assert after.plan()[0].id == first.id


def test_a_changed_manifest_is_refused_too(project):
    path = lay_oolong(project)
    task_of(project, "oolong-synth").plan()
    path.write_text(path.read_text().replace('"trec_coarse", "spam"', '"agnews"'))
    with pytest.raises(UsageError, match=r"changed since oolong-synth\.lock"):
        task_of(project, "oolong-synth").plan()


def test_a_context_that_changed_on_disk_is_an_error_of_its_sample(project):
    import sqlite3

    lay_oolong(project)
    (planned, *_) = task_of(project, "oolong-synth").plan()
    (folder,) = data_dir().iterdir()
    with sqlite3.connect(folder / "questions.sqlite") as db:
        db.execute("UPDATE documents SET text = 'other'")
    db.close()
    with pytest.raises(DataError, match="was changed after it was fetched"):
        planned.build()


# Hugging Face


def test_what_is_not_fetched_is_listed_shown_and_refused_in_one_line(project):
    suite = load_suite(tiny.DATASETS.parent / "evals" / "longbench-v2.toml", project)
    assert not suite.is_ready
    with pytest.raises(UsageError, match=r"was never fetched Try: fleet-eval fetch longbench-v2$"):
        suite.plan()


def run_cli(project, *words, **env):
    return subprocess.run(
        [sys.executable, "-m", "fleet_rlm.cli.eval", *words],
        cwd=project,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_without_network_a_fetch_says_what_to_do(project):
    done = run_cli(project, "fetch", "longbench-v2", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "cannot be reached from here" in line
    assert "on a machine with network; or set source.path" in line
    assert not list(project.rglob("*.lock"))


def test_a_folder_of_the_same_name_is_not_read_in_place_of_a_dataset(project):
    tiny.write_rows(project / "zai-org/LongBench-v2/data.json", tiny.longbench_rows())
    with pytest.raises(UsageError, match=r"\./zai-org/LongBench-v2 stands in the way"):
        fetch(find_manifest("longbench-v2", project))
    assert not list(project.rglob("*.lock"))


def test_a_manifest_without_revision_is_pinned_or_refused(project):
    with pytest.raises(UsageError, match=r"source\.revision: is missing .* --pin"):
        fetch(find_manifest("oolong-real", project))


@pytest.mark.parametrize("path", sorted(tiny.DATASETS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_manifest_reads_and_names_no_gold_column_for_the_program(path, project):
    raw = tomllib.loads(path.read_text())
    manifest = find_manifest(path.stem, project)
    assert manifest.file.dataset.licence
    assert manifest.file.dataset.homepage.startswith("https://huggingface.co/datasets/")
    known_gold = {
        "context_window_text_with_labels", "answer", "answer_nodes", "target", "has_answer",
        "answer_session_ids", "random_string_to_prepend",
    }  # fmt: skip
    read = {
        name
        for value in raw["columns"].values()
        for name in ([value] if isinstance(value, str) else value)
    }
    assert not read & known_gold


@pytest.mark.parametrize(
    "path", sorted((tiny.DATASETS.parent / "evals").glob("*.toml")), ids=lambda path: path.stem
)
def test_every_fetched_suite_has_a_card(path, project):
    suite = load_suite(path, project)
    if not suite.is_ready:
        card = suite.card
        assert card is not None
        assert card.measures
        assert card.licence
        assert card.floors
        assert card.defects


# Data of one's own


ROWS = [
    {"text": "The code is blue. " * 30, "ask": "Which colour?", "want": "blue", "year": 2024},
    {
        "text": "The code is red. " * 30,
        "ask": "Which colour?",
        "want": ["red", "crimson"],
        "year": 2025,
    },
]


def lay_own(project, name="mine.jsonl", rows=ROWS):
    tiny.write_rows(project / "data" / name, rows)
    path = write_manifest(
        project / "datasets",
        "mine",
        source=f"../data/{name}",
        context="text",
        question="ask",
        answer="want",
        licence="ours",
    )
    path.write_text(path.read_text().replace("[gold]", 'tags = ["year"]\n\n[gold]'))
    return path


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.json", "mine.parquet"])
def test_ones_own_rows_need_a_manifest_and_no_fetch(project, name):
    rows = ROWS if name != "mine.parquet" else [{**row, "want": ["blue"]} for row in ROWS]
    lay_own(project, name, rows)
    (planned,) = task_of(project, "mine", rule="exact", where={"year": 2024}).plan()
    assert planned.build().context == ROWS[0]["text"]
    assert scores(planned, "Answer: Blue") == (0, 1)
    assert planned.headline == "robust"


def test_a_run_reads_new_rows_in_apart_from_the_process_that_asks_models(project, monkeypatch):
    path = lay_own(project)
    text = '[suite]\nname = "mine"\n[[tasks]]\nname = "t"\ndataset = "mine"\nrule = "exact"\n'
    (project / "evals" / "mine.toml").write_text(text)

    def here(*_, **__):
        raise AssertionError("gold and all other columns were read into this process")

    monkeypatch.setattr(datasets, "load_dataset", here)
    good = path.read_text()
    path.write_text(good.replace('"want"', '"wants"'))
    with pytest.raises(UsageError, match=r"column 'wants' is not .* 'want'\? Try: correct the"):
        fleet_rlm.evaluate("direct", "mine", model="sim")
    path.write_text(good)
    assert fleet_rlm.evaluate("direct", "mine", model="sim").summary["scored"] == 2


def test_csv(project):
    (project / "data").mkdir()
    (project / "data" / "mine.csv").write_text(
        'text,ask,want,secret\n"a, b",Which?,a,' + tiny.SENTINEL + "\n007,Number?,7,x\n"
    )
    write_manifest(
        project / "datasets", "mine", source="../data/mine.csv", context="text", question="ask",
        answer="want",
    )  # fmt: skip
    samples = samples_of(project, "mine", rule="exact")
    assert [sample.context for sample in samples] == ["a, b", "007"]


def test_a_scoring_function_of_ones_own(project):
    lay_own(project)
    scorer = project / "evals" / "mine.py"
    scorer.write_text(
        "def near(answer, gold, query):\n    return 0.5 if gold[0][0] in answer else 0\n"
    )
    (first, _) = task_of(project, "mine", rule="mine.py:near").plan()
    assert scores(first, "b") == (0.5, 0.5)
    with pytest.raises(UsageError, match="has no function 'far'"):
        task_of(project, "mine", rule="mine.py:far")
    with pytest.raises(UsageError, match="No scoring file"):
        task_of(project, "mine", rule="absent.py:near")
    digest = task_of(project, "mine", rule="mine.py:near").digest
    scorer.write_text(scorer.read_text().replace("0.5", "0.6"))
    assert task_of(project, "mine", rule="mine.py:near").digest != digest


def test_answers_that_a_scoring_function_failed_on_are_scored_once_it_is_corrected(project):
    lay_own(project)
    scorer, suite = project / "evals" / "mine.py", project / "evals" / "mine.toml"
    scorer.write_text("def near(answer, gold, query):\n    return 1 / (gold[0] != 'red')\n")
    text = (
        '[suite]\nname = "mine"\n[[tasks]]\nname = "t"\ndataset = "mine"\nrule = "mine.py:near"\n'
    )
    suite.write_text(text)
    fetch(find_manifest("mine", project))
    run = fleet_rlm.evaluate("direct", "mine", model="sim")
    assert (run.summary["scored"], run.summary["errors"], run.summary["score"]) == (1, 1, 1.0)
    scorer.write_text(scorer.read_text().replace("1 /", "0.5 *"))
    corrected = load_suite(suite, project)
    again = rescore(run.folder, corrected)
    assert (again.scored, again.changed) == (2, 2)
    assert (again.summary["errors"], again.summary["score"]) == (0, 0.25)
    assert again.summary["usage"]["calls"] == run.summary["usage"]["calls"], "no model was asked"
    assert open_run(run.folder).lock["suite"]["digest"] == corrected.digest
    assert rescore(run.folder, corrected).changed == 0
    with pytest.raises(UsageError, match="is not what"):
        rescore(run.folder, corrected.override({"samples": 1}))


def test_samples_are_drawn_by_seed_whole_contexts_first(project):
    rows = [
        {"text": f"Text {n // 3}. " * 40, "ask": f"Q{n}", "want": "x", "year": 1} for n in range(30)
    ]
    lay_own(project, rows=rows)
    suite = task_of(project, "mine", rule="exact", samples=6)
    plan = suite.plan()
    assert len(plan) == 6
    assert len({planned.cluster for planned in plan}) == 2
    other = suite.override({"seed": 5}).plan()
    assert {p.id for p in plan} != {p.id for p in other}
    assert suite.override({"samples": 3}).plan() != plan
    assert {p.length for p in plan} == {1024}


# Bad input: one line with file, key or column, and the mend


def edited(project, change):
    path = lay_own(project)
    (project / "datasets" / "mine.json").write_text("\n")
    path.write_text(change(path.read_text()))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.replace('"text"', '"txt"'), r"column 'txt' is not in the data\. Did you mean"),
        (lambda t: t.replace('"want"', '"wants"'), "column 'wants' is not in the data"),
        (lambda t: t.replace('"want"', '"text"'), "columns: 'text' is a gold column"),
        (lambda t: t.replace("licence", "license"), r"dataset\.license: unknown key.*'licence'"),
        (lambda t: t.replace('licence = "ours"', ""), r"dataset\.licence: is missing"),
        (lambda t: t.replace('question = "ask"', ""), r"columns\.question: is missing"),
        (lambda t: t.replace("question =", "queston ="), r"columns\.question: is missing"),
        (lambda t: t.replace("tags =", "colour ="), r"columns\.colour: unknown role"),
        (lambda t: t.replace("mine.jsonl", "none.jsonl"), "no file '../data/none.jsonl'"),
        (lambda t: t.replace("../data/mine.jsonl", "mine.json"), "mine.json holds no row"),
        (lambda t: t.replace("mine.jsonl", "mine.txt"), r"source\.format: .* does not tell it"),
        (lambda t: t.replace("[gold]", "[gold"), "not valid TOML"),
        (lambda t: t + '[filter]\nyear = "2024"\n', "no row fits"),
        (lambda t: t.replace("[columns]", 'hub = "a/b"\n[columns]'), "give either 'hub' or 'path'"),
        (
            lambda t: t.replace("path =", 'revision = "main"\npath ='),
            r"source\.revision: 'main' is no commit of 40 hex digits",
        ),
        (lambda t: t.replace("[source]", 'adapter = "row"\n[source]'), "no adapter 'row'. Did you"),
        (lambda t: t.replace("[columns]", '[columns]\nid = "ask"'), "colour.' stands there twice"),
    ],
)  # fmt: skip
def test_a_wrong_manifest_is_refused_in_one_line(project, change, words):
    path = edited(project, change)
    with pytest.raises(UsageError, match=words) as caught:
        task_of(project, "mine", rule="exact").plan()
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    assert caught.value.fix, "the mend is named"
    assert not list(project.rglob("*.sqlite")), "nothing is kept of half-read data"
    assert not list(project.rglob("*.lock"))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**ROWS[0], "want": None}, r"row 2: gold answer 'None' is no text .* \(column want\)"),
        ({**ROWS[0], "want": [["x"]]}, "unreadable|row 2: gold answer|reading"),
        ({**ROWS[0], "text": ""}, "row 2: role 'context': '' is no text"),
    ],
)
def test_a_row_that_cannot_be_read_names_itself(project, row, words):
    lay_own(project, rows=[*ROWS, row])
    with pytest.raises(UsageError, match=words):
        task_of(project, "mine", rule="exact").plan()
    assert not list(project.rglob("*.sqlite"))


@pytest.mark.parametrize("answer", ["entity", "[]"])
def test_gold_that_does_not_parse_ends_the_fetch(project, answer):
    rows = tiny.oolong_rows()
    rows[2]["answer"] = answer
    lay_oolong(project, rows)
    with pytest.raises(
        UsageError, match=r"oolong-synth\.toml: row 2: gold answer .* is not a list"
    ):
        task_of(project, "oolong-synth").plan()


def test_a_broken_file_is_told_by_its_name(project, caplog):
    lay_own(project)
    (project / "data" / "mine.jsonl").write_text("{not json")
    with pytest.raises(UsageError, match=r"mine\.toml: reading \.\./data/mine\.jsonl"):
        task_of(project, "mine", rule="exact").plan()
    assert not caplog.records, "in one line, not in two"


def test_an_unreadable_manifest_lock_and_latin_letters(project):
    path = lay_own(project)
    task_of(project, "mine", rule="exact").plan()
    lock = path.with_suffix(".lock")
    lock.write_text("{")
    with pytest.raises(UsageError, match=r"mine\.lock is unreadable.* --relock"):
        task_of(project, "mine", rule="exact").plan()
    path.write_bytes(b"# caf\xe9\n" + path.read_bytes())
    with pytest.raises(UsageError, match=r"is not UTF-8 at byte 5 Try: iconv .*mine\.toml"):
        task_of(project, "mine", rule="exact")
    path.unlink()
    path.mkdir()
    with pytest.raises(UsageError, match=r"is unreadable: Is a directory Try: name a file in it"):
        task_of(project, "mine", rule="exact")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"rule": "exakt"}, "tasks.t.rule: no scoring rule 'exakt'. Did you mean 'exact'"),
        ({}, "tasks.t.rule: is missing; known: "),
        ({"rule": "exact", "where": {"yaer": 1}}, "where: no tag 'yaer'. Did you mean 'year'"),
        ({"rule": "exact", "windows": 3}, "tasks.t.windows: unknown key"),
        ({"rule": "exact", "samples": 0}, "tasks.t.samples: .*greater than or equal to 1"),
        ({"rule": "exact", "lengths": [8192]}, "no row of 'mine' fits: lengths there is 1024"),
        ({"rule": "exact", "where": {"year": 1}}, "fits: year there is 2024, 2025"),
    ],
)  # fmt: skip
def test_a_wrong_task_is_refused_in_one_line(project, keys, words):
    lay_own(project)
    with pytest.raises(UsageError, match=words) as caught:
        task_of(project, "mine", **keys).plan()
    assert caught.value.fix


def test_an_unknown_dataset_is_named_with_the_nearest(project):
    with pytest.raises(
        UsageError, match=r"tasks\.t\.dataset: No dataset 'longbench_v2'.*'longbench-v2'"
    ):
        task_of(project, "longbench_v2")


def test_a_scaffold_is_valid_and_never_overwrites(project):
    path = write_manifest(project / "datasets", "hub", source="owner/name", revision="a" * 40)
    assert find_manifest("hub", project).file.source.hub == "owner/name"
    with pytest.raises(UsageError, match="exists already"):
        write_manifest(project / "datasets", "hub", source="owner/name")
    with pytest.raises(UsageError, match="no commit"):
        write_manifest(project / "datasets", "other", source="owner/name", revision="main")
    assert not (project / "datasets" / "other.toml").exists()
    assert path.exists()


def test_fetch_by_suite_reads_each_dataset_once(project, capsys):
    lay_own(project)
    text = '[suite]\nname = "two"\n' + "".join(
        f'[[tasks]]\nname = "{name}"\ndataset = "mine"\nrule = "exact"\n' for name in "ab"
    )
    (project / "evals" / "two.toml").write_text(text)
    assert fetch_command(project, "two", pin=False, relock=False, as_json=False) == 0
    assert capsys.readouterr().out.count("2 questions on 2 contexts") == 1
    with pytest.raises(UsageError, match="generated: there is nothing to fetch"):
        fetch_command(project, "needle", pin=False, relock=False, as_json=False)
    with pytest.raises(UsageError, match="No suite or dataset 'ned'"):
        fetch_command(project, "ned", pin=False, relock=False, as_json=False)


def test_a_stale_shelf_is_read_in_again(project):
    lay_own(project)
    suite = task_of(project, "mine", rule="exact")
    first = suite.plan()
    (folder,) = data_dir().iterdir()
    folder.rename(project / "gone")
    assert [replace(p).id for p in suite.plan()] == [p.id for p in first]
