"""The chat agent as a program that suites score: a context and a query in, an answer out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import dspy
from dspy.adapters.utils import parse_value
from pydantic import ValidationError

from fleet_rlm.errors import UsageError
from fleet_rlm.program.agent.agent import AgentSettings, RLMReActChatAgent
from fleet_rlm.program.reader import TextProgram
from fleet_rlm.program.recursion import ProgramSettings, Range, RecursionSettings
from fleet_rlm.scoring.dialogue import requests_of


class AgentProgramSettings(ProgramSettings):
    """The agent's own knobs and those of its recursive programs."""

    SPEC: Mapping[str, Range] = {**AgentSettings.SPEC, **RecursionSettings.SPEC}


class AgentProgram(TextProgram):
    """A chat agent without access to files; the context is its one document.

    A query of several requests is a conversation: a turn each, with the earlier ones in mind.

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
        turns: list[dict[str, str]] = []
        trajectory: list[dict[str, Any]] = []
        for request in requests_of(query):
            found = self.agent(user_request=request, history=turns, documents={"context": text})
            reply = str(found.assistant_response)
            turns.append({"user_request": request, "assistant_response": reply})
            trajectory += found.trajectory
        replies = [turn["assistant_response"] for turn in turns]
        # A reply a line, as a query of several requests asks for.
        said = replies[0] if len(replies) == 1 else "\n".join(" ".join(r.split()) for r in replies)
        name, field = next(iter(self.signature.output_fields.items()))
        try:
            answer = parse_value(said, field.annotation)
        except (ValueError, ValidationError):
            answer = None
        told = {key: found[key] for key in ("final_reasoning", "stop")}
        return dspy.Prediction(**{name: answer}, trajectory=trajectory, **told)
