"""Calls of texts alone are asked, answered, booked and refused as DSPy does it."""

import runpy
import warnings

import dspy
import pytest
from dspy.lm15 import (
    AuthError,
    LM15Error,
    Message,
    Request,
    Response,
    TextPart,
    ThinkingPart,
    Usage,
)
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import AdapterParseError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fleet_rlm.ledger import Ledger
from fleet_rlm.lm import metered, plain
from fleet_rlm.lm.adapter import LeanChatAdapter
from fleet_rlm.lm.metered import LEDGER_SETTING, MeteredLM
from fleet_rlm.lm.prices import parse_price
from fleet_rlm.program.predict import predict

SPENT = Usage(input_tokens=100, output_tokens=7, total_tokens=107, cache_read_tokens=40)


class Engine:
    """Answers every call alike and remembers what it was asked."""

    def __init__(self, *parts, finish="stop", error: LM15Error | None = None):
        self.asked: list[Request] = []
        self.parts, self.finish, self.error = parts or (TextPart(text="fine"),), finish, error

    def complete(self, request: Request) -> Response:
        self.asked.append(request)
        if self.error:
            raise self.error
        message = Message(role="assistant", parts=self.parts)
        return Response(id="1", model="m", message=message, finish_reason=self.finish, usage=SPENT)


class Watcher(BaseCallback):
    def __init__(self):
        self.calls = 0

    def on_lm_start(self, call_id, instance, inputs):
        self.calls += 1


def ours(engine, **given) -> MeteredLM:
    price = parse_price("1/2")
    return MeteredLM("openai/m", role="root", price=price, engine=engine, cache=False, **given)


def outcome(call, *args, **kwargs):
    """What a call gives or raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call(*args, **kwargs)
    except (dspy.LMError, AdapterParseError, ValueError, TypeError) as error:
        return type(error), str(error)


texts = st.one_of(st.text(), st.just("a \ud800 b"), st.just([{"type": "text", "text": "part"}]))
rows = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "developer", "nobody"]),
        "content": texts,
    },
    optional={"name": st.just("n")},
)
defaults = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([None, 0.0, 0.7]),
        "max_tokens": st.sampled_from([None, 50]),
        "n": st.sampled_from([1, 2]),
        "logprobs": st.just(True),
        "seed": st.just(3),
    },
)


TALK = [
    {"role": role, "content": text}
    for role, text in (("system", "Be brief."), ("user", "a"), ("assistant", "é"), ("user", "b"))
]


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.text(), st.lists(rows, max_size=4)), defaults, st.one_of(st.just({}), defaults))
@example(TALK, {"temperature": 0.0, "max_tokens": 50, "seed": 3}, {})
@example("a", {"temperature": None, "n": 1}, {})
def test_a_call_is_asked_and_answered_as_by_dspy(asked, defaults, given_to_call):
    call = {"messages": asked} if isinstance(asked, list) else {"prompt": asked}
    one, other = Engine(), Engine()
    stock = dspy.LM("openai/m", engine=other, cache=False, num_retries=0, **defaults)
    found = outcome(ours(one, **defaults), **call, **given_to_call)
    assert found == outcome(stock, **call, **given_to_call)
    assert one.asked == other.asked


@pytest.mark.parametrize(
    "engine",
    [
        lambda: Engine(),
        lambda: Engine(ThinkingPart(text="hm"), TextPart(text="well")),
        lambda: Engine(error=AuthError("no such key", status=401)),
    ],
)
def test_a_watched_call_gives_and_costs_the_same(engine):
    found = []
    for watchers in ([], [Watcher()]):
        ledger = Ledger()
        with dspy.context(callbacks=watchers, **{LEDGER_SETTING: ledger}):
            replied = outcome(ours(engine()), "x")
        assert [watcher.calls for watcher in watchers] == [1] * len(watchers)
        found.append((replied, ledger.total.to_json() | {"seconds": None}))
    assert found[0] == found[1]


def test_a_model_whose_settings_change_asks_with_the_new_ones():
    engine = Engine()
    lm = ours(engine, temperature=0.5)
    lm("x")
    lm.copy(temperature=0.9)("x")
    lm.copy(model="openai/other")("x")
    assert [(r.model, r.config.temperature) for r in engine.asked] == [
        ("openai/m", 0.5), ("openai/m", 0.9), ("openai/other", 0.5)
    ]  # fmt: skip


class Act(dspy.Signature):
    """Act."""

    seen: str = dspy.InputField()
    thought: str = dspy.OutputField()
    code: str = dspy.OutputField()


@pytest.mark.parametrize(
    "reply",
    [
        "[[ ## thought ## ]]\nhm\n[[ ## code ## ]]\n1\n[[ ## completed ## ]]",
        '{"thought": "hm", "code": "1"}',
        "nothing of the kind",
        "",
    ],
)
def test_a_predictor_gives_and_notes_the_same_watched_or_not(reply):
    found = []
    for watchers in ([], [Watcher()]):
        engine, predictor, trace = Engine(TextPart(text=reply)), dspy.Predict(Act), []
        predictor.demos = [{"seen": "b", "thought": "t", "code": "c"}]
        here = {"lm": ours(engine), "adapter": LeanChatAdapter(), "trace": trace}
        with dspy.context(callbacks=watchers, **here):
            given = outcome(predict, predictor, Act, seen="a")
        noted = [(asked is predictor, inputs, dict(made)) for asked, inputs, made in trace]
        found.append((getattr(given, "toDict", lambda: given)(), noted, engine.asked))  # noqa: B023
    assert found[0] == found[1]
    assert found[0][2]


def test_the_installed_dspy_is_the_one_whose_steps_these_are():
    assert plain.FITS


def test_another_dspy_takes_its_own_steps(monkeypatch):
    asked = outcome(ours(Engine()), "x")
    monkeypatch.setattr(dspy, "__version__", "3.4.2")
    other = runpy.run_path(plain.__file__)
    assert not other["is_plain"](ours(Engine()))
    assert "execution" not in other  # nothing private is even imported
    monkeypatch.setattr(metered, "is_plain", other["is_plain"])
    assert outcome(ours(Engine()), "x") == asked
