"""Where an arm's code runs, and its sessions there: counted over all processes, paid for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import dspy

from fleet_rlm.board import Board, Column
from fleet_rlm.config import Config
from fleet_rlm.errors import SandboxUnavailable
from fleet_rlm.ledger import Ledger, Limits, Usage
from fleet_rlm.lm.cancel import pause
from fleet_rlm.lm.metered import current_ledger
from fleet_rlm.sandbox import levels
from fleet_rlm.sandbox.interpreter import LocalInterpreter
from fleet_rlm.sandbox.modal_box import ModalBoxes
from fleet_rlm.sandbox.modal_create import check_token, prepare
from fleet_rlm.sandbox.modal_gc import reap
from fleet_rlm.sandbox.modal_interpreter import ModalInterpreter
from fleet_rlm.sandbox.modal_recipe import CPU_USD_S, MEMORY_USD_S, Recipe
from fleet_rlm.sandbox.redact import Redactor

TAGS_SETTING = "fleet_tags"
"""DSPy setting that says what a sandbox is for: `with dspy.context(fleet_tags={...})`."""

CONTEXT_SETTING = "fleet_context"
"""DSPy setting with the digest of the running sample's context, where Modal holds it already."""

CELL_SECONDS = 120.0
"""Longest that one piece of generated code may compute, model calls not counted."""

MARGIN_S = 300
"""Life of a Modal sandbox beyond the time limit of its sample: start, grace and waits."""

LONGEST_S = 4 * 3600
"""Its life where the sample has no time limit; what takes longer goes on in another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """Where an arm's code runs."""

    level: levels.Level
    modal: Recipe | None = None
    """How sandboxes are made, on Modal."""

    @property
    def backend(self) -> str:
        """ "local" or "modal"."""
        return "modal" if self.modal else "local"

    @property
    def usd_per_s(self) -> float:
        """Dollars a second of one sandbox; those of this machine cost none."""
        return self.modal.usd_per_s if self.modal else 0.0

    def to_json(self) -> dict[str, Any]:
        """What a run stores."""
        shown = {"backend": self.backend, "level": self.level.name, "label": self.level.label}
        return shown | (self.modal.to_json() if self.modal else {})

    def prepare(self) -> None:
        """Check, before a sample is started, that sandboxes can be made; end those of earlier runs
        that have expired.

        Raises:
            SandboxUnavailable: on Modal, a refused token, no connection or no image.
        """
        if self.modal:
            prepare(self.modal)
            with suppress(SandboxUnavailable):  # what could not be looked for stops no run
                reap([self.modal.app_name])

    def lock(self) -> dict[str, Any]:
        """What else shaped its sandboxes: image by digest, and prices."""
        if self.modal is None:
            return {}
        prices = {"cpu_usd_s": CPU_USD_S, "memory_gib_usd_s": MEMORY_USD_S}
        return {"image": self.modal.image or self.modal.image_name, **prices}


def specify_sandbox(config: Config) -> SandboxSpec:
    """The sandbox that the settings name.

    Raises:
        SandboxUnavailable: no isolation holds here, or there is no Modal token.
        UsageError: no level of that name.
    """
    if config.sandbox != levels.MODAL.name:
        return SandboxSpec(level=levels.choose(config.sandbox))
    check_token()
    return SandboxSpec(level=levels.MODAL, modal=Recipe(**config.modal.model_dump()))


def life_s(limits: Limits) -> int:
    """Seconds after which Modal ends the sandbox of a sample."""
    limit = limits.working_s if limits.wall_s is None else limits.wall_s
    return LONGEST_S if limit is None else min(LONGEST_S, int(limit) + MARGIN_S)


def make_factory(
    spec: SandboxSpec,
    limits: Limits,
    board: Board,
    redactor: Redactor,
    tags: Mapping[str, str] | None = None,
) -> Callable[[], LocalInterpreter]:
    """What makes the interpreters of an arm.

    Args:
        spec: where code runs.
        limits: of a sample.
        board: counts the sessions.
        redactor: cleans what leaves them.
        tags: of every Modal sandbox.
    """
    cell_s = min(CELL_SECONDS, *filter(None, (limits.working_s, limits.wall_s)))
    if spec.modal is None:
        return CountedInterpreter.factory(
            level=spec.level.name, timeout=cell_s, board=board, redactor=redactor
        )
    recipe = replace(spec.modal, timeout_s=life_s(limits), tags=dict(tags or {}))
    return MeteredModal.factory(
        recipe=recipe, execute_timeout=cell_s, board=board, redactor=redactor
    )


class _Counted(LocalInterpreter):
    """A session that the run's board knows of."""

    _board: Board
    _counted = False

    def start(self) -> None:
        super().start()
        if not self._counted:
            self._counted = True
            self._board.add(Column.SANDBOXES, 1)

    def shutdown(self) -> None:
        super().shutdown()
        if self._counted:
            self._counted = False
            self._board.add(Column.SANDBOXES, -1)


class CountedInterpreter(_Counted):
    """A session in the box of this machine."""

    def __init__(self, *arguments: Any, board: Board, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._board = board


class MeteredModal(_Counted, ModalInterpreter):
    """A session in a Modal sandbox, whose seconds the running sample's ledger books.

    The sandbox is tagged with what the DSPy setting `fleet_tags` says in the thread that makes it.
    """

    def __init__(
        self,
        *arguments: Any,
        board: Board,
        recipe: Recipe | None = None,
        sandbox: ModalBoxes | None = None,
        **settings: Any,
    ) -> None:
        own = sandbox is None
        if sandbox is None:
            assert recipe is not None
            tags = {**recipe.tags, **dspy.settings.get(TAGS_SETTING, {})}
            context = dspy.settings.get(CONTEXT_SETTING)
            meter = _Meter(current_ledger(), board, recipe.usd_per_s)
            sandbox = ModalBoxes(
                replace(recipe, tags=tags, context=context), pause=meter.pause, book=meter.book
            )
        super().__init__(*arguments, sandbox=sandbox, **settings)
        self._own = own
        self._paid = sandbox
        self._board = board

    def _shared(self) -> dict[str, Any]:
        return super()._shared() | {"board": self._board}

    def execute(self, code: str, variables: dict[str, Any] | None = None, **settings: Any) -> Any:
        try:
            return super().execute(code, variables, **settings)
        finally:
            self._paid.settle()


class _Meter:
    """Lets a sample wait for its sandbox and pay for it."""

    def __init__(self, ledger: Ledger | None, board: Board, usd_per_s: float) -> None:
        self._ledger, self._board, self._usd_per_s = ledger, board, usd_per_s

    def pause(self, seconds: float) -> None:
        """Wait for a place among the creates, which is no working time of the sample.

        Raises:
            Cancelled: the running program was cancelled.
            LimitReached, BudgetExhausted: nothing is left to spend.
        """
        self._board.add(Column.QUEUED, 1)
        try:
            with self._ledger.waiting() if self._ledger else nullcontext():
                pause(seconds)
        finally:
            self._board.add(Column.QUEUED, -1)
        if self._ledger:
            self._ledger.check()

    def book(self, seconds: float) -> None:
        if self._ledger:
            usd = seconds * self._usd_per_s
            self._ledger.book("sandbox", Usage(usd=usd, seconds=seconds))
