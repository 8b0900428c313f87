"""What programs share that read a text in prompts: `Reader`, and the module around it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import dspy
from dspy.signatures.signature import ensure_signature

from fleet_rlm.errors import UsageError
from fleet_rlm.program.context_ref import ContextRef, shorten
from fleet_rlm.program.recursion import ProgramSettings
from fleet_rlm.suites.tokens import count_tokens

EXCERPT_CHARS = 2_000
"""Characters of an input that a trace and a worked example keep."""

_MARGIN = 32  # tokens; dspy's JSON form is a little longer, and texts may meet inside a token
_LEAST = 100  # tokens of text that are worth a call

INPUTS = ("context", "query")
TOLD = ("final_reasoning", "stop", "trajectory")
"""What predictions say beside the outputs."""


class Reader(dspy.Predict):
    """A `dspy.Predict` for inputs that may be longer than anything else in the prompt.

    A `ContextRef` stands for its text. What stays behind, in traces and so in demos and in what
    optimizers read, is an excerpt of each long input; demos are shown as excerpts as well, so a
    prompt grows with its own text only.
    """

    def room(self, max_tokens: int, *, text: str, **inputs: str) -> int:
        """Tokens left for one input in a prompt of at most `max_tokens`, all else counted.

        Args:
            max_tokens: instructions, demos, inputs and the text together.
            text: name of the input.
            inputs: the other inputs.

        Raises:
            UsageError: there is no room for text.
        """
        adapter = dspy.settings.adapter or dspy.ChatAdapter()
        demos = [_excerpts(demo) for demo in self.demos]
        messages = adapter.format(self.signature, demos, {**inputs, text: ""})
        used = _MARGIN + sum(count_tokens(str(message["content"])) for message in messages)
        if max_tokens - used < _LEAST:
            raise UsageError(
                f"A prompt of {max_tokens:,} tokens has no room for the {text}: instructions, demos"
                f" and query take {used:,}.",
                fix=f"max_tokens of {2 * used + _LEAST:,} or more",
            )
        return max_tokens - used

    def _forward_preprocess(self, **kwargs: Any) -> Any:
        given = {k: v.read() if isinstance(v, ContextRef) else v for k, v in kwargs.items()}
        lm, config, signature, demos, inputs = super()._forward_preprocess(**given)
        return lm, config, signature, [_excerpts(demo) for demo in demos], inputs

    def _forward_postprocess(self, completions: Any, signature: Any, **kwargs: Any) -> Any:
        return super()._forward_postprocess(completions, signature, **_excerpts(kwargs))


class TextProgram(dspy.Module):
    """A program that answers `query` from the text `context`.

    Args:
        signature: inputs `context` and `query`, any outputs.
        guidance: initial task guidance; the signature's own instructions when empty.
        settings: values for the names that `settings_type` has; defaults for the rest.

    Raises:
        UsageError: other inputs, or outputs of these names: final_reasoning, stop, trajectory.
    """

    summary: ClassVar[str]
    """For lists of programs."""

    runs_code: ClassVar[bool] = False
    """Whether it needs a sandbox."""

    roles: ClassVar[tuple[str, ...]] = ("root",)
    """Models that it calls."""

    settings_type: ClassVar[type[ProgramSettings]] = ProgramSettings
    """Every setting that may be given."""

    def __init__(
        self,
        signature: type[dspy.Signature] | str,
        *,
        guidance: str = "",
        settings: ProgramSettings | None = None,
    ) -> None:
        super().__init__()
        found = ensure_signature(signature)
        mixed = [name for name in TOLD if name in found.output_fields]
        if mixed or sorted(found.input_fields) != sorted(INPUTS):
            raise UsageError(
                f"{type(self).__name__} takes the inputs context and query and no output named"
                f" {', '.join(TOLD)}; got {', '.join(found.fields)}.",
                fix="a signature such as 'context, query -> answer'",
            )
        self.signature = found.with_instructions(guidance or found.instructions)
        self.build(guidance, (settings or ProgramSettings()).part(self.settings_type))

    @abstractmethod
    def build(self, guidance: str, settings: ProgramSettings) -> None:
        """Make predictors and settings; called once."""

    @abstractmethod
    def answer_from(self, text: str, query: str) -> dspy.Prediction:
        """Answer from the text itself."""

    def forward(self, *, context: str | ContextRef, query: str) -> dspy.Prediction:
        """Answer `query` from `context`.

        Returns:
            The output fields, `stop` (how it ended), and what the program tells of its way.

        Raises:
            UsageError: the context is no text, or the settings leave no room for any of it.
            LimitReached: the sample's ledger met a limit before there was anything to answer from.
            LMError: the model's service failed after retries.
        """
        return self._start(context, query)

    async def aforward(self, *, context: str | ContextRef, query: str) -> dspy.Prediction:
        """`forward` in a worker thread: counting tokens on the event loop would block it."""
        prediction: dspy.Prediction = await dspy.asyncify(self._start)(context, query)
        return prediction

    def _start(self, context: str | ContextRef, query: str) -> dspy.Prediction:
        text = context.read() if isinstance(context, ContextRef) else context
        if not isinstance(text, str):
            raise UsageError(
                f"context must be a text or a ContextRef, not {type(context).__name__}.",
                fix="json.dumps(...) for other values, or a program that runs code",
            )
        return self.answer_from(text, query)


def tell(found: dspy.Prediction, way: str, **facts: Any) -> dspy.Prediction:
    """`found` with facts about how it came about; output fields of these names stay what they are.

    Args:
        found: the prediction.
        way: one sentence, stored where the model gave no reasoning of its own.
        facts: further attributes.
    """
    told = facts if "reasoning" in found else {**facts, "final_reasoning": way}
    for name, value in told.items():
        if name not in found:
            setattr(found, name, value)
    return found


def _excerpts(values: Mapping[str, Any]) -> Any:
    """A copy in which long texts are excerpts."""
    copy: Any = values.copy() if isinstance(values, dspy.Example) else dict(values)
    for name in list(copy.keys()):
        if isinstance(copy[name], str) and len(copy[name]) > EXCERPT_CHARS:
            copy[name] = shorten(copy[name], EXCERPT_CHARS - len("..."))
    return copy
