"""The chat agent as a program that suites score: a context and a query in, an answer out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import dspy
from dspy.adapters.utils import parse_value
from pydantic import ValidationError

from fleet_rlm.errors import UsageError
from fleet_rlm.program.agent.agent import AgentSettings, RLMReActChatAgent
from fleet_rlm.program.reader import TextProgram
from fleet_rlm.program.recursion import ProgramSettings, Range, RecursionSettings


class AgentProgramSettings(ProgramSettings):
    """The agent's own knobs and those of its recursive programs."""

    SPEC: Mapping[str, Range] = {**AgentSettings.SPEC, **RecursionSettings.SPEC}


class AgentProgram(TextProgram):
    """A chat agent without access to files; the context is its one document.

    The agent is a child (`agent`), compiled and saved with it.

    Raises:
        UsageError: besides what `TextProgram` refuses, more than one output.
    """

    summary = "chat agent: chooses tools step by step, hands the context to recursive programs"
    runs_code: ClassVar = True
    roles: ClassVar = ("root", "sub")
    settings_type: ClassVar = AgentProgramSettings

    def build(self, guidance: str, settings: ProgramSettings) -> None:
        if len(self.signature.output_fields) != 1:
            raise UsageError("An agent gives one answer: its signature needs one output.")
        # suites keep their gold answers in files
        self.agent = RLMReActChatAgent(guidance=guidance, roots=())
        self.agent.settings.update(settings.part(AgentSettings).to_json())
        self.agent.recursion.update(settings.part(RecursionSettings).to_json())

    def answer_from(self, text: str, query: str) -> dspy.Prediction:
        found = self.agent(user_request=query, documents={"context": text})
        name, field = next(iter(self.signature.output_fields.items()))
        try:
            answer = parse_value(found.assistant_response, field.annotation)
        except (ValueError, ValidationError):
            answer = None
        told = {key: found[key] for key in ("trajectory", "final_reasoning", "stop")}
        return dspy.Prediction(**{name: answer}, **told)
