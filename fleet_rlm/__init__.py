"""Evaluate and optimize DSPy Recursive Language Models on long-context suites.

Start at `fleet_rlm.evaluate` (runner/evaluate.py), `fleet_rlm.RLM` (program/rlm.py) or the command
line (cli/eval.py). Public names are loaded when first used, so that `import fleet_rlm` costs
nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_rlm import errors as errors
    from fleet_rlm.program.agent.agent import RLMReActChatAgent as RLMReActChatAgent
    from fleet_rlm.program.agent.modal_volume import ModalVolume as ModalVolume
    from fleet_rlm.program.bundle import load as load
    from fleet_rlm.program.bundle import save as save
    from fleet_rlm.program.context_ref import ContextRef as ContextRef
    from fleet_rlm.program.manifest import Evidence as Evidence
    from fleet_rlm.program.recursion import RecursionSettings as RecursionSettings
    from fleet_rlm.program.rlm import RLM as RLM
    from fleet_rlm.program.stream import astream as astream
    from fleet_rlm.program.stream import stream as stream
    from fleet_rlm.runner.compare import compare as compare
    from fleet_rlm.runner.evaluate import evaluate as evaluate
    from fleet_rlm.runner.stored import open_run as open_run
    from fleet_rlm.sandbox.interpreter import LocalInterpreter as LocalInterpreter
    from fleet_rlm.sandbox.modal_interpreter import ModalInterpreter as ModalInterpreter
    from fleet_rlm.sandbox.profiles import ExecutionProfile as ExecutionProfile
    from fleet_rlm.search.evaluator import evaluating as evaluating
    from fleet_rlm.search.optimize import optimize as optimize

__version__ = "0.1.0"

_HOME = {
    "ContextRef": "fleet_rlm.program.context_ref",
    "LocalInterpreter": "fleet_rlm.sandbox.interpreter",
    "ExecutionProfile": "fleet_rlm.sandbox.profiles",
    "ModalInterpreter": "fleet_rlm.sandbox.modal_interpreter",
    "ModalVolume": "fleet_rlm.program.agent.modal_volume",
    "RLM": "fleet_rlm.program.rlm",
    "RLMReActChatAgent": "fleet_rlm.program.agent.agent",
    "RecursionSettings": "fleet_rlm.program.recursion",
    "astream": "fleet_rlm.program.stream",
    "compare": "fleet_rlm.runner.compare",
    "errors": "fleet_rlm",
    "Evidence": "fleet_rlm.program.manifest",
    "evaluate": "fleet_rlm.runner.evaluate",
    "evaluating": "fleet_rlm.search.evaluator",
    "load": "fleet_rlm.program.bundle",
    "open_run": "fleet_rlm.runner.stored",
    "optimize": "fleet_rlm.search.optimize",
    "save": "fleet_rlm.program.bundle",
    "stream": "fleet_rlm.program.stream",
}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fleet_rlm' has no attribute {name!r}")
    if name == "errors":
        return import_module("fleet_rlm.errors")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
