"""Fairness over groups and users, on plain arrays: accuracies, inequality, intervals over users, the Pareto verdict.

Numpy and scipy only: it knows no model, no trainer and no file of a run. The names are imported where they are first used, as in
`trl_pafo`.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Verdict": "verdict",
    "atkinson": "inequality",
    "compare": "verdict",
    "cvar": "inequality",
    "entropy_split": "inequality",
    "fairness_difference": "summary",
    "fairness_summary": "summary",
    "generalized_entropy": "inequality",
    "gini": "inequality",
    "group_accuracy": "accuracy",
    "jain": "inequality",
    "max_min": "inequality",
    "pair_correctness": "accuracy",
    "percentile_interval": "intervals",
    "spearman": "support",
    "std": "inequality",
    "theil": "inequality",
    "user_accuracy": "accuracy",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
