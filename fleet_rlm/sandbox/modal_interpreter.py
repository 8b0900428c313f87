"""The interpreter for Modal: `dspy.RLM(..., interpreter_factory=ModalInterpreter)`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fleet_rlm.errors import SandboxError
from fleet_rlm.sandbox.interpreter import SESSION_INSTRUCTIONS, LocalInterpreter, SessionLost
from fleet_rlm.sandbox.levels import MODAL, Level
from fleet_rlm.sandbox.modal_box import ModalBoxes, ModalSandbox
from fleet_rlm.sandbox.modal_recipe import Recipe
from fleet_rlm.sandbox.redact import Redactor
from fleet_rlm.sandbox.session import Limits, Session


class ModalInterpreter(LocalInterpreter):
    """A persistent Python session in a Modal sandbox of its own.

    No secret enters it, models are called on this machine, and it has no network unless domains or
    address ranges are named. A token is needed: `modal token new`.

    Args:
        tools: host functions that code may call by name. May be changed until `execute`.
        output_fields: what SUBMIT takes, as dspy describes it; one value when None.
        image: a `modal.Image` with Python 3.10 or newer; a slim one when None.
        app: a `modal.App`; the one called `app_name` when None.
        app_name: name of the app that sandboxes belong to; made when missing.
        image_python_version: of the slim image.
        image_pip_packages: in the slim image.
        timeout: seconds after which Modal ends the sandbox, at most 24 h.
        idle_timeout: seconds after which Modal ends a sandbox in which nothing runs.
        execute_timeout: seconds until a cell is interrupted, its state kept; None for no limit.
        cpu: cores requested, and their limit.
        memory: MiB requested, and their limit.
        domains: domains that code may reach. A filter by name, which can be got around.
        cidrs: address ranges that code may reach.
        tags: of the sandbox, beside project, owner and expires.
        limits: memory, files, output of the session.
        on_stdout: called with pieces of output, cleaned of secrets, while a cell runs.
        sandbox: the box to open the session in, which is not ended with it.
        redactor: cleans everything that leaves the session.

    Raises (from `start`): SandboxUnavailable, when Modal knows no valid token.
    """

    execution_instructions = (
        "Full CPython in a container of its own; it has no network unless told otherwise. "
        f"{SESSION_INSTRUCTIONS}"
    )

    def __init__(
        self,
        tools: Mapping[str, Callable[..., Any]] | None = None,
        output_fields: Sequence[Mapping[str, Any]] | None = None,
        *,
        image: Any = None,
        app: Any = None,
        app_name: str = "dspy-rlm-interpreter",
        image_python_version: str = "3.12",
        image_pip_packages: Sequence[str] = ("numpy", "pandas"),
        timeout: int = 900,
        idle_timeout: int = 60,
        execute_timeout: float | None = 120.0,
        cpu: tuple[float, float] = (0.25, 2.0),
        memory: tuple[int, int] = (512, 2048),
        domains: Sequence[str] = (),
        cidrs: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        on_stdout: Callable[[str], None] | None = None,
        sandbox: ModalBoxes | ModalSandbox | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        if not 0 < timeout <= 24 * 3600:
            raise ValueError("timeout must be between 1 second and 24 hours")
        super().__init__(
            tools,
            output_fields,
            timeout=execute_timeout,
            limits=limits,
            on_stdout=on_stdout,
            redactor=redactor,
        )
        self._own = sandbox is None
        self._boxes = sandbox or ModalBoxes(
            Recipe(
                image=image,
                app=app,
                app_name=app_name,
                python=image_python_version,
                pip_packages=tuple(image_pip_packages),
                timeout_s=int(timeout),
                idle_s=int(idle_timeout),
                cpu=cpu,
                memory_mib=memory,
                domains=tuple(domains),
                cidrs=tuple(cidrs),
                tags=dict(tags or {}),
            )
        )

    @property
    def siblings(self) -> Callable[[], LocalInterpreter]:
        """A factory of interpreters whose sessions are in the same sandbox."""
        return self.factory(**self._shared())

    def _shared(self) -> dict[str, Any]:
        return {
            "sandbox": self._boxes,
            "execute_timeout": self.timeout,
            "limits": self.limits,
            "redactor": self._redactor,
        }

    def _level(self) -> Level:
        return MODAL

    def _open(self) -> Session:
        if self._redactor is None:
            self._redactor = Redactor.from_env(os.environ)
        try:
            return self._boxes.open(self.limits, self._redactor.clean_data)
        except SandboxError as error:
            raise SessionLost(error.message) from error

    def shutdown(self) -> None:
        """End the session, and its sandbox unless that was given."""
        super().shutdown()
        if self._own:
            self._boxes.close()
