"""Asks a predictor for texts, without what `dspy.Predict` looks up for other kinds of field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from fleet_rlm.lm.adapter import LeanChatAdapter, text_outputs
from fleet_rlm.lm.metered import MeteredLM
from fleet_rlm.lm.plain import FITS, is_watched

if FITS:
    from dspy.clients._deprecation import adapter_message_call

_SEVERAL = ("n", "num_generations")


def predict(
    predictor: dspy.Predict, signature: type[dspy.Signature], **inputs: Any
) -> dspy.Prediction:
    """What `predictor(signature=signature, **inputs)` gives: the same call, prediction and trace.

    Half of what DSPy spends around a call of its own goes into fields that could be tools, types
    with evidence, or several answers. Where one of them may be, or someone watches, it is asked.

    Args:
        predictor: of a program.
        signature: with which it is asked.
        inputs: all fields that the signature takes.

    Raises:
        LMError: the model's service failed.
        AdapterParseError: the reply did not hold the outputs.
    """
    adapter, lm = dspy.settings.adapter, predictor.lm or dspy.settings.lm
    if not _is_plain(predictor, signature, adapter, lm):
        found: dspy.Prediction = predictor(signature=signature, **inputs)
        return found
    messages = adapter.format(signature, predictor.demos, inputs)
    try:
        with adapter_message_call(lm, messages):
            outputs = lm(messages=messages)
        fields = _read(adapter, lm, signature, outputs)
    except AdapterParseError:
        if not adapter.use_json_adapter_fallback:
            raise
        again = adapter._make_json_adapter_fallback()
        fields = again(lm, {}, signature, predictor.demos, inputs)
    found = predictor._forward_postprocess(fields, signature, **inputs)
    return found


def _is_plain(predictor: Any, signature: Any, adapter: Any, lm: Any) -> bool:
    if not FITS or type(predictor) is not dspy.Predict or type(adapter) is not LeanChatAdapter:
        return False
    if not isinstance(lm, MeteredLM) or any(lm.kwargs.get(name) for name in _SEVERAL):
        return False
    if predictor.config or predictor.fields or predictor.callbacks or adapter.callbacks:
        return False
    return bool(text_outputs(signature)) and not is_watched() and not dspy.settings.track_usage


def _read(
    adapter: LeanChatAdapter, lm: MeteredLM, signature: Any, outputs: Sequence[Any]
) -> list[dict[str, Any]]:
    (reply,) = outputs
    if type(reply) is str and reply:
        return [adapter.parse(signature, reply)]
    found: list[dict[str, Any]] = adapter._call_postprocess(signature, signature, outputs, lm, {})
    return found
