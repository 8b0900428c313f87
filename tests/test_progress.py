"""The figures of a run while it goes on."""

import io
import re

import pytest

from fleet_rlm.runner.progress import LiveProgress, Tally
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


def test_the_time_left_counts_what_is_in_flight_and_fits_a_narrow_terminal(monkeypatch):
    now, shown = [0.0], io.StringIO()
    tally = Tally("mine", clock=lambda: now[0])
    monkeypatch.setenv("COLUMNS", "60")
    live = LiveProgress(tally, shown)
    live.started(100, [])
    now[0] = 10.0
    live.recorded(record(0, 1.0), in_flight=49)
    assert tally.eta_s == pytest.approx(10 / 25.5 * 74.5)
    live.ended()
    assert "eta" not in tally.line()
    last = shown.getvalue().strip().splitlines()
    assert last == ["mine  1/100  score 1.000  $0.0000  49 in flight"]
