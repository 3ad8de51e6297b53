"""Pairwise accuracy of a reward model for each group of users, and how far the groups lie apart."""

import math
from collections import Counter

import evaluate

from trl_pafo.data.labels import normalize_labels
from trl_pafo.errors import DataError
from trl_pafo.metrics import group_accuracy, pair_correctness
from trl_pafo.metrics.hf_evaluate import base

_DESCRIPTION = """
Pairwise accuracy of a reward model: overall, for each group of users, of the worst and the best group, and the
difference and ratio of these two. A tie counts half a point.
"""

_INPUTS = """
Args:
    predictions: for each pair the margin (reward of the chosen minus reward of the rejected response), or both rewards
        as [chosen, rejected]. Raw rewards, no sigmoid needed.
    groups: for each pair the group of its user, any label.
    group_names (optional): the groups to report, so that the keys are the same every time. An absent one has accuracy
        NaN and count 0, and is passed over in the other numbers.
Returns:
    accuracy, count: over all pairs.
    accuracy/{group}, count/{group}: over the pairs of a group.
    accuracy_group_min, accuracy_group_max: of the worst and the best group; worst_group: the name of the worst one.
    accuracy_difference: best minus worst group; NaN with one group.
    accuracy_ratio: worst over best group; NaN where the best has accuracy 0.
Examples:
    >>> group_fairness = trl_pafo.metrics.hf_evaluate.load("group_fairness")
    >>> group_fairness.compute(predictions=[2.1, 0.3, -0.4, 1.5], groups=["a", "a", "b", "b"])["accuracy_difference"]
    0.5
"""

_CITATION = """
@article{weerts2023fairlearn,
    title   = {Fairlearn: Assessing and Improving Fairness of {AI} Systems},
    author  = {Hilde Weerts and Miroslav Dud{\\'i}k and Richard Edgar and Adrin Jalali and Roman Lutz and Michael Madaio},
    journal = {Journal of Machine Learning Research},
    year    = {2023},
    volume  = {24},
    number  = {257},
    pages   = {1--8}
}
"""


class GroupFairness(base.PairModule, evaluate.Metric):
    """Group fairness of pairwise accuracy, with fairlearn's names."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=base.features("predictions", "groups"),
            reference_urls=["https://fairlearn.org"],
        )

    def _compute(
        self, predictions: list[float], groups: list[str], group_names: list[object] | None = None
    ) -> dict[str, float | int | str]:
        correct = pair_correctness(predictions)
        accuracy = group_accuracy(correct, groups)
        count = Counter(groups)
        names = sorted(accuracy) if group_names is None else normalize_labels(group_names, "group_names", "The option")
        unlisted = sorted(set(accuracy) - set(names))
        if unlisted:
            raise DataError(f"`group_names` lacks groups that the pairs have: {', '.join(unlisted)}. Add them, or leave it out.")
        worst, best = (pick(accuracy, key=accuracy.__getitem__) for pick in (min, max))
        low, high = accuracy[worst], accuracy[best]
        several = len(accuracy) > 1  # one group has no gap to others
        return {
            "accuracy": float(correct.mean()),
            "count": len(correct),
            **{f"accuracy/{name}": accuracy.get(name, math.nan) for name in names},
            **{f"count/{name}": count[name] for name in names},
            "accuracy_group_min": low,
            "accuracy_group_max": high,
            "accuracy_difference": high - low if several else math.nan,
            "accuracy_ratio": low / high if several and high > 0 else math.nan,
            "worst_group": worst,
        }
