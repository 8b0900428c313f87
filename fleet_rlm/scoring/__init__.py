"""How answers are scored: per rule one `official` and one `robust` score, never mixed.

Start at `rules.score`. `oolong` and `ruler` hold the benchmarks' own rules, bug for bug; `robust`
holds ours.
"""

from fleet_rlm.scoring.rules import RULES, Asked, Score, blind_scores, floor, score

__all__ = ["RULES", "Asked", "Score", "blind_scores", "floor", "score"]
