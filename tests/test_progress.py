"""The figures of a run while it goes on."""

import re

import pytest

from fleet_rlm.runner.progress import Tally
from fleet_rlm.runner.record import Record


def record(number, score):
    return Record(
        sample=f"s{number}",
        epoch=0,
        task="t",
        cluster=f"c{number}",
        length=1000,
        status="scored",
        stop="submitted",
        score=score,
    )


def test_a_margin_is_shown_when_it_tells_something_and_is_that_of_all_at_the_end():
    tally = Tally("mine", clock=lambda: 0.0)
    tally.start(4, [])
    for number, score in enumerate((1.0, 1.0, 1.0)):
        tally.add(record(number, score), in_flight=1)
    assert "score 1.000  $" in tally.line(), "equal scores show no certainty"
    tally.add(record(3, 0.0), in_flight=0)
    shown = re.search(r"score 0\.750 ±(\S+)", tally.line())
    # t(0.975, 3) times the standard deviation of (1, 1, 1, 0) over the root of 4
    assert float(shown[1]) == pytest.approx(3.182 * 0.5 / 2, abs=1e-3)
