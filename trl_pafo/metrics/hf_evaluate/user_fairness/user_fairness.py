"""How unevenly the pairwise accuracy of a reward model is spread over users."""

import evaluate
import numpy as np

from trl_pafo.metrics import cvar, gini, jain, max_min, pair_correctness, std, theil, user_accuracy
from trl_pafo.metrics.hf_evaluate import base

_DESCRIPTION = """
How unevenly the pairwise accuracy of a reward model is spread over users. Every user counts once, whatever its number
of pairs. A tie counts half a point.
"""

_INPUTS = """
Args:
    predictions: for each pair the margin (reward of the chosen minus reward of the rejected response), or both rewards
        as [chosen, rejected]. Raw rewards, no sigmoid needed.
    users: for each pair whose it is, any label.
    share (optional, defaults to 0.1): which share of the users, the worst ones, user_accuracy_cvar is the mean over.
Returns:
    user_count: number of users.
    user_accuracy_mean, user_accuracy_std, user_accuracy_min, user_accuracy_max: over the accuracies of the users.
    user_accuracy_max_min: best minus worst user.
    user_accuracy_p10: 10th percentile; user_accuracy_cvar: mean of the worst share of the users.
    user_accuracy_gini, user_accuracy_theil: inequality, 0 where all are equal.
    user_accuracy_jain: Jain's index, 1 where all are equal.
Examples:
    >>> user_fairness = trl_pafo.metrics.hf_evaluate.load("user_fairness")
    >>> user_fairness.compute(predictions=[2.1, 0.3, -0.4, 1.5], users=["u1", "u1", "u2", "u2"])["user_accuracy_min"]
    0.5
"""

_CITATION = """
@techreport{jain1984quantitative,
    title       = {A Quantitative Measure of Fairness and Discrimination for Resource Allocation in Shared Computer Systems},
    author      = {Rajendra K. Jain and Dah-Ming W. Chiu and William R. Hawe},
    institution = {Digital Equipment Corporation},
    number      = {DEC-TR-301},
    year        = {1984}
}
"""


class UserFairness(base.PairModule, evaluate.Metric):
    """User fairness of pairwise accuracy."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=base.features("predictions", "users"),
        )

    def _compute(self, predictions: list[float], users: list[str], share: float = 0.1) -> dict[str, float | int]:
        _, accuracy, _ = user_accuracy(pair_correctness(predictions), users)
        numbers = {
            "mean": accuracy.mean(),
            "std": std(accuracy),
            "min": accuracy.min(),
            "max": accuracy.max(),
            "max_min": max_min(accuracy),
            "p10": np.quantile(accuracy, 0.1),
            "cvar": cvar(accuracy, share=share),
            "gini": gini(accuracy),
            "theil": theil(accuracy),
            "jain": jain(accuracy),
        }
        return {"user_count": len(accuracy), **{f"user_accuracy_{name}": float(value) for name, value in numbers.items()}}
