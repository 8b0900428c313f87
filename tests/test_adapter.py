"""The lean adapter writes and reads what dspy's does."""

from typing import Literal

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_rlm.lm.adapter import LeanChatAdapter
from fleet_rlm.program.registry import AnswerQuery
from fleet_rlm.program.rlm import RLM
from fleet_rlm.sandbox.interpreter import LocalInterpreter


class Typed(dspy.Signature):
    """Many kinds of field."""

    text: str = dspy.InputField()
    numbers: list[int] = dspy.InputField()
    table: dict = dspy.InputField()
    label: Literal["a", "b"] = dspy.OutputField()
    score: float = dspy.OutputField(desc="from 0 to 1")
    notes: list[str] = dspy.OutputField()


class Shout(str):
    """A text that is no plain `str`."""


plain = st.one_of(
    st.text(),
    st.integers(),
    st.none(),
    st.lists(st.text()),
    st.dictionaries(st.text(), st.floats()),
)
inputs = st.fixed_dictionaries(
    {"text": st.one_of(plain, st.builds(Shout, st.text()))},
    optional={"numbers": plain, "table": plain},
)


@given(inputs, st.lists(inputs, max_size=2))
def test_prompts_are_equal_character_for_character(given_inputs, shots):
    demos = [shot | {"label": "a", "score": 0.5, "notes": ["x"]} for shot in shots]
    stock, lean = (
        adapter.format(Typed, [dict(demo) for demo in demos], dict(given_inputs))
        for adapter in (dspy.ChatAdapter(), LeanChatAdapter())
    )
    assert stock == lean


@pytest.mark.parametrize("signature", [Typed, AnswerQuery])
def test_replies_are_read_alike(signature):
    reply = "\n\n".join(
        f"[[ ## {name} ## ]]\n{value}"
        for name, value in {"label": "b", "score": "0.25", "notes": '["y"]', "answer": "z"}.items()
        if name in signature.output_fields
    )
    assert LeanChatAdapter().parse(signature, reply) == dspy.ChatAdapter().parse(signature, reply)


def test_prompts_of_an_rlm_with_history_and_demos_are_equal():
    rlm = RLM(AnswerQuery, guidance="Look first.")
    signature = rlm.action_signature(LocalInterpreter, recursive=True)
    from dspy.primitives.repl_types import REPLHistory

    history = REPLHistory().append(reasoning="r", code="print(1)", output="1")
    step = {
        "variables_info": ["Variable: `context`", "Variable: `query`"],
        "repl_history": history,
        "iteration": "1/20",
    }
    demo = step | {"reasoning": "because", "code": "SUBMIT('x')", "augmented": True}
    stock, lean = (
        adapter.format(signature, [dict(demo)], dict(step))
        for adapter in (dspy.ChatAdapter(), LeanChatAdapter())
    )
    assert stock == lean
