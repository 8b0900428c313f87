"""MLflow as a mirror of run folders. Start at `mirror.py`; `content.py` says what is shown.

`autolog` gives any DSPy app the same slim traces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fleet_rlm.tracking.choice import Trace, parse_trace
from fleet_rlm.tracking.mirror import SYNC_S, Mirror, MirrorResult, mirrored
from fleet_rlm.tracking.store import EXPERIMENT

if TYPE_CHECKING:
    from fleet_rlm.tracking.slim import autolog as autolog

__all__ = [
    "EXPERIMENT",
    "SYNC_S",
    "Mirror",
    "MirrorResult",
    "Trace",
    "autolog",
    "mirrored",
    "parse_trace",
]


def __getattr__(name: str) -> Any:
    if name == "autolog":  # imports dspy
        from fleet_rlm.tracking.slim import autolog

        return autolog
    raise AttributeError(f"module 'fleet_rlm.tracking' has no attribute {name!r}")
