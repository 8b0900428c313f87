"""The error tree: owners, exit codes, one-line messages."""

import pytest

from fleet_rlm import errors


def test_a_message_is_one_line_and_ends_with_its_fix():
    error = errors.UsageError("No suite 'a'\n  in ./evals.", fix="fleet-eval list")
    assert str(error) == "No suite 'a' in ./evals. Try: fleet-eval list"


def test_a_long_message_is_cut():
    assert len(errors.UsageError("x" * 10_000).message) <= 400


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.UsageError, 2),
        (errors.BudgetExhausted, 3),
        (errors.SandboxUnavailable, 5),
    ],
)
def test_exit_codes(kind, code):
    assert kind("x").exit_code == code


def test_boundary_gives_a_foreign_exception_its_owner_and_keeps_the_cause():
    with (
        pytest.raises(errors.ScorerError, match="scoring s1: ZeroDivisionError") as caught,
        errors.boundary(errors.ScorerError, "scoring s1"),
    ):
        1 / 0  # noqa: B018
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.boundary == "scorer"


def test_boundary_lets_our_own_errors_through():
    limit = errors.LimitReached("wall", 3, 2)
    with pytest.raises(errors.LimitReached) as caught, errors.boundary(errors.DataError, "x"):
        raise limit
    assert caught.value is limit


def test_boundary_lets_an_interrupt_through():
    with pytest.raises(KeyboardInterrupt), errors.boundary(errors.DataError, "x"):
        raise KeyboardInterrupt


def test_nearest_offers_a_close_name_or_the_list():
    assert errors.nearest("oolnog", ["oolong", "needle"]) == "Did you mean 'oolong'?"
    assert errors.nearest("zzz", ["b", "a"]) == "Known: a, b."
    assert errors.nearest("x", []) == "None are known."
