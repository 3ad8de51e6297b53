"""The numbers of a model on a test set, each with its interval."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from trl_pafo.errors import DataError
from trl_pafo.metrics.accuracy import EncodedPairs, FloatArray, check_correct, encode_pairs
from trl_pafo.metrics.bootstrap import bootstrap_cells
from trl_pafo.metrics.families import Family, accuracy_family, support_family
from trl_pafo.metrics.intervals import check_confidence, fewest_users, honest_ends, percentile_interval
from trl_pafo.metrics.support import support_of_users


def fairness_summary(
    correct: ArrayLike,
    user: Iterable[object] | None,
    group: Iterable[object] | None,
    *,
    support: ArrayLike | None = None,
    unit: Iterable[object] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Accuracy overall and of each group, and how far groups and users lie apart.

    Args:
        correct (array of shape `(num_pairs,)`):
            Output of [`pair_correctness`], in [0, 1].
        user (`Iterable`, one a pair, or `None`):
            Whose pair it is. Where that is not known, each pair is taken as one person's, and no number of users is given.
        group (`Iterable`, one a pair, or `None`):
            The group of that user. Where groups are not known, no number of groups is given.
        support (array of shape `(num_pairs,)`, *optional*):
            Support rate of each pair's user; NaN where unknown. Adds `support_spearman`.
        unit (`Iterable`, one a pair, *optional*):
            What was held out by itself where the users are known, such as all pairs of a user on one prompt. The bootstrap is then over these
            units, so that accuracies have intervals for new pairs of these users; measures of how far users lie apart have none.
        num_resamples (`int`, *optional*, defaults to `1000`):
            Resamples of the bootstrap over users, stratified by group.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resamples.
        confidence (`float`, *optional*, defaults to `0.95`):
            Confidence of each interval by itself, in (0, 1).

    Returns:
        `dict`. `{"value", "low", "high"}` under each of

        - `overall`: accuracy over all pairs; `accuracy/{group}`: over the pairs of a group;
        - with more than one group, `group_min`, `group_max`: accuracies of the worst and best group; `difference`: best minus
          worst; `ratio`: worst over best, NaN where all are 0 (the names are fairlearn's);
        - with `user`, `user_mean`: mean accuracy of users, each with the same weight; `user_worst_decile`: that of the worst 10 %;
          `user_max_min`, `user_std`, `user_gini`, `user_jain`, `user_atkinson`, `user_theil`: how unequal users are ([`gini`] and
          the others);
        - with `support`, `support_spearman`: rank correlation of users' accuracy with their support, over users whose
          support is known; NaN where it is undefined;

        with more than one group `worst_group`, the name of the group of `group_min` (the first of equals); and the numbers `num_pairs`, `num_users`, `num_pairs/{group}`, `num_users/{group}`,
        `num_users_without_support`, `confidence`, `num_resamples`; `num_units` where there are units.

        All is ready for JSON, but where a number is undefined: `json` writes `NaN`, which strict readers refuse.

        Intervals are percentiles of a bootstrap over users, and are widened where needed to hold their value: `difference` and the
        measures of inequality cannot fall below 0, so that an interval of theirs that leaves out 0 is no evidence; [`compare`] gives
        evidence. Ends that so few users cannot show are NaN; the rules are at the top of
        `trl_pafo.metrics.intervals`.

    Raises:
        DataError: If columns do not fit, or a user is in two groups or has two values of support.
        ConfigError: If `confidence` or `num_resamples` cannot be used.
    """
    check_confidence(confidence)
    correct = check_correct(correct)
    pairs = encode_pairs(user, group, len(correct))
    families, facts = _families(pairs, correct, support)
    summary: dict[str, Any] = {}
    if unit is not None:
        for family in families:
            values = family.statistics(family.cells, family.cells.users[None].astype(np.float64))[0]
            summary |= {
                name: {"value": float(v), "low": np.nan, "high": np.nan} for name, v in zip(family.names, values, strict=True)
            }
        units = encode_pairs(unit, group, len(correct))._replace(has_users=False)
        families = [accuracy_family(units, correct)]
        facts["num_units"] = len(units.users)
    summary |= _with_intervals(families, confidence, num_resamples, seed)
    if pairs.groups[1:]:
        summary["worst_group"] = min(pairs.groups, key=lambda name: summary[f"accuracy/{name}"]["value"])
    return summary | facts | {"confidence": confidence, "num_resamples": num_resamples}


def _families(
    pairs: EncodedPairs,
    correct: FloatArray,
    support: ArrayLike | None,
) -> tuple[list[Family], dict[str, Any]]:
    """The families that can be computed, and the counts."""
    facts: dict[str, Any] = {"num_pairs": len(pairs.user_codes)} | ({"num_users": len(pairs.users)} if pairs.has_users else {})
    counts = zip(np.bincount(pairs.group_codes).tolist(), np.bincount(pairs.group_of_user).tolist(), strict=True)
    for name, (num_pairs, num_users) in zip(pairs.groups, counts, strict=False):
        facts |= {f"num_pairs/{name}": num_pairs} | ({f"num_users/{name}": num_users} if pairs.has_users else {})
    families = [accuracy_family(pairs, correct)]
    if support is not None:
        if not pairs.has_users:
            raise DataError("`support` belongs to users: give `user`, or leave it out.")
        of_user = support_of_users(support, pairs)
        facts["num_users_without_support"] = int(np.isnan(of_user).sum())
        families.append(support_family(pairs, correct, of_user))
    return families, facts


def _with_intervals(families: Sequence[Family], confidence: float, num_resamples: int, seed: int) -> dict[str, Any]:
    """Each number with its interval."""
    entries: dict[str, Any] = {}
    for family in families:
        value, drawn = bootstrap_cells(family.cells, family.statistics, num_resamples, seed, fewest_users(confidence))
        low, high = percentile_interval(drawn, confidence)
        of_means = honest_ends(value, low, high, family.num_users, confidence, (0.0, 1.0))
        is_mean = np.array([name in family.means for name in family.names])
        others = honest_ends(value, low, high, family.num_users, confidence)
        ends = [np.where(is_mean, mean, other).tolist() for mean, other in zip(of_means, others, strict=True)]
        for name, v, lo, hi in zip(family.names, value.tolist(), *ends, strict=True):
            entries[name] = {"value": v, "low": lo, "high": hi}
    return entries
