"""The benchmarks' own rules, bug for bug: what their own code, executed, gives for these inputs."""

from __future__ import annotations

from datetime import date

import pytest

from fleet_rlm.scoring import oolong, ruler

# gold, kind, output, what is parsed, score
OOLONG = [
    ("entity", "label", "Label: entity", "entity", 1.0),
    ("entity", "label", "Label: **entity**", "entity", 1.0),
    ("entity", "label", "Label: Entity", "Entity", 0.0),
    ("entity", "label", "entity", "entity", 1.0),
    ("entity", "label", "The most common label is entity", "entity", 1.0),
    ("entity", "label", "The most common label is entity.", "entity.", 0.0),
    (
        "description and abstract concept",
        "label",
        "Label: description and abstract concept",
        "description and abstract concept",
        1.0,
    ),
    (
        "description and abstract concept",
        "label",
        "description and abstract concept",
        "concept",
        0.0,
    ),
    ("42", "number", "Answer: 42", "42", 1.0),
    ("42", "number", "Answer: 43", "43", 0.75),
    ("42", "number", "Answer: 40", "40", 0.5625),
    ("42", "number", "Answer: 42 entries", "42 entries", 0.0),
    ("42", "number", "Answer: 1,042", "1,042", 0.0),
    ("42", "number", "I count 44", "I count 44", 0.0),
    ("42", "number", "44", "44", 0.5625),
    ("42", "number", "The count for this data set equals 44", "44", 0.5625),
    ("76063", "user", "User: 76063", "76063", 1.0),
    ("76063", "user", "User: [76063]", "76063", 1.0),
    ("76063", "user", "User: 76064", "76064", 0.0),
    (
        "more common than",
        "comparison",
        "Answer: numeric value is more common than location",
        "more common",
        1.0,
    ),
    (
        "more common than",
        "comparison",
        "Answer: numeric value is less common than location",
        "less common",
        0.0,
    ),
    (
        "same frequency as",
        "comparison",
        "Answer: location has the same frequency as entity",
        "same frequency",
        1.0,
    ),
    ("more common than", "comparison", "Answer: more common than", "more common than", 1.0),
    (
        "more common than",
        "comparison",
        "numeric value is more common than location",
        "location",
        0.0,
    ),
    ("more common than", "comparison", "more common", "more common", 1.0),
    (date(2023, 1, 6), "date", "Date: 01/06/2023", "01/06/2023", 1.0),
    (date(2023, 1, 6), "date", "Date: Jan 06, 2023", "Jan 06, 2023", 1.0),
    (date(2023, 1, 6), "date", "Date: 2023-01-07", "2023-01-07", 0.0),
    ("May 2023", "month_year", "Answer: May 2023", "May 2023", 1.0),
]


@pytest.mark.parametrize(("gold", "kind", "output", "parsed", "score"), OOLONG)
def test_oolong_synth(gold, kind, output, parsed, score):
    assert oolong.parse(output) == parsed
    assert oolong.synth_score(output, gold, kind) == score


@pytest.mark.parametrize(
    "output", ["", "  \n ", ":", "Date: no date at all", "Answer: " + "9" * 5000]
)
def test_oolong_gives_zero_to_what_it_cannot_read(output):
    assert oolong.synth_score(output, "42", "number") == 0.0
    assert oolong.synth_score(output, date(2023, 1, 6), "date") == 0.0


RULER_ALL = [
    (["The numbers are 1234567 and 7654321."], [["1234567", "7654321"]], 100.0),
    (["only 1234567"], [["1234567", "7654321"]], 50.0),
    (["12345678"], [["1234567"]], 100.0),
    (["abcde\x00FGHIJ"], [["ABCDE", "fghij"]], 100.0),
    ([""], [["x"]], 0.0),
    (["a", "b c"], [["a"], ["b", "z", "c"]], 83.33),
]


@pytest.mark.parametrize(("answers", "references", "score"), RULER_ALL)
def test_ruler_string_match_all(answers, references, score):
    each = map(ruler.string_match_all, answers, references)
    assert round(sum(each) / len(answers) * 100, 2) == score
