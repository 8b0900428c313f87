"""`fleet-eval conformance`: published cells from real model outputs, and what it says without."""

from __future__ import annotations

import json
import shutil

import pytest

from fleet_rlm.cli.conformance import conformance_command
from fleet_rlm.errors import UsageError
from fleet_rlm.suites.conformance import reproduce
from tests.shared_data import shared_data


def test_every_published_cell_is_reproduced(capsys):
    assert conformance_command(shared_data("regress"), as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["equal"] == found["compared"] == 20 + 55


def test_a_figure_that_differs_fails(tmp_path, capsys):
    path = tmp_path / "results" / "gpt4" / "preds_math_find.jsonl"
    path.parent.mkdir(parents=True)
    rows = [{"prediction": "88", "ground_truth": 88}, {"prediction": "88", "ground_truth": 89}]
    path.write_text("\n".join(map(json.dumps, rows)))
    (cell,) = reproduce(tmp_path)
    assert (cell.published, cell.ours, cell.samples, cell.equal) == ("60.00", "50.00", 2, False)
    assert conformance_command(tmp_path, as_json=False) == 1
    assert "0 of 1 published cells" in capsys.readouterr().out


def test_a_cell_published_as_below_five_percent(tmp_path):
    path = tmp_path / "claude2" / "preds_code_run.jsonl"
    path.parent.mkdir()
    path.write_text('{"prediction": "7", "ground_truth": 8}\n')
    (cell,) = reproduce(tmp_path)
    assert (cell.published, cell.equal) == ("< 5", True)


@pytest.mark.parametrize(
    ("text", "words"),
    [('{"prediction": "1"}', "column 'ground_truth'"), ("{", "unreadable"), ("", "is missing")],
)
def test_nothing_is_compared_on_half_read_data(tmp_path, text, words):
    path = tmp_path / "gpt4" / "preds_passkey.jsonl"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        reproduce(tmp_path)


def test_absent_data_is_said_with_the_way_to_get_it(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match="git clone"):
            conformance_command(folder, as_json=False)


def test_data_of_one_benchmark_is_enough(tmp_path):
    source = shared_data("regress/babilong")
    name = "gemini-3-flash-preview"
    (tmp_path / name).mkdir()
    for path in (source / name).glob("qa1_0k_*.csv"):
        shutil.copy(path, tmp_path / name)
    (cell,) = reproduce(tmp_path)
    assert (cell.task, cell.ours, cell.equal) == ("qa1 0k", "1000/1000", True)
