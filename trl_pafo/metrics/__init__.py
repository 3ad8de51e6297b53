"""Fairness over groups and users on plain arrays: numpy and scipy only."""

from trl_pafo.metrics.accuracy import group_accuracy, pair_correctness, user_accuracy
from trl_pafo.metrics.bootstrap import Bootstrap, UserCells, bootstrap_users, percentile_interval
from trl_pafo.metrics.inequality import atkinson, cvar, generalised_entropy, gini, jain, max_min, std, theil
from trl_pafo.metrics.summary import fairness_summary
from trl_pafo.metrics.verdict import Verdict, compare

__all__ = [
    "Bootstrap",
    "UserCells",
    "Verdict",
    "atkinson",
    "bootstrap_users",
    "compare",
    "cvar",
    "fairness_summary",
    "generalised_entropy",
    "gini",
    "group_accuracy",
    "jain",
    "max_min",
    "pair_correctness",
    "percentile_interval",
    "std",
    "theil",
    "user_accuracy",
]
