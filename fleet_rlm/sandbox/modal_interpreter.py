"""The interpreter for Modal: `dspy.RLM(..., interpreter_factory=ModalInterpreter)`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from fleet_rlm.errors import FleetWarning, SandboxError, UsageError
from fleet_rlm.sandbox.interpreter import (
    SESSION_INSTRUCTIONS,
    CellError,
    LocalInterpreter,
    SessionLost,
)
from fleet_rlm.sandbox.levels import MODAL, Level
from fleet_rlm.sandbox.modal_box import ModalBoxes, ModalSandbox
from fleet_rlm.sandbox.modal_recipe import Recipe
from fleet_rlm.sandbox.modal_upload import plan_upload, upload
from fleet_rlm.sandbox.profiles import ExecutionProfile
from fleet_rlm.sandbox.redact import Redactor
from fleet_rlm.sandbox.session import CellResult, Limits, Session

_PROFILES: ContextVar[Mapping[int, ExecutionProfile] | None] = ContextVar(
    "fleet_profiles", default=None
)
"""Interpreter, by id -> the profile of the running block."""

_ELSEWHERE = {
    "secrets": ("Secrets enter no sandbox, where any code could read them.",
                "tools={'fetch': fetch}, a function of this machine that uses the secret"),
    "sub_lm": ("Programs ask models, not sandboxes.", "fleet_rlm.RLM(..., sub_lm=lm)"),
    "max_llm_calls": ("Programs ask models, not sandboxes.",
                      "fleet_rlm.RLM(..., max_llm_calls=50)"),
    "llm_call_timeout": ("Programs ask models, not sandboxes.",
                         "fleet_rlm.RLM(..., call_timeout_s=60)"),
}  # fmt: skip
"""Name known from earlier versions -> why it is refused, and what takes its place."""


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
        volume_name: a volume (version 2) to mount, writable; made, with its folders, when missing.
        volume_mount_path: where.
        secret_name: known from earlier versions, which gave the sandbox model keys; nothing enters
            it now, and a warning says so.
        summarize_stdout: give of long output only its size, beginning and end; programs cut it at
            their own `max_output_chars` anyway.
        stdout_summary_threshold: characters beyond which output is long.
        stdout_summary_prefix_len: characters kept of its beginning, and of its end.
        secrets: refused like the next three: any code in the sandbox could read them. Tools run on
            this machine and may use secrets.
        sub_lm: give it to `fleet_rlm.RLM` or `dspy.RLM`.
        max_llm_calls: likewise.
        llm_call_timeout: `fleet_rlm.RLM(..., call_timeout_s=60)`.
        tags: of the sandbox, beside project, owner and expires.
        default_execution_profile: what cells may do that are run without a profile of their own.
        limits: memory, files, output of the session.
        on_stdout: called with pieces of output, cleaned of secrets, while a cell runs.
        sandbox: the box to open the session in, which is not ended with it.
        redactor: cleans everything that leaves the session.

    Raises:
        UsageError: `secrets`, `sub_lm`, `max_llm_calls` or `llm_call_timeout` is given.
        ValueError: a number is out of its range.

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
        volume_name: str | None = None,
        volume_mount_path: str = "/data",
        secret_name: str | None = None,
        summarize_stdout: bool = False,
        stdout_summary_threshold: int = 10_000,
        stdout_summary_prefix_len: int = 200,
        secrets: Sequence[Any] | None = None,
        sub_lm: Any = None,
        max_llm_calls: int | None = None,
        llm_call_timeout: float | None = None,
        tags: Mapping[str, str] | None = None,
        default_execution_profile: ExecutionProfile = ExecutionProfile.RLM_DELEGATE,
        limits: Limits | None = None,
        on_stdout: Callable[[str], None] | None = None,
        sandbox: ModalBoxes | ModalSandbox | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        _refuse(
            secrets=secrets or None,
            sub_lm=sub_lm,
            max_llm_calls=max_llm_calls,
            llm_call_timeout=llm_call_timeout,
        )
        if not 0 < timeout <= 24 * 3600:
            raise ValueError("timeout must be between 1 second and 24 hours")
        if not 0 <= 2 * stdout_summary_prefix_len <= stdout_summary_threshold:
            raise ValueError("stdout_summary_prefix_len must be at most half of the threshold")
        if secret_name is not None:
            warnings.warn(
                f"Secret {secret_name!r} enters no sandbox: models are called on this machine.",
                FleetWarning,
                stacklevel=2,
            )
        self._default_profile = ExecutionProfile(default_execution_profile)
        super().__init__(
            tools,
            output_fields,
            timeout=execute_timeout,
            limits=limits,
            on_stdout=on_stdout,
            redactor=redactor,
        )
        self._summary = {
            "summarize_stdout": summarize_stdout,
            "stdout_summary_threshold": stdout_summary_threshold,
            "stdout_summary_prefix_len": stdout_summary_prefix_len,
        }
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
                volume_name=volume_name,
                volume_path=volume_mount_path,
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
            **self._summary,
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

    def execute(
        self,
        code: str,
        variables: dict[str, Any] | None = None,
        *,
        execution_profile: ExecutionProfile | None = None,
    ) -> Any:
        """Run one cell; see `LocalInterpreter.execute`.

        Args:
            code: Python source.
            variables: inputs.
            execution_profile: what this cell may do; that of the block, else the default.
        """
        with self.execution_profile(execution_profile or self._profile):
            return super().execute(code, variables)

    @contextmanager
    def execution_profile(self, profile: ExecutionProfile) -> Iterator[None]:
        """Run the cells of the block with a profile; no other thread or task is affected."""
        token = _PROFILES.set({**(_PROFILES.get() or {}), id(self): ExecutionProfile(profile)})
        try:
            yield
        finally:
            _PROFILES.reset(token)

    @property
    def _profile(self) -> ExecutionProfile:
        return (_PROFILES.get() or {}).get(id(self), self._default_profile)

    def _usable_tools(self) -> tuple[str, ...]:
        # The host answers no others, whatever code in the sandbox does.
        return super()._usable_tools() if self._profile.may_call else ()

    def _outcome(self, result: CellResult) -> Any:
        kept = self._summary["stdout_summary_prefix_len"]
        long = result.stdout_chars > self._summary["stdout_summary_threshold"]
        if self._summary["summarize_stdout"] and long:
            result = replace(result, stdout=_summarize(result, kept))
        if result.kind == "final" and not self._profile.may_call:
            raise CellError(
                f"RuntimeError: SUBMIT is not available in the profile {self._profile}.",
                stdout=result.stdout,
            )
        return super()._outcome(result)

    def commit(self) -> None:
        """Make what code wrote to the volume visible to its other holders.

        Raises:
            SandboxError: there is no sandbox or no volume, or it could not be done.
        """
        self._box().commit()

    def reload(self) -> None:
        """See in the volume what its other holders have committed.

        Raises:
            SandboxError: there is no sandbox or no volume, or it could not be done.
        """
        self._box().reload()

    def upload_to_volume(
        self,
        local_dirs: Mapping[str, str] | None = None,
        local_files: Mapping[str, str] | None = None,
    ) -> int:
        """Put files of this machine into the volume, those that it does not have yet.

        A sandbox that is running sees them after `reload`.

        Args:
            local_dirs: folder here -> folder in the volume; links in it are left out.
            local_files: file here -> path in the volume.

        Returns:
            How many files were sent.

        Raises:
            UsageError: no volume, a path that leads out of it, or nothing at one here.
            SandboxError: they could not be sent.
        """
        if self._boxes.recipe.volume_name is None:
            raise UsageError("There is no volume to upload to.", fix="volume_name='notes'")
        files = plan_upload(local_dirs or {}, local_files or {})
        return upload(self._boxes.recipe.volume_name, files)

    def _box(self) -> ModalSandbox:
        return self._boxes.box() if isinstance(self._boxes, ModalBoxes) else self._boxes

    def shutdown(self) -> None:
        """End the session, and its sandbox unless that was given."""
        super().shutdown()
        if self._own:
            self._boxes.close()


def _refuse(**given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            why, mend = _ELSEWHERE[name]
            raise UsageError(f"ModalInterpreter({name}=...): {why}", fix=mend)


def _summarize(result: CellResult, kept: int) -> str:
    whole = len(result.stdout) == result.stdout_chars
    lines = f", {len(result.stdout.splitlines()):,} lines" if whole else ""
    start, end = result.stdout[:kept], result.stdout[len(result.stdout) - kept :]
    return f'[Output: {result.stdout_chars:,} chars{lines}]\nPrefix: "{start}"\nSuffix: "{end}"'
