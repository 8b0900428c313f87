"""Generators: golden texts, gold recomputed from the text alone, fill, balance, leaks, speed."""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_rlm.errors import DataError
from fleet_rlm.lexicon import SUBJECT_OF, SUBJECTS
from fleet_rlm.scoring.routing import Route
from fleet_rlm.suites.corpus import Corpus, read_corpus
from fleet_rlm.suites.generators import GENERATORS, aggregate, bank, counting
from fleet_rlm.suites.generators import rows as lines_of
from fleet_rlm.suites.generators.babi import BabiTask
from fleet_rlm.suites.generators.base import Order, spread
from fleet_rlm.suites.generators.lookup import LookupTask
from fleet_rlm.suites.generators.ruler import RulerTask
from fleet_rlm.suites.prose import Prose
from fleet_rlm.suites.tokens import count_tokens

BOOKS = Path(__file__).parents[2] / "shared" / "data" / "books"


def build(name, *, length=4000, seed=0, window=0, questions=4, source=None, **params):
    generator = GENERATORS[name]
    order = Order(
        generator=f"{name}-{generator.version}",
        length=length,
        seed=seed,
        window=window,
        questions=questions,
        source=source or Prose(),
    )
    return generator.draft(order, generator.params(**params)).window()


def short_sha(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# (generator, seed, length, window) -> sha256 of the context; of (query, gold) of its 4 questions.
# A change here is a change of published samples: raise the generator's version (or the prose's).
GOLDEN = {
    ("needle", 0, 8000, 0): ("ceb80bc8dff7e4db", "918ff5df0c9c45f8"),
    ("needle", 0, 8000, 1): ("c989fac763a133aa", "866db5814044a8f8"),
    ("needle", 7, 8000, 0): ("01ad017f95d8d34f", "dff40fb606bba32a"),
    ("needle", 0, 32000, 3): ("808d7d6865c202ab", "1f9afa6bd794b1ab"),
    ("variables", 0, 8000, 0): ("f6d83dc54f9cf283", "f6415f15e8743b41"),
    ("variables", 0, 8000, 1): ("bc87d283808f220d", "41772491ec4b3f9f"),
    ("variables", 7, 8000, 0): ("e0f363304f95b33c", "7c35c8a2066487ce"),
    ("variables", 0, 32000, 3): ("a4421907ab88201d", "58d0cc19f54edf14"),
    ("aggregate", 0, 8000, 0): ("9701501436d57467", "92fc4a71166940cf"),
    ("aggregate", 0, 8000, 1): ("6bbd4104c4b0e07b", "bfe18690a80764ae"),
    ("aggregate", 7, 8000, 0): ("5c4fae5eb5624caa", "7c7d0b52ba35d5f4"),
    ("aggregate", 0, 32000, 3): ("c08111cb9313fa0b", "e674bb67d0326536"),
}


@pytest.mark.parametrize("key", GOLDEN, ids=lambda key: "-".join(map(str, key)))
def test_golden_texts(key):
    name, seed, length, window = key
    made = build(name, seed=seed, length=length, window=window)
    asked = repr([(question.query, question.gold) for question in made.questions])
    assert (short_sha(made.context), short_sha(asked)) == GOLDEN[key]


# Gold, recomputed from nothing but the text and the query.


def solve_needle(context, query):
    (name,) = re.fullmatch(r"What is the current access code for (\S+)\? .*", query).groups()
    lines = re.findall(r"^The access code for (\S+) is (\d{7})\.$", context, re.MULTILINE)
    return tuple(code for found, code in lines if found == name)


def solve_variables(context, query):
    (value,) = re.search(r"the value (\d+) after", query).groups()
    holds = {}
    for name, right in re.findall(
        r"^VAR ([A-Z]{5}) = (\d{5}|VAR [A-Z]{5})$", context, re.MULTILINE
    ):
        assert name not in holds
        holds[name] = holds[right[4:]] if right.startswith("VAR ") else right
    return tuple(sorted(name for name, held in holds.items() if held == value))


ROW = re.compile(r"Date: [A-Z][a-z]{2} \d\d, 20\d\d \|\| User: (\d{5}) \|\| Instance: (.+)")


def read_rows(context):
    """(user, label) of each line, the label from the one word of the lexicon in it."""
    header, _, body = context.partition("\n\n")
    rows = []
    for line in body.splitlines():
        user, sentence = ROW.fullmatch(line).groups()
        (word,) = [word for word in re.findall(r"\w+", sentence.lower()) if word in SUBJECT_OF]
        assert not [label for label in SUBJECTS if label in line.lower()]
        rows.append((user, SUBJECT_OF[word]))
    labels = sorted({label for _, label in rows})
    assert header == lines_of.HEADER.format(n=len(rows), labels=", ".join(labels))
    return rows


def solve_aggregate(context, query):
    rows = read_rows(context)
    counts = Counter(label for _, label in rows)
    labels = re.findall(r"label '(\w+)'", query)
    if query.startswith("How many instances"):
        return (str(counts[labels[0]]),)
    if query.startswith("Among the instances of user"):
        (user,) = re.search(r"user (\d{5}),", query).groups()
        return (str(rows.count((user, labels[0]))),)
    if query.startswith("Which of the labels is the most common"):
        (first, most), (_, second) = counts.most_common(2)
        assert most - second > max(1, 0.02 * len(rows))
        return (first,)
    a, b = (counts[label] for label in labels)
    return (("more" if a > b else "less") + " common than" if a != b else "same frequency as",)


SOLVE = {"needle": solve_needle, "variables": solve_variables, "aggregate": solve_aggregate}


KINDS = [
    *((name, {}) for name in sorted(GENERATORS)),
    *(("ruler", {"task": task}) for task in get_args(RulerTask)[1:]),
    ("ruler_words", {"task": "fwe"}),
    ("ruler_qa", {"task": "qa_2"}),
    *(("babi", {"task": task}) for task in get_args(BabiTask)[1:]),
    *(("lookup", {"task": task}) for task in get_args(LookupTask)[1:]),
    *(("routing", {"route": route}) for route in get_args(Route)[1:]),
    ("aggregate", {"kinds": list(get_args(counting.Kind)[5:9])}),
    ("aggregate", {"kinds": list(get_args(counting.Kind)[9:])}),
]


@pytest.mark.parametrize(("name", "params"), KINDS, ids=lambda value: str(value)[:40])
def test_every_kind_fills_its_length_and_is_solved_again_from_the_text(name, params):
    generator = GENERATORS[name]
    given_params = generator.params(**params)
    for questions, window in ((1, 0), (min(8, generator.max_questions), 3)):
        least = generator.min_length(given_params, questions)
        for length in (least, least + 3777):
            made = build(name, length=length, questions=questions, window=window, **params)
            assert made.tokens == count_tokens(made.context)
            assert 0.95 * length <= made.tokens <= length
            assert len({question.query for question in made.questions}) == questions
            for question in made.questions:
                found = generator.solve(given_params, made.context, question.query)
                assert found == question.gold != ()


@given(
    name=st.sampled_from(sorted(SOLVE)),
    length=st.integers(3000, 6000),
    seed=st.integers(-5, 10**6),
    window=st.integers(0, 40),
    questions=st.integers(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_laws_of_every_window(name, length, seed, window, questions):
    made = build(name, length=length, seed=seed, window=window, questions=questions)
    assert made.tokens == count_tokens(made.context)
    assert 0.95 * length <= made.tokens <= length
    assert len({question.query for question in made.questions}) == len(made.questions) == questions
    for question in made.questions:
        assert question.gold == SOLVE[name](made.context, question.query)
        assert question.gold == tuple(sorted(set(question.gold))) != ()
        words = re.findall(r"\w+", question.query)
        if question.answer_type in ("label", "comparison"):
            assert all(option in question.query for option in question.options)
            assert question.gold[0] in question.options
        else:
            assert not set(question.gold) & set(words)


@pytest.mark.parametrize("name", sorted(SOLVE))
def test_shortest_windows_hold_what_they_promise(name):
    generator = GENERATORS[name]
    for questions in (1, 2, generator.max_questions):
        least = generator.min_length(generator.params(), questions)
        made = build(name, length=least, questions=questions, seed=3)
        assert 0.95 * least <= made.tokens <= least
        assert all(q.gold == SOLVE[name](made.context, q.query) for q in made.questions)


def test_many_lines_in_a_short_text_leave_no_gap():
    made = build("babi", length=1000, seed=5, window=7, questions=1, task="qa5")
    assert 950 <= made.tokens == count_tokens(made.context) <= 1000


def test_questions_about_code_differ_and_lie_all_over_the_text():
    tree = str(Path(bank.__file__).parents[2])
    made = [
        build("codeqa", length=8000, window=window, questions=8, tree=tree) for window in range(8)
    ]
    for window in made:
        assert len({q.query.partition("? ")[0] for q in window.questions}) == 8
    places = [question.position for window in made for question in window.questions]
    quarters = Counter(int(4 * place) for place in places)
    assert all(quarters[quarter] >= 8 for quarter in range(4))
    assert Counter(q.gold for window in made for q in window.questions) == Counter(
        {(x,): 16 for x in "ABCD"}
    )
    assert len({window.context for window in made}) == 8


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_windows_differ_and_repeat(name):
    orders = [{"seed": seed, "window": window} for seed in (0, 1) for window in (0, 1)]
    size = {"length": 12_000, "questions": 1}
    texts = [build(name, **size, **order).context for order in orders]
    assert len(set(texts)) == 4
    assert texts == [build(name, **size, **order).context for order in orders]


@given(st.integers(0, 6), st.floats(0, 0.999))
def test_spread_hits_each_cell_once(k, shift):
    points = sorted(spread(index, shift) for index in range(2**k))
    gaps = [b - a for a, b in zip(points, [*points[1:], points[0] + 1], strict=True)]
    assert max(gaps) - min(gaps) < 1e-9
    assert all(0 <= point < 1 for point in points)


def test_needle_positions_are_balanced_over_windows_and_questions():
    made = [build("needle", length=4000, window=window, questions=2) for window in range(16)]
    positions = [[question.position for question in window.questions] for window in made]
    flat = sorted(position for window in positions for position in window)
    # 32 depths, one in each 32nd; a passage of the prose is 2 to 4 % of so short a text
    assert max(abs(p - (i + 0.5) / 32) for i, p in enumerate(flat)) < 0.07
    for column in zip(*positions, strict=True):
        assert 0.4 < sum(column) / 16 < 0.6  # neither question has a depth of its own
    assert all(min(pair) < 0.55 and max(pair) > 0.45 for pair in positions)


def test_needle_position_is_where_the_line_stands():
    made = build("needle")
    for question in made.questions:
        start = made.context.index(f"is {question.gold[0]}.")
        start = made.context.rindex("The access code", 0, start)
        assert question.position == start / len(made.context)


def test_needle_distractors_are_near_duplicates_on_both_sides():
    before = after = 0
    for window in range(8):
        made = build("needle", window=window, questions=2, distractors=9)
        for question in made.questions:
            name = re.search(r"for (\S+)\?", question.query)[1]
            word, number = name.split("-")
            lines = re.findall(
                rf"^The access code for ({word}-\d+) is (\d{{7}})( \(revoked, do not use\))?\.$",
                made.context,
                re.MULTILINE,
            )
            assert len(lines) == 10
            assert len({code for _, code, _ in lines}) == 10
            assert sum(bool(revoked) and found == name for found, _, revoked in lines) == 3
            assert sum(found.startswith(name) and found != name for found, _, _ in lines) == 3
            if number[0] != number[1]:
                assert f"{word}-{number[::-1]}" in {found for found, _, _ in lines}
            order = [revoked for found, _, revoked in lines if found == name]
            before += order.index("") > 0
            after += order.index("") < len(order) - 1
    assert before > 8 < after


def test_variables_chains_are_spread_and_in_order():
    made = build("variables", questions=2, hops=6, distractors=3)
    lines = re.findall(r"^VAR .*$", made.context, re.MULTILINE)
    assert len(lines) == 5 * 7
    assert len({line.split()[-1] for line in lines if " = VAR " not in line}) == 5
    for question in made.questions:
        assert len(question.gold) == 7
        places = [made.context.index(f"VAR {name} =") / len(made.context) for name in question.gold]
        assert min(places) < 0.2 < 0.8 < max(places)


def test_aggregate_answers_are_balanced():
    made = [build("aggregate", window=window, questions=4) for window in range(12)]
    gold = {kind: Counter() for kind in aggregate.KINDS}
    for window in made:
        assert [question.kind for question in window.questions] == list(aggregate.KINDS)
        for question in window.questions:
            gold[question.kind][question.gold[0]] += 1
    assert gold["most_common"] == dict.fromkeys(SUBJECTS, 2)
    assert gold["compare"] == dict.fromkeys(counting.OUTCOMES, 4)
    assert gold["count_user"]["0"] == 0
    assert len(gold["count"]) > 6


def test_aggregate_kinds_rotate_when_windows_ask_few():
    made = [build("aggregate", window=window, questions=2) for window in range(2)]
    kinds = [question.kind for window in made for question in window.questions]
    assert kinds == list(aggregate.KINDS)


def test_aggregate_mix_is_skewed_and_users_differ():
    rows = read_rows(build("aggregate", length=16_000).context)
    users, labels = (Counter(column) for column in zip(*rows, strict=True))
    assert max(labels.values()) > 1.5 * min(labels.values())
    assert len(users) == 12
    assert max(users.values()) > 4 * min(users.values())


def test_aggregate_frames_hold_no_other_word_of_the_lexicon():
    assert len(bank.FRAMES) >= 16
    text = " ".join((*bank.FRAMES, *bank.TAILS)).lower()
    assert [word for word in (*SUBJECTS, *SUBJECT_OF) if word in text] == []
    assert all(frame.count("{word}") == 1 for frame in bank.FRAMES)


def test_fewer_labels_are_possible():
    made = build("aggregate", labels=3, users=2, questions=8)
    assert len({label for _, label in read_rows(made.context)}) == 3
    assert all(q.gold == solve_aggregate(made.context, q.query) for q in made.questions)


@pytest.mark.parametrize("name", ["needle", "variables"])
def test_a_corpus_stays_verbatim_around_the_lines(name):
    text = "\n\n".join(
        f"Paragraph {i} of a user's text, number {i}. It ends here." for i in range(900)
    )
    made = build(name, source=Corpus([text], origin="x"), length=8000)
    planted = re.compile(r"\n?^(?:The access code for|VAR ).*\n+", re.MULTILINE)
    rest = planted.sub("", made.context).split()
    assert " ".join(rest[:-3]) in " ".join(text.split() * 2)
    assert all(q.gold == SOLVE[name](made.context, q.query) for q in made.questions)


def test_names_that_the_corpus_holds_are_never_planted():
    taken = [f"Onyx-{number}" for number in range(10, 100)]
    source = Corpus(
        [" ".join(taken) + ". ", *("Some text to read. " * 400 for _ in range(3))], origin="x"
    )
    with pytest.raises(DataError, match="corpus already holds"):
        build("needle", source=source, questions=40, length=20_000)


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_a_million_tokens_take_seconds(name):
    started = time.perf_counter()
    made = build(name, length=1_000_000, questions=1)
    assert time.perf_counter() - started < 15  # measured 1.1 s on two idle cores
    assert 950_000 <= made.tokens <= 1_000_000


@pytest.mark.skipif(not BOOKS.is_dir(), reason=f"the novels are absent ({BOOKS})")
@pytest.mark.parametrize("name", ["needle", "variables"])
def test_lines_in_real_novels_are_found_again(name):
    corpus = read_corpus(str(BOOKS / "*.txt"))
    for length in (10_000, 300_000):
        made = build(name, source=corpus, length=length)
        assert 0.95 * length <= made.tokens <= length
        assert all(q.gold == SOLVE[name](made.context, q.query) for q in made.questions)
