"""Counts the sandbox sessions that a run has open, over all of its processes."""

from __future__ import annotations

from typing import Any

from fleet_rlm.board import Board, Column
from fleet_rlm.sandbox.interpreter import LocalInterpreter


class CountedInterpreter(LocalInterpreter):
    """A session in the box of this machine that the run's board knows of."""

    def __init__(self, *arguments: Any, board: Board, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._board = board
        self._counted = False

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
