"""Fairness over groups and users, on plain arrays: accuracies, inequality, intervals over users, the Pareto verdict.

Numpy and scipy only, and matplotlib in `plotting`, how every picture looks: it knows no model, no trainer and no file of a run.
"""

from trl_pafo import lazily

__all__, __getattr__, __dir__ = lazily(
    __name__,
    {
        "Verdict": "verdict",
        "atkinson": "inequality",
        "compare": "verdict",
        "cvar": "inequality",
        "fairness_summary": "summary",
        "gini": "inequality",
        "group_accuracy": "accuracy",
        "jain": "inequality",
        "max_min": "inequality",
        "pair_correctness": "accuracy",
        "percentile_interval": "intervals",
        "preference_score": "accuracy",
        "spearman": "support",
        "std": "inequality",
        "theil": "inequality",
        "user_accuracy": "accuracy",
        "win_rates": "accuracy",
    },
)
