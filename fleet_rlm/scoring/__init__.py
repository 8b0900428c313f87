"""How answers are scored: per rule one `official` and one `robust` score, never mixed.

Start at `rules.score`. A module named after a benchmark holds its own rule, bug for bug; `robust`
and `robust_values` hold ours; `library` pairs the two for fetched benchmarks and users' own data.
"""

from fleet_rlm.scoring.rule import Asked
from fleet_rlm.scoring.rules import RULES, Score, blind_scores, floor, is_judged, score

__all__ = ["RULES", "Asked", "Score", "blind_scores", "floor", "is_judged", "score"]
