"""Whether one reward model is better than another for every group of users."""

from dataclasses import asdict
from typing import Any

import evaluate

from trl_pafo.metrics import compare, pair_correctness
from trl_pafo.metrics.hf_evaluate import base

_DESCRIPTION = """
Whether a reward model is a Pareto improvement over another in pairwise accuracy for groups of users: improves, degrades,
mixed, cannot tell or same, from simultaneous intervals over users, both models judged on the same pairs.
"""

_INPUTS = """
Args:
    predictions1: the model. For each pair the margin (reward of the chosen minus reward of the rejected response), or
        both rewards as [chosen, rejected]. Raw rewards, no sigmoid needed.
    predictions2: the model that it is compared with, the same pairs in the same order.
    groups: for each pair the group of its user, any label.
    users: for each pair whose it is, any label. The intervals are over users, since pairs of one user resemble each
        other. Where no two pairs have the same user, number the pairs.
    confidence (optional, defaults to 0.95): of all groups' intervals together.
    margin (optional, defaults to 0.0): estimated loss of accuracy that a group may have beside another's gain.
    power (optional, defaults to 0.8): probability with which users_needed users would have told.
    num_resamples (optional, defaults to 2000), seed (optional, defaults to 0): of the random subsets of users.
Returns:
    verdict: "improves", "degrades", "mixed", "cannot tell", or "same" where the margins are the same on every pair.
    differences: for each group the accuracy of predictions1 minus that of predictions2 as value, and low and high.
    sentence: the same in one sentence.
    users_needed, group_users_needed: the least number of users that would have told, in all and in each group.
Examples:
    >>> pareto_verdict = trl_pafo.metrics.hf_evaluate.load("pareto_verdict")
    >>> users = list(range(20))
    >>> groups = ["a"] * 10 + ["b"] * 10
    >>> pareto_verdict.compute(predictions1=[1.0] * 20, predictions2=[1.0] * 10 + [-1.0] * 10, groups=groups, users=users)["verdict"]
    'improves'
"""

_CITATION = """
@article{hartigan1969using,
    title   = {Using Subsample Values as Typical Values},
    author  = {J. A. Hartigan},
    journal = {Journal of the American Statistical Association},
    year    = {1969},
    volume  = {64},
    number  = {328},
    pages   = {1303--1317}
}
"""


class ParetoVerdict(base.PairModule, evaluate.Comparison):
    """The Pareto verdict of [`~trl_pafo.metrics.compare`]."""

    def _info(self) -> evaluate.ComparisonInfo:
        return evaluate.ComparisonInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=base.features("predictions1", "predictions2", "groups", "users"),
        )

    def _compute(
        self, predictions1: list[float], predictions2: list[float], groups: list[str], users: list[str], **options: Any
    ) -> dict[str, Any]:
        correct, reference = (pair_correctness(margins) for margins in (predictions1, predictions2))
        options |= {"margins": predictions1, "reference_margins": predictions2}
        return asdict(compare(correct, reference, users, groups, **options))
