"""Fairness over groups and users on plain arrays: numpy and scipy only."""

from trl_pafo.metrics.accuracy import group_accuracy, pair_correctness, user_accuracy
from trl_pafo.metrics.bootstrap import Bootstrap, UserCells, bootstrap_users
from trl_pafo.metrics.calibration import ReliabilityBins, brier, ece, ece_noise, group_calibration, reliability
from trl_pafo.metrics.inequality import (
    EntropySplit,
    atkinson,
    cvar,
    entropy_split,
    generalized_entropy,
    gini,
    jain,
    max_min,
    std,
    theil,
)
from trl_pafo.metrics.intervals import bca_interval, bootstrap_interval, jackknife_acceleration, percentile_interval
from trl_pafo.metrics.summary import fairness_difference, fairness_summary
from trl_pafo.metrics.support import spearman
from trl_pafo.metrics.verdict import Verdict, compare

__all__ = [
    "Bootstrap",
    "EntropySplit",
    "ReliabilityBins",
    "UserCells",
    "Verdict",
    "atkinson",
    "bca_interval",
    "bootstrap_interval",
    "bootstrap_users",
    "brier",
    "compare",
    "cvar",
    "ece",
    "ece_noise",
    "entropy_split",
    "fairness_difference",
    "fairness_summary",
    "generalized_entropy",
    "gini",
    "group_accuracy",
    "group_calibration",
    "jackknife_acceleration",
    "jain",
    "max_min",
    "pair_correctness",
    "percentile_interval",
    "reliability",
    "spearman",
    "std",
    "theil",
    "user_accuracy",
]
