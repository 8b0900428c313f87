"""How many calls are in flight, which failures are tried again, and what waiting costs a sample."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import FREE, ScriptedEngine

from fleet_rlm.board import Board, Column, Head
from fleet_rlm.errors import LimitReached
from fleet_rlm.ledger import Ledger, Limits
from fleet_rlm.lm import throttle
from fleet_rlm.lm.cancel import CANCEL_SETTING, Cancelled, CancelScope
from fleet_rlm.lm.metered import MeteredLM
from fleet_rlm.lm.throttle import Gate, backoff, is_overload, is_transient, with_jitter


def make_lm(script, **arguments):
    engine = ScriptedEngine(script)
    return MeteredLM("scripted", role="root", price=FREE, engine=engine, cache=False, **arguments)


@pytest.fixture
def quick(monkeypatch):
    """Backoff in milliseconds."""
    monkeypatch.setattr(throttle, "backoff", lambda tried: 0.001 * tried)


@pytest.mark.parametrize(
    ("error", "overload", "transient"),
    [
        (dspy.LMRateLimitError("slow down"), True, False),
        (dspy.LMServerError("busy", status=503), True, True),
        (dspy.LMServerError("broken", status=500), False, True),
        (dspy.LMTransportError("reset"), False, True),
        (dspy.LMTimeoutError("late"), False, True),
        (dspy.LMProviderError("no JSON"), False, True),
        (dspy.LMAuthError("no key"), False, False),
        (dspy.LMInvalidRequestError("bad"), False, False),
        (ValueError("ours"), False, False),
    ],
)
def test_failures_are_told_apart(error, overload, transient):
    assert (is_overload(error), is_transient(error)) == (overload, transient)


def test_a_transient_failure_is_tried_again_and_a_lasting_one_raised(quick):
    broken = make_lm(lambda _, number: dspy.LMTransportError("cut") if number < 4 else "back")
    assert broken("hello") == ["back"]
    assert len(broken.engine.prompts) == 4
    down = make_lm(lambda *_: dspy.LMServerError("down", status=500))
    with pytest.raises(dspy.LMServerError, match="down"):
        down("hello")
    assert len(down.engine.prompts) == throttle.TRIES
    refused = make_lm(lambda *_: dspy.LMAuthError("who?"))
    with pytest.raises(dspy.LMAuthError):
        refused("hello")
    assert len(refused.engine.prompts) == 1


def test_an_overload_is_waited_out_beyond_the_usual_tries(quick):
    full = throttle.TRIES + 3
    lm = make_lm(lambda _, number: dspy.LMRateLimitError("full") if number <= full else "room")
    ledger = Ledger(Limits(working_s=10.0))
    with dspy.context(fleet_ledger=ledger):
        assert lm("hello") == ["room"]
    assert len(lm.engine.prompts) == full + 1
    assert 0 < ledger.working_s < ledger.seconds


def test_patience_with_an_overload_ends(quick, monkeypatch):
    monkeypatch.setattr(throttle, "PATIENCE_S", 0.01)
    lm = make_lm(lambda *_: dspy.LMRateLimitError("full"))
    with pytest.raises(dspy.LMRateLimitError):
        lm("hello")
    assert 2 < len(lm.engine.prompts) < 20


def test_the_hint_of_the_service_is_waited_for(quick):
    lm = make_lm(lambda _, n: dspy.LMRateLimitError("full", retry_after=0.05) if n == 1 else "room")
    started = time.monotonic()
    lm("hello")
    assert time.monotonic() - started >= 0.05


def test_a_hint_of_no_seconds_is_a_hint_however_often_it_comes():
    # "Retry-After: 0", or the date of a moment ago: the usual pauses would be 0.5 to 8 s.
    lm = make_lm(lambda _, n: dspy.LMRateLimitError("full", retry_after=0.0) if n < 6 else "room")
    started = time.monotonic()
    assert lm("hello") == ["room"]
    assert 5 * throttle.SHORTEST_DELAY_S <= time.monotonic() - started < 2


@given(st.integers(1, 50))
def test_pauses_grow_to_a_bound_with_jitter_on_top(tried):
    assert 0.5 <= backoff(tried) <= backoff(tried + 1) <= throttle.LONGEST_DELAY_S
    pause = with_jitter(backoff(tried))
    assert backoff(tried) <= pause <= 1.25 * backoff(tried)


def test_the_limit_is_cut_once_a_burst_and_grows_by_clean_rounds():
    now = [100.0]
    gate = Gate(clock=lambda: now[0])
    assert gate.limit is None
    for _ in range(20):
        gate.enter(None)
    gate.overloaded(20, 0.0)
    gate.overloaded(20, 0.0)  # the same burst
    assert gate.limit == 16
    for _ in range(20):
        gate.leave()
    gate.answered()  # asked before the cut
    now[0] += throttle.SHORTEST_CUT_S

    def one_round(in_flight):
        for _ in range(in_flight):
            gate.enter(None)
        for _ in range(gate.limit):
            gate.answered()
        for _ in range(in_flight):
            gate.leave()

    one_round(16)
    assert gate.limit == 17
    one_round(5)  # room that nobody used proves nothing
    assert gate.limit == 17
    one_round(17)
    assert gate.limit == 18
    assert gate.board.read(Head.CUTS) == 1


def test_no_more_calls_than_the_limit_are_in_flight_over_two_processes():
    here = Board(2)
    gates = [Gate(here), Gate(Board(2, row=1, fd=here.fd))]
    with here.head() as head:
        head[Head.LIMIT] = 3
    peak, lock = [0], threading.Lock()

    def call(number):
        gate = gates[number % 2]
        gate.enter(None)
        with lock:
            peak[0] = max(peak[0], int(here.total(Column.IN_FLIGHT)))
        time.sleep(0.002)
        gate.leave()

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(call, range(40)))
    assert peak[0] == 3
    assert here.total(Column.IN_FLIGHT) == here.total(Column.WAITING) == 0


def test_a_sample_that_waits_for_room_can_meet_its_wall_limit_and_be_cancelled():
    gate = Gate()
    gate.enter(None)
    gate.overloaded(1, 0.0)
    lm = make_lm(lambda *_: "hello", gate=gate)
    with (
        dspy.context(fleet_ledger=Ledger(Limits(working_s=None, wall_s=0.05))),
        pytest.raises(LimitReached, match="wall"),
    ):
        lm("hello")
    scope = CancelScope()
    threading.Timer(0.05, scope.cancel).start()
    with dspy.context(**{CANCEL_SETTING: scope}), pytest.raises(Cancelled):
        lm("hello")
    assert lm.engine.prompts == []
    assert gate.board.total(Column.WAITING) == 0


def test_a_call_that_waits_between_tries_is_cancelled_at_once():
    lm = make_lm(lambda *_: dspy.LMRateLimitError("full", retry_after=60.0))
    scope = CancelScope()
    threading.Timer(0.05, scope.cancel).start()
    started = time.monotonic()
    with dspy.context(**{CANCEL_SETTING: scope}), pytest.raises(Cancelled):
        lm("hello")
    assert time.monotonic() - started < 5


def test_cache_hits_are_booked_apart(tmp_path):
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    price = type(FREE)(input=1e6, output=0.0, cached_input=0.0, source="flag")
    engine = ScriptedEngine(lambda *_: "hello")
    lm = MeteredLM("scripted", role="root", price=price, engine=engine, cache=True)
    ledger = Ledger()
    with dspy.context(fleet_ledger=ledger):
        assert lm("hello") == lm("hello") == ["hello"]
    spent = ledger.total
    assert (spent.calls, spent.cache_hits, len(engine.prompts)) == (2, 1, 1)
    assert (spent.usd, spent.saved_usd, spent.input_tokens) == (10.0, 10.0, 10)


def test_calls_of_an_event_loop_are_booked_limited_and_retried_alike(quick):
    import asyncio

    lm = make_lm(lambda _, number: dspy.LMServerError("once") if number == 1 else "hello")
    ledger = Ledger(Limits(tokens=15))

    async def ask():
        with dspy.context(fleet_ledger=ledger):
            first = await lm.acall("hello")
            with pytest.raises(LimitReached):
                await lm.acall("again")
            return first

    assert asyncio.run(ask()) == ["hello"]
    assert ledger.total.calls == 1
    assert len(lm.engine.prompts) == 2
