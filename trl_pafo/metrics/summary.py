"""The fairness numbers of one model on one test set, each with its interval."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from trl_pafo.errors import DataError
from trl_pafo.metrics.accuracy import FloatArray, check_correct, encode_pairs
from trl_pafo.metrics.bootstrap import UserCells, bootstrap_users, group_totals, percentile_interval
from trl_pafo.metrics.inequality import cvar, gini, std

WORST_SHARE = 0.1


def fairness_summary(
    correct: ArrayLike,
    user: Iterable[object],
    group: Iterable[object],
    *,
    majority: str | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Accuracy overall and of each group, and how far groups and users lie apart.

    Args:
        correct (array of shape `(num_pairs,)`):
            Output of [`pair_correctness`], in [0, 1].
        user (`Iterable`, one a pair):
            Whose pair it is.
        group (`Iterable`, one a pair):
            The group of that user.
        majority (`str`, *optional*):
            The group to set against all others. Adds `majority` and `minority`: the accuracies over its pairs and over
            the pairs of all other groups.
        num_resamples (`int`, *optional*, defaults to `1000`):
            Resamples of the bootstrap over users, stratified by group.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resamples.
        confidence (`float`, *optional*, defaults to `0.95`):
            Confidence of each interval by itself, in (0, 1).

    Returns:
        `dict`, ready for JSON. `{"value", "low", "high"}` under each of

        - `overall`: accuracy over all pairs; `accuracy/{group}`: over the pairs of a group;
        - `group_min`: accuracy of the worst group; `difference`: best minus worst group;
        - `user_worst_decile`: mean accuracy of the worst 10 % of users; `user_gini`, `user_std`: inequality of users;

        and the numbers `num_pairs`, `num_users`, `num_pairs/{group}`, `num_users/{group}`, `confidence`,
        `num_resamples`.

        Intervals are percentile bootstrap intervals, widened where needed to hold their value: `difference` cannot
        fall below 0, so that all its resamples may lie above a small one. An interval that leaves out 0 is therefore
        no evidence for a difference; [`compare`] gives evidence. A group of one user has an interval of no width,
        which means "unknown", not "certain".

    Raises:
        DataError: If columns do not fit, a user is in two groups, or `majority` is no group or the only one.
        ConfigError: If `confidence` or `num_resamples` cannot be used.
    """
    correct = check_correct(correct)
    pairs = encode_pairs(user, group, len(correct))
    groups = pairs.groups
    if majority is not None and (majority not in groups or len(groups) == 1):
        raise DataError(
            f"`majority` must be one of at least two groups, but is {majority!r} and the groups are {groups}; correct "
            "it, or leave it out."
        )

    names = ["overall", *(f"accuracy/{name}" for name in groups), "group_min", "difference"]
    names += ["user_worst_decile", "user_gini", "user_std"]
    if majority is not None:
        names += ["majority", "minority"]
        in_majority = np.array([name == majority for name in groups])

    def statistics(cells: UserCells, weights: FloatArray) -> FloatArray:
        right = group_totals(cells, weights, cells.correct[0])
        total = group_totals(cells, weights, cells.pairs)
        by_group = right / total
        by_user = cells.correct[0] / cells.pairs
        columns = [right.sum(axis=1) / total.sum(axis=1), *by_group.T, by_group.min(axis=1), np.ptp(by_group, axis=1)]
        columns += [cvar(by_user, weights, WORST_SHARE), gini(by_user, weights), std(by_user, weights)]
        if majority is not None:
            columns += [right[:, side].sum(axis=1) / total[:, side].sum(axis=1) for side in (in_majority, ~in_majority)]
        return np.column_stack(columns)

    value, resamples = bootstrap_users(
        pairs.user_codes, pairs.group_of_user, correct, statistics, num_resamples=num_resamples, seed=seed
    )
    low, high = percentile_interval(resamples, confidence)
    ends = zip(value.tolist(), np.minimum(low, value).tolist(), np.maximum(high, value).tolist(), strict=True)
    summary: dict[str, Any] = {name: {"value": v, "low": lo, "high": hi} for name, (v, lo, hi) in zip(names, ends, strict=True)}
    summary["num_pairs"] = len(correct)
    summary["num_users"] = len(pairs.users)
    for name, num_pairs, num_users in zip(
        groups, np.bincount(pairs.group_codes).tolist(), np.bincount(pairs.group_of_user).tolist(), strict=True
    ):
        summary[f"num_pairs/{name}"] = num_pairs
        summary[f"num_users/{name}"] = num_users
    return summary | {"confidence": confidence, "num_resamples": num_resamples}
