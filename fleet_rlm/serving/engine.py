"""What a server answers with: models, a sandbox, the served program, and the agent made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

from fleet_rlm import __version__
from fleet_rlm.board import Board, Column
from fleet_rlm.config import Resolved
from fleet_rlm.errors import FleetError, UsageError
from fleet_rlm.ledger import Ledger, Limits
from fleet_rlm.lm.cancel import CANCEL_SETTING, CancelScope
from fleet_rlm.lm.connect import specify_pair
from fleet_rlm.program.agent.agent import RLMReActChatAgent
from fleet_rlm.program.agent.program import AgentProgram
from fleet_rlm.program.agent.roots import Roots
from fleet_rlm.program.agent.volume import LocalVolume
from fleet_rlm.program.bundle import load, read_manifest
from fleet_rlm.program.manifest import Manifest
from fleet_rlm.program.registry import PROGRAMS
from fleet_rlm.program.rlm import RLM
from fleet_rlm.runner.arm import Arm
from fleet_rlm.runner.attempt import Bench, bench_context, own_failure
from fleet_rlm.runner.run import make_bench
from fleet_rlm.runner.sandboxes import specify_sandbox
from fleet_rlm.sandbox.redact import Redactor

STANDARD = "agent"
"""Program that is served without a bundle."""

_QA_INPUTS = {"context", "query"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLimits:
    """Limits of the chat agent that a command line gives; None for the program's own."""

    react_max_iters: int | None = None
    rlm_max_iterations: int | None = None
    rlm_max_llm_calls: int | None = None
    timeout_s: float = 900.0


class Engine:
    """Everything that answers, shared by all requests; nothing in it changes.

    Args:
        bundle: folder of a compiled program; the agent as it is when None. A compiled agent chats
            itself, a compiled RLM over context and query becomes the one that the agent asks, and
            any other program is called beside the standard agent.
        resolved: which models, and which sandbox.
        env: where keys and secrets are found.
        price: "INPUT/OUTPUT" in dollars per million tokens, over the price list.
        limits: of the agent.

    Raises:
        UsageError: bundle, model, key or a limit cannot be used.
        SandboxUnavailable: no isolation holds on this machine.
    """

    def __init__(
        self,
        bundle: str | None,
        resolved: Resolved,
        env: Mapping[str, str],
        *,
        price: str | None = None,
        limits: AgentLimits | None = None,
    ) -> None:
        limits = limits or AgentLimits()
        root, sub = specify_pair(resolved, env, price=price)
        entry = PROGRAMS[STANDARD]
        sandbox = specify_sandbox(resolved.config)
        sandbox.prepare()
        self.level = sandbox.level
        self.arm = Arm(
            program=STANDARD,
            entry=entry,
            settings=entry.settings_type(),
            root=root,
            sub=sub,
            sandbox=sandbox,
            limits=Limits(working_s=None, wall_s=limits.timeout_s),
        )
        self.redactor = Redactor.from_env(env)
        self.board = Board()
        self.bench: Bench = make_bench(self.arm, self.redactor, board=self.board)
        self.manifest: Manifest | None = read_manifest(bundle) if bundle else None
        self.program: dspy.Module = load(bundle) if bundle else self.bench.program
        self.template, self.chats_compiled = _make_agent(self.program, limits, self.redactor)

    @property
    def name(self) -> str:
        """The served program's name."""
        return self.manifest.program if self.manifest else STANDARD

    @property
    def label(self) -> str | None:
        """The sentence that must stand beside this model's answers, if any."""
        return self.arm.label

    @property
    def sandboxes(self) -> float:
        """Sandbox sessions that are open."""
        return self.board.total(Column.SANDBOXES)

    def new_agent(self, roots: Roots, volume: Path | None = None) -> RLMReActChatAgent:
        """An agent without memory.

        Args:
            roots: folders whose files it may read.
            volume: folder that its memory tools write to; they are not offered when None.
        """
        agent: RLMReActChatAgent = self.template.deepcopy()
        agent.roots = roots
        agent.volume = LocalVolume(volume) if volume else None
        return agent

    @contextmanager
    def running(self, ledger: Ledger) -> Iterator[None]:
        """DSPy's settings for what answers inside; its spending is booked in `ledger`.

        Raises:
            FleetError: what fails inside, as an error of whoever owns it.
        """
        with bench_context(self.bench, ledger):
            try:
                yield
            except FleetError:
                raise
            except Exception as error:  # the served program's own, whatever it is
                raise own_failure(error) from error

    def call(
        self, program: dspy.Module, inputs: Mapping[str, Any], ledger: Ledger, scope: CancelScope
    ) -> dspy.Prediction:
        """Call a program; blocks until it answers or `scope` is cancelled.

        Raises:
            FleetError: models, sandbox or program failed, or a limit left no answer.
            Cancelled: it was cancelled.
        """
        with self.running(ledger), dspy.context(**{CANCEL_SETTING: scope}):
            found: dspy.Prediction = program(**inputs)
        return found

    def describe(self) -> dict[str, Any]:
        """The served program: what it is, what it scored, where it comes from."""
        shown: dict[str, Any] = {
            "program": self.name,
            "chat": "compiled" if self.chats_compiled else "standard",
            "inputs": sorted(self.program.signature.input_fields),
            "outputs": sorted(self.program.signature.output_fields),
            "models": {"root": self.arm.root.to_json(), "sub": self.arm.sub.to_json()},
            "model_kind": self.arm.model_kind,
            "sandbox": {"level": self.level.name, "label": self.level.label},
            "version": __version__,
            "bundle": None,
        }
        if self.label:
            shown["label"] = self.label
        if self.manifest:
            held = self.manifest.model_dump(mode="json", exclude_none=True)
            kept = ("created", "settings", "tools", "roles", "versions", "evidence", "parent")
            shown["bundle"] = {
                "digest": self.manifest.bundle,
                "compiled_on": self.manifest.model_kind,
                **{name: held[name] for name in kept if name in held},
            }
        return shown


def _make_agent(
    program: dspy.Module, limits: AgentLimits, redactor: Redactor
) -> tuple[RLMReActChatAgent, bool]:
    """The agent that chats, and whether the program has a part in it."""
    agent = RLMReActChatAgent(roots=(), redactor=redactor, timeout=limits.timeout_s)
    is_compiled = True
    if isinstance(program, AgentProgram):
        agent.load_state(program.agent.dump_state())
    elif isinstance(program, RLM) and _is_qa(program):
        agent.rlm = program.deepcopy()
        for part in (agent.analyze, agent.summarize, agent.extract_logs):
            part.recursion = agent.recursion  # one set of knobs, as the agent has
    else:
        is_compiled = False
    given = {"max_iters": limits.rlm_max_iterations, "max_llm_calls": limits.rlm_max_llm_calls}
    agent.recursion.update({name: value for name, value in given.items() if value is not None})
    if limits.react_max_iters is not None:
        agent.settings.update({"react_max_iters": limits.react_max_iters})
    return agent, is_compiled


def _is_qa(program: RLM) -> bool:
    fields = program.signature
    return set(fields.input_fields) == _QA_INPUTS and "answer" in fields.output_fields


def checked_inputs(program: dspy.Module, inputs: Mapping[str, Any]) -> None:
    """Raise unless the inputs are those that the program takes.

    Raises:
        UsageError: one is missing or unknown.
    """
    wanted = set(program.signature.input_fields)
    if wanted != set(inputs):
        raise UsageError(f"The program takes {', '.join(sorted(wanted))}.")
