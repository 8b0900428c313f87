"""MLflow as a mirror of run folders. Start at `mirror.py`; `content.py` says what is shown."""

from fleet_rlm.tracking.choice import Trace, parse_trace
from fleet_rlm.tracking.mirror import Mirror, MirrorResult
from fleet_rlm.tracking.store import EXPERIMENT

__all__ = ["EXPERIMENT", "Mirror", "MirrorResult", "Trace", "parse_trace"]
