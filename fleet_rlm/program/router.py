"""`Router`: reads a text directly while it is short, and as an RLM from some length on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import dspy
from dspy.utils.exceptions import AdapterParseError, ContextWindowExceededError

from fleet_rlm.program.events import emit
from fleet_rlm.program.reader import Reader, TextProgram, tell
from fleet_rlm.program.recursion import ProgramSettings, Range, RecursionSettings
from fleet_rlm.program.rlm import RLM
from fleet_rlm.suites.tokens import count_tokens


class ClassifyQuery(dspy.Signature):
    """Tell how much of a long text must be read to answer the query.

    "everywhere": it counts, compares, orders or collects over the text, or follows links through
    it. "one_place": a single statement, wherever it stands, answers it."""

    query: str = dspy.InputField(desc="the question about the text")
    needs: Literal["everywhere", "one_place"] = dspy.OutputField()


class RouteSettings(ProgramSettings):
    """The router's own knobs."""

    SPEC: Mapping[str, Range] = {
        "direct_tokens": Range(16_384, 0, 100_000_000),
        "classify": Range(0, 0, 1),
        "one_place_tokens": Range(65_536, 0, 100_000_000),
    }
    """`direct_tokens`: longest context that is read directly.
    `classify`: 1 to ask a model first how much of the text the query needs.
    `one_place_tokens`: longest context that is read directly for a query that needs one place of
    it, when `classify` is 1.

    Defaults: an RLM passes its model beyond 2^14 tokens and is behind it before, on questions that
    need the whole text; a model keeps finding single statements far longer (Zhang, Kraska, Khattab,
    arXiv 2512.24601, figure 1)."""


class RouterSettings(ProgramSettings):
    """What a router can be given: its own knobs and those of its RLM."""

    SPEC: Mapping[str, Range] = {**RouteSettings.SPEC, **RecursionSettings.SPEC}


class Route(NamedTuple):
    """Which way, and why."""

    name: Literal["direct", "rlm"]
    tokens: int
    """Of the context."""

    limit: int
    """Longest context that would be read directly."""

    @property
    def reason(self) -> str:
        """One sentence for a trajectory."""
        return f"Route {self.name}: {self.tokens:,} tokens, read directly up to {self.limit:,}."


class Router(TextProgram):
    """Direct or RLM, by the length of the context and, where told, by the kind of question.

    Both are children (`direct`, `rlm`), compiled and saved with it. The prediction's `route` says
    which answered; a text that the model's service finds too long goes to the RLM after all.
    """

    summary = "direct up to a length, RLM beyond it"
    runs_code: ClassVar = True
    roles: ClassVar = ("root", "sub")
    settings_type: ClassVar = RouterSettings

    def build(self, guidance: str, settings: ProgramSettings) -> None:
        self.settings = settings.part(RouteSettings)
        self.classify = dspy.Predict(ClassifyQuery)
        self.direct = Reader(self.signature)
        self.rlm = RLM(
            self.signature, guidance=guidance, recursion=settings.part(RecursionSettings)
        )

    def answer_from(self, text: str, query: str) -> dspy.Prediction:
        route = self.choose(text, query)
        emit("thought", route.reason, route=route.name)
        if route.name == "direct":
            try:
                found = self.direct(context=text, query=query)
                return tell(found, route.reason, stop="answered", route="direct")
            except ContextWindowExceededError:
                route = route._replace(name="rlm")
        found = self.rlm(context=text, query=query)
        found.route = "rlm"
        return found

    def choose(self, text: str, query: str) -> Route:
        """The way for a text and a question; asks a model when the setting `classify` says so."""
        tokens = count_tokens(text)
        limit = self.settings["direct_tokens"]
        longest = max(limit, self.settings["one_place_tokens"])
        # Asked only where the answer could matter.
        if self.settings["classify"] and limit < tokens <= longest and self._needs_one(query):
            limit = longest
        return Route("direct" if tokens <= limit else "rlm", tokens, limit)

    def _needs_one(self, query: str) -> bool:
        try:
            return str(self.classify(query=query).needs) == "one_place"
        except AdapterParseError:
            return False
