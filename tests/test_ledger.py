"""Who spent what, and when a sample must stop."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_rlm.errors import BudgetExhausted, LimitReached, UsageError
from fleet_rlm.ledger import Ledger, Limits, Usage
from fleet_rlm.lm.prices import Price, find_price, parse_price


def test_bookings_of_many_threads_add_up():
    ledger = Ledger()
    one = Usage(calls=1, input_tokens=10, output_tokens=2, usd=0.5)
    with ThreadPoolExecutor(8) as pool:
        for number in range(400):
            pool.submit(ledger.book, "sub" if number % 4 else "root", one)
    assert ledger.by_role["root"].calls == 100
    assert ledger.by_role["sub"] == Usage(
        calls=300, input_tokens=3000, output_tokens=600, usd=150.0
    )
    assert ledger.total.tokens == 4800


@pytest.mark.parametrize(
    ("limits", "kind"),
    [
        (Limits(working_s=None, wall_s=5.0), "wall"),
        (Limits(working_s=None, tokens=12), "tokens"),
        (Limits(working_s=None, usd=0.5), "usd"),
    ],
)
def test_a_met_limit_refuses_the_next_call_but_not_the_grace(limits, kind):
    now = [0.0]
    ledger = Ledger(limits, clock=lambda: now[0])
    ledger.check()
    now[0] = 5.0
    ledger.book("root", Usage(calls=1, input_tokens=10, output_tokens=2, usd=0.5))
    with pytest.raises(LimitReached) as caught:
        ledger.check()
    assert caught.value.kind == kind
    with ledger.grace():
        ledger.check()
    with pytest.raises(LimitReached):
        ledger.check()


def test_a_call_costs_its_fresh_cached_and_written_tokens():
    price = Price(input=2.0, output=10.0, cached_input=0.5, source="flag")
    usage = price.cost(input_tokens=1_000_000, output_tokens=100_000, cached_tokens=400_000)
    assert usage == Usage(
        calls=1, input_tokens=1_000_000, cached_tokens=400_000, output_tokens=100_000, usd=2.4
    )


def test_prices_come_from_the_list_without_a_network():
    price = find_price("openai/gpt-5-mini")
    assert 0 < price.cached_input < price.input < price.output
    assert "dspy" in price.source


def test_an_unknown_price_is_an_error_that_names_the_flag():
    with pytest.raises(UsageError, match="--price"):
        find_price("acme/unheard-of")


@pytest.mark.parametrize("text", ["1", "a/b", "1/-2", "1/2/3", ""])
def test_a_malformed_price_is_refused(text):
    with pytest.raises(UsageError, match="dollars per million"):
        parse_price(text)


def test_time_in_which_a_call_waits_for_a_rate_limit_is_no_working_time():
    now = [0.0]
    ledger = Ledger(Limits(working_s=5.0), clock=lambda: now[0])
    with ledger.waiting():
        now[0] = 10.0
        assert ledger.working_s == 0.0
        with ledger.branch().waiting():  # a sub-call beside it: the union counts, not the sum
            now[0] = 20.0
        now[0] = 21.0
    now[0] = 24.0
    assert (ledger.seconds, ledger.working_s, ledger.seconds_left) == (24.0, 3.0, 2.0)
    ledger.check()
    now[0] = 26.0
    with pytest.raises(LimitReached, match="working"):
        ledger.branch().check()


def test_a_branch_books_in_its_trunk_and_keeps_totals_of_its_own():
    trunk = Ledger(Limits(tokens=30))
    first, second = trunk.branch(), trunk.branch()
    first.book("sub", Usage(calls=1, input_tokens=20))
    second.book("root", Usage(calls=2, output_tokens=10))
    assert (first.total.calls, second.total.calls, trunk.total.calls) == (1, 2, 3)
    with pytest.raises(LimitReached, match="tokens"):
        first.check()
    with second.grace():
        first.check()


class _Purse:
    def __init__(self):
        self.booked = []

    def book(self, usage):
        self.booked.append(usage.usd)

    def check(self):
        if sum(self.booked) >= 1.0:
            raise BudgetExhausted("spent")


def test_the_cap_of_a_run_holds_in_every_branch_and_grace_does_not_lift_it():
    purse = _Purse()
    ledger = Ledger(purse=purse)
    ledger.branch().book("root", Usage(usd=1.0))
    assert purse.booked == [1.0]
    with ledger.grace(), pytest.raises(BudgetExhausted):
        ledger.branch().check()


@given(st.builds(Usage, calls=st.integers(0, 9), input_tokens=st.integers(0, 9)))
def test_usage_comes_back_as_stored_and_adds_up(usage):
    assert Usage.from_json(usage.to_json()) == usage
    assert usage + Usage() == usage
    assert usage - usage == Usage()
