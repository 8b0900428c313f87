"""Who spent what, and when a sample must stop."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from fleet_rlm.errors import LimitReached, UsageError
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
        (Limits(wall_s=5.0), "wall"),
        (Limits(wall_s=None, tokens=12), "tokens"),
        (Limits(wall_s=None, usd=0.5), "usd"),
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
    assert usage == Usage(calls=1, input_tokens=1_000_000, output_tokens=100_000, usd=2.4)


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
