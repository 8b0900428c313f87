"""MLflow as a mirror of run folders. Start at `mirror.py`; `content.py` says what is shown."""

from fleet_rlm.tracking.choice import parse_trace
from fleet_rlm.tracking.mirror import Mirror, MirrorResult
from fleet_rlm.tracking.store import EXPERIMENT

__all__ = ["EXPERIMENT", "Mirror", "MirrorResult", "parse_trace"]
