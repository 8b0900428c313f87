"""Suite files, overrides and plans: what there is to run is known, stable and cheap to know."""

from __future__ import annotations

import json
import re
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_rlm.errors import DataError, UsageError
from fleet_rlm.scoring import RULES, score
from fleet_rlm.suites.corpus import Corpus
from fleet_rlm.suites.plan import WindowCache, length_label
from fleet_rlm.suites.sample import Question, Window
from fleet_rlm.suites.suite import load_suite, parse_suite

EVALS = Path(__file__).parents[1] / "evals"


def suite_text(*, seed=0, lengths=(2000,), windows=1, questions=1, distractors=8, more=""):
    return f"""
        [suite]
        name = "small"
        seed = {seed}
        [[tasks]]
        name = "needle"
        generator = "needle"
        lengths = {list(lengths)}
        windows = {windows}
        questions = {questions}
        {more}
        [tasks.params]
        distractors = {distractors}
    """


def small(**given):
    return parse_suite(suite_text(**given), "small.toml")


def quickstart():
    return load_suite(EVALS / "quickstart.toml")


# The shipped suites


@pytest.mark.parametrize("path", sorted(EVALS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_suites_are_sound(path):
    suite = load_suite(path)
    assert suite.name == path.stem
    assert suite.description
    if not suite.is_ready:
        return  # fetched; tests/test_datasets.py plans these on rows of the same schema
    plan = suite.plan()
    assert len({sample.id for sample in plan}) == len(plan) >= 36
    assert all(sample.rule in RULES for sample in plan)


def test_quickstart_is_36_samples_over_three_tasks_and_lengths():
    plan = quickstart().plan()
    assert len(plan) == 36
    assert len({sample.cluster for sample in plan}) == 18
    assert {sample.task for sample in plan} == {"needle", "variables", "aggregate"}
    assert {sample.length for sample in plan} == {8000, 32000, 128000}
    assert len({sample.question for sample in plan}) == 2


def test_quickstart_samples_build_and_their_gold_scores_one():
    for planned in quickstart().plan():
        sample = planned.build()
        assert (sample.id, sample.cluster, sample.task) == (
            planned.id,
            planned.cluster,
            planned.task,
        )
        assert 0.95 * sample.length <= sample.tokens <= sample.length
        found = score(", ".join(sample.question.gold), sample.question, task_rule=planned.rule)
        assert (found.official, found.robust, found.feedback) == (1.0, 1.0, "")


def test_needle_takes_a_corpus_and_long_lengths():
    corpus = Corpus(["A line of the user's own text. " * 3000], origin="mine")
    suite = load_suite(EVALS / "needle.toml").override({"lengths": [100_000, 1_000_000]})
    plan = suite.with_corpus(corpus).plan()
    assert {sample.length for sample in plan} == {100_000, 1_000_000}
    sample = next(sample for sample in plan if sample.length == 100_000).build()
    assert "A line of the user's own text." in sample.context


# Plans


def test_ids_read_as_task_length_window_question_digest():
    plan = small(lengths=[8000, 131072], windows=2, questions=2).plan()
    assert [re.sub(r"[0-9a-f]{8}$", "#", sample.id) for sample in plan] == [
        f"needle-{length}-{window}.{question}-#"
        for length in ("8k", "131072")
        for window in (0, 1)
        for question in (0, 1)
    ]
    assert all(sample.id.endswith(sample.window_key[:8]) for sample in plan)
    assert [length_label(n) for n in (1000, 1500, 2_000_000, 1_500_000)] == [
        "1k",
        "1500",
        "2m",
        "1500k",
    ]


def test_ten_thousand_samples_are_planned_at_once_and_without_text():
    suite = quickstart().override({"lengths": [20_000_000, 10_000_000], "windows": 850})
    started = time.perf_counter()
    plan = suite.plan()
    assert len(plan) == 10_200
    assert time.perf_counter() - started < 2  # measured 0.12 s; one such text alone takes 20 s


SHAPE = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 1),
        "lengths": st.sampled_from([[2000], [2001]]),
        "questions": st.integers(1, 2),
        "distractors": st.integers(0, 1),
    }
)
BESIDE = st.fixed_dictionaries(
    {
        "windows": st.integers(1, 3),
        "more": st.sampled_from(["", 'headline = "official"']),
    }
)


@given(SHAPE, BESIDE, SHAPE, BESIDE)
@settings(max_examples=100, deadline=None)
def test_ids_change_exactly_with_what_shapes_the_text(shape, beside, other, other_beside):
    a, b = small(**shape, **beside), small(**other, **other_beside)
    first, second = a.plan()[0], b.plan()[0]
    assert (first.window_key == second.window_key) is (shape == other)
    assert (first.build().context == second.build().context) is (shape == other)
    assert (a.digest == b.digest) is ((shape, beside) == (other, other_beside))


def test_more_windows_keep_the_ids_there_were():
    few, many = small(windows=2, questions=2).plan(), small(windows=5, questions=2).plan()
    assert [sample.id for sample in few] == [sample.id for sample in many[:4]]


def test_the_corpus_is_part_of_ids_and_digest_but_not_where_it_is_not_used():
    suite = small()
    first, second = (suite.with_corpus(Corpus([text], origin="x")) for text in ("One. ", "Two. "))
    assert len({s.plan()[0].id for s in (suite, first, second)}) == 3
    assert len({s.digest for s in (suite, first, second)}) == 3
    assert first.with_corpus(Corpus(["One. "], origin="elsewhere")).digest == first.digest


def test_description_and_place_are_no_identity():
    text = suite_text()
    other = text.replace('name = "small"', 'name = "small"\ndescription = "words"')
    assert parse_suite(text, "a.toml").digest == parse_suite(other, "b.toml").digest


def test_describe_is_json_and_carries_the_digest():
    suite = small().with_corpus(Corpus(["Text. "], origin="books/*.txt"))
    lock = json.loads(json.dumps(suite.describe()))
    assert lock["digest"] == suite.digest
    assert lock["corpus"] == {"origin": "books/*.txt", "files": 1}
    assert lock["tasks"][0]["params"] == {}


@given(st.integers(1, 40))
def test_limit_is_a_spread_in_planned_order(limit):
    suite = quickstart()
    plan, some = suite.plan(), suite.plan(limit=limit)
    assert len(some) == min(limit, 36)
    assert [s.id for s in plan if s.id in {x.id for x in some}] == [s.id for s in some]
    for pick in ("task", "length"):
        counts = [
            sum(getattr(s, pick) == v for s in some) for v in {getattr(s, pick) for s in plan}
        ]
        assert max(counts) - min(counts) <= 1
    if limit <= 18:
        assert len({s.cluster for s in some}) == limit


def test_only_selects_by_id_and_names_the_nearest():
    suite = quickstart()
    wanted = [sample.id for sample in suite.plan()][5:8]
    assert [s.id for s in suite.plan(only=wanted)] == wanted
    assert len(suite.plan(only=wanted, limit=2)) == 2
    with pytest.raises(
        UsageError, match=r"No sample 'needle-8k-0.0-0000'.*Did you mean 'needle-8k"
    ):
        suite.plan(only=["needle-8k-0.0-0000"])
    with pytest.raises(UsageError, match="limit must be at least 1, not 0"):
        suite.plan(limit=0)


# Building


def test_questions_of_one_window_share_one_text_also_among_threads():
    plan = small(lengths=[8000], windows=3, questions=3).plan()
    with ThreadPoolExecutor(6) as pool:
        samples = list(pool.map(lambda planned: planned.build(), plan * 3))
    by_cluster = {}
    for sample in samples:
        by_cluster.setdefault(sample.cluster, set()).add(id(sample.context))
    assert [len(ids) for ids in by_cluster.values()] == [1, 1, 1]
    assert len({sample.query for sample in samples}) == 9


def window(tokens=1):
    question = Question(query="?", gold=("x",), answer_type="exact")
    return Window(context="x", tokens=tokens, questions=(question,))


def test_concurrent_builds_of_one_window_happen_once():
    cache, calls, gate = WindowCache(), [], threading.Barrier(8)

    def slow():
        calls.append(threading.get_ident())
        time.sleep(0.05)
        return window()

    def ask(_):
        gate.wait(timeout=10)
        return cache.get("key", slow)

    with ThreadPoolExecutor(8) as pool:
        assert len({id(found) for found in pool.map(ask, range(8))}) == 1
    assert len(calls) == 1


def test_different_windows_build_side_by_side():
    cache, gate = WindowCache(), threading.Barrier(2)

    def meet():
        gate.wait(timeout=10)  # broken unless both builds are under way at once
        return window()

    with ThreadPoolExecutor(2) as pool:
        assert len(list(pool.map(lambda key: cache.get(key, meet), "ab"))) == 2


def test_a_failed_build_is_tried_again():
    cache = WindowCache()
    with pytest.raises(ZeroDivisionError):
        cache.get("key", lambda: window(1 // 0))
    assert cache.get("key", window).tokens == 1


def test_the_cache_forgets_the_oldest_beyond_its_tokens():
    cache, built = WindowCache(max_tokens=10), []

    def get(key, tokens):
        cache.get(key, lambda: built.append(key) or window(tokens))

    for key, tokens in (("a", 4), ("b", 4), ("a", 4), ("c", 4), ("a", 4), ("b", 4), ("huge", 99)):
        get(key, tokens)
    get("huge", 99)
    assert built == ["a", "b", "c", "b", "huge"]


def test_a_generator_that_breaks_its_promise_is_a_data_error():
    planned = small().plan()[0]
    for wrong, message in (
        (lambda: window(100), "has 100 tokens for 2000"),
        (lambda: Window(context="", tokens=2000, questions=()), "has only 0 questions"),
        (lambda: 1 // 0, "building needle-2k-0-.*ZeroDivisionError"),
    ):
        with pytest.raises(DataError, match=message):
            replace(planned, write=wrong, windows=WindowCache()).build()


# Overrides


def test_overrides_reach_all_tasks_or_one():
    suite = quickstart()
    changed = suite.override(
        {
            "lengths": [9000],
            "windows": 3,
            "seed": 5,
            "tasks.needle.questions": 4,
            "tasks.aggregate.lengths": 16_000,
            "params.distractors": 2,
            "params.hops": 3,
            "tasks.variables.params.distractors": 1,
            "headline": "official",
        }
    )
    needle, variables, aggregate = changed.tasks
    assert (needle.lengths, needle.windows, needle.questions) == ((9000,), 3, 4)
    assert (variables.questions, aggregate.lengths) == (2, (16_000,))
    assert (needle.params.distractors, variables.params.distractors) == (2, 1)
    assert variables.params.hops == 3
    assert {task.headline for task in changed.tasks} == {"official"}
    assert changed.seed == 5
    assert suite.override({}).digest == suite.digest == quickstart().digest
    assert suite.tasks[0].params.distractors == 8


def test_overrides_keep_the_corpus():
    suite = small().with_corpus(Corpus(["Text. "], origin="x"))
    assert suite.override({"windows": 2}).corpus is suite.corpus


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lenghts": [8000]}, "Unknown suite setting 'lenghts'. Did you mean 'lengths'?"),
        ({"tasks.nedle.windows": 1}, "Did you mean 'tasks.needle.windows'?"),
        ({"params.hop": 1}, "Did you mean 'params.hops'?"),
        ({"tasks.needle.params.hops": 1}, "Unknown suite setting"),
        ({"windows": "two"}, "windows='two': tasks.needle.windows: should be a valid integer"),
        ({"windows": True}, "should be a valid integer, found True"),
        ({"lengths": []}, "should have at least 1 item"),
        ({"lengths": [8000, 8000]}, "8,000 stands there twice"),
        ({"questions": 9}, "9 is more than the 8 that aggregate can ask of one window"),
        ({"params.distractors": 200}, "lengths: 8,000 tokens is impossible, at least"),
        (
            {"lengths": [1000], "windows": 1},
            "with lengths=[1000], windows=1: tasks.variables.lengths: 1,000 tokens is impossible,"
            " at least 1,200 here (1,000, or 40 for each line of a chain), 1,000 with questions",
        ),
    ],
)
def test_bad_overrides_are_one_line(values, message):
    with pytest.raises(UsageError) as caught:
        quickstart().override(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_count_together():
    short = quickstart().override({"lengths": [1000], "questions": 1, "windows": 1})
    assert [sample.build().length for sample in short.plan()] == [1000] * 3


def test_a_corpus_where_none_can_be_used_names_the_tasks_that_can():
    corpus = Corpus(["Text. "], origin="x")
    for suite in (quickstart(), load_suite(EVALS / "aggregate.toml")):
        with pytest.raises(UsageError, match=r"writes all.*can: .*needle.*variables"):
            suite.with_corpus(corpus)


# Bad files

HEAD = '[suite]\nname = "a"\n[[tasks]]\nname = "t"\ngenerator = "needle"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x =", "x.toml: not valid TOML: Invalid value"),
        ("", "x.toml: suite: is missing"),
        ("tasks = 3\n[suite]\nname = 'a'", "x.toml: tasks: should be a valid list, found 3"),
        ("tasks = [3]\n[suite]\nname = 'a'", "x.toml: tasks[0]: should be a valid dictionary"),
        ("tasks = []\n[suite]\nname = 'a'", "tasks: should have at least 1 item"),
        ("tasks = []\n[suit]\nname = 'a'", "suit: unknown key. Did you mean 'suite'?"),
        ("tasks = []\n[suite]\nnam = 'a'", "suite.nam: unknown key. Did you mean 'name'?"),
        (HEAD + "lenghts = [8000]", "tasks.t.lenghts: unknown key. Did you mean 'lengths'?"),
        (HEAD, "tasks.t.lengths: is missing"),
        (HEAD + 'lengths = ["8k"]', "tasks.t.lengths.0: should be a valid integer, found '8k'"),
        (HEAD + "lengths = [80]", "tasks.t.lengths: 80 tokens is impossible, at least 1,000"),
        (HEAD + "lengths = [20000001]", "20,000,001 tokens is impossible, at most 20,000,000"),
        (HEAD + "lengths = [-8]", "-8 tokens is impossible"),
        (
            HEAD + "lengths = [8000]\nwindows = 0",
            "tasks.t.windows: should be greater than or equal",
        ),
        (
            HEAD + "lengths = [8000]\nquestions = 0",
            "questions: should be greater than or equal to 1",
        ),
        (HEAD + "lengths = [8000]\nheadline = 'x'", "headline: should be 'robust' or 'official'"),
        (HEAD + "lengths = [8000]\n[tasks.params]\ndistracters = 3", "Did you mean 'distractors'?"),
        (
            HEAD + "lengths = [8000]\n[tasks.params]\ndistractors = 'x'",
            "params.distractors: should be",
        ),
        (
            HEAD.replace("needle", "nedle") + "lengths = [8000]",
            "no generator 'nedle'. Did you mean",
        ),
        (HEAD.replace('"t"', '"T 1"') + "lengths = [8000]", "name: should match pattern"),
        (
            HEAD + "lengths = [8000]\n[[tasks]]\nname = 't'\ngenerator = 'needle'\nlengths = 8000",
            "two tasks are named 't'",
        ),
    ],
)
def test_a_bad_suite_is_one_line_with_file_and_key(text, message):
    with pytest.raises(UsageError) as caught:
        parse_suite(text, "x.toml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("x.toml: ")
    assert "\n" not in str(caught.value)


def test_an_unreadable_suite_file_is_one_line(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(UsageError, match="is unreadable"):
            load_suite(path)
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    with pytest.raises(UsageError, match="is not UTF-8 at byte 8"):
        load_suite(tmp_path / "latin.toml")


def test_a_task_is_found_by_name():
    assert quickstart().task("needle").rule == "needle"
    with pytest.raises(UsageError, match=r"no task 'nedle'. Did you mean 'needle'"):
        quickstart().task("nedle")


def test_shipped_files_spell_out_only_known_tables():
    for path in EVALS.glob("*.toml"):
        assert set(tomllib.loads(path.read_text())) - {"card"} == {"suite", "tasks"}
