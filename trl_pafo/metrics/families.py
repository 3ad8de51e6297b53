"""The numbers of a summary, by what they are computed from. Each family is bootstrapped over cells of its own.

What only needs counts of right answers has few different users, whatever their number; a support rate or a margin makes
nearly every user different. Kept apart, the many numbers of the first kind stay cheap.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from trl_pafo.metrics.accuracy import EncodedPairs, FloatArray, IntArray
from trl_pafo.metrics.bootstrap import UserCells, gather_cells, group_totals, user_cells
from trl_pafo.metrics.calibration import calibration_sums
from trl_pafo.metrics.inequality import USER_MEASURES, entropy_split
from trl_pafo.metrics.support import spearman

_SIDES = ("majority", "minority")


class Family(NamedTuple):
    """Numbers of one or several models from the same sums of users.

    `statistics(cells, weights)` returns them in an array of shape `(num_rows, num_models, len(names))`. `num_users` says on
    how many users each rests: for what compares groups, those of the smallest. `means` are the names of means over users.
    """

    names: list[str]
    num_users: IntArray
    means: Collection[str]
    cells: UserCells
    statistics: Callable[[UserCells, FloatArray], FloatArray]


def accuracy_family(pairs: EncodedPairs, correct: Sequence[FloatArray], majority: str | None) -> Family:
    """Accuracies of groups and inequality of users; `correct` holds one array of shape `(num_pairs,)` a model."""
    users_of, several = _users_of_each(pairs, majority), len(pairs.groups) > 1
    in_majority = np.array([name == majority for name in pairs.groups])
    cells = user_cells(pairs.user_codes, pairs.group_of_user, np.stack(correct))
    alike = [_alike(cells.group, accuracy) for accuracy in cells.sums / cells.pairs]

    def of_model(model: int, right: FloatArray, total: FloatArray, weights: FloatArray) -> FloatArray:
        # A resample may hold nobody of a group that was pooled with others.
        by_group = _share(right, total)
        worst, best = by_group.min(axis=1), by_group.max(axis=1)
        columns = [right.sum(axis=1) / total.sum(axis=1), *(by_group.T if pairs.groups else ())]
        if several:
            columns += [worst, best, best - worst, np.divide(worst, best, out=np.full_like(best, np.nan), where=best > 0)]
        if pairs.has_users:
            group, accuracy, order, starts = alike[model]
            times = np.add.reduceat(weights[:, order], starts, axis=1)
            columns += [measure(accuracy, times) for measure in USER_MEASURES.values()]
            for alpha in (1.0, 2.0):
                within, between = entropy_split(accuracy, group, times, alpha)
                columns += [within + between, within, between] if several else [within + between]
        if majority is not None:
            columns += [_share(right[:, s].sum(axis=1), total[:, s].sum(axis=1)) for s in (in_majority, ~in_majority)]
        return np.column_stack(columns)

    def statistics(cells: UserCells, weights: FloatArray) -> FloatArray:
        totals = group_totals(cells, weights, np.column_stack([cells.pairs, *cells.sums]))
        return np.stack([of_model(m, totals[:, :, m + 1], totals[:, :, 0], weights) for m in range(len(alike))], axis=1)

    means = [n for n in users_of if n.startswith("accuracy/") or n in ("overall", "group_min", "group_max", "user_mean", *_SIDES)]
    return Family(list(users_of), np.array(list(users_of.values())), means, cells, statistics)


def _users_of_each(pairs: EncodedPairs, majority: str | None) -> dict[str, int]:
    """The names of the numbers on accuracies, and on how many users each rests."""
    sizes = _sizes(pairs)
    everybody, smallest, several = len(pairs.users), min(sizes), len(pairs.groups) > 1
    users_of = {"overall": everybody, **{f"accuracy/{name}": size for name, size in zip(pairs.groups, sizes, strict=False)}}
    if several:
        users_of |= dict.fromkeys(("group_min", "group_max", "difference", "ratio"), smallest)
    if pairs.has_users:
        users_of |= dict.fromkeys((f"user_{name}" for name in USER_MEASURES), everybody)
        for name in ("user_theil", "user_entropy"):
            parts = (f"{name}_within", f"{name}_between") if several else ()  # with one group, nothing lies between
            users_of |= {name: everybody, **dict.fromkeys(parts, smallest)}
    if majority is not None:
        own = sizes[pairs.groups.index(majority)]
        users_of |= dict(zip(_SIDES, (own, everybody - own), strict=True))
    return users_of


def _sizes(pairs: EncodedPairs) -> list[int]:
    """Number of users of each group; of all where no groups are known."""
    return np.bincount(pairs.group_of_user).tolist()


def _alike(group: IntArray, accuracy: FloatArray) -> tuple[IntArray, FloatArray, IntArray, IntArray]:
    """Cells of one group and one accuracy put together: group, accuracy; the order of the cells, and where each of these starts."""
    keys, place = np.unique(np.column_stack([group, accuracy]), axis=0, return_inverse=True)
    order = np.argsort(place, kind="stable")
    return keys[:, 0].astype(np.int64), keys[:, 1], order, np.searchsorted(place[order], np.arange(len(keys)))


def _share(right: FloatArray, total: FloatArray) -> FloatArray:
    return np.divide(right, total, out=np.full(np.shape(right), np.nan), where=total > 0)


def support_family(pairs: EncodedPairs, correct: Sequence[FloatArray], support: FloatArray) -> Family:
    """Rank correlation of users' accuracy with their support, of shape `(num_users,)`; users with NaN are left out."""
    known = ~np.isnan(support)
    counts = np.bincount(pairs.user_codes)
    sums = [np.bincount(pairs.user_codes, weights=values) for values in correct]
    cells = gather_cells(pairs.group_of_user[known], counts[known], np.stack([*sums, support])[:, known])

    def statistics(cells: UserCells, weights: FloatArray) -> FloatArray:
        *right, rate = cells.sums
        return np.stack([spearman(values / cells.pairs, rate, weights) for values in right], axis=1)[:, :, None]

    return Family(["support_spearman"], np.array([known.sum()]), (), cells, statistics)


def calibration_family(pairs: EncodedPairs, correct: Sequence[FloatArray], margins: Sequence[Any]) -> Family:
    """Calibration overall and of each group; `margins` holds one array of shape `(num_pairs,)` a model."""
    sums = [calibration_sums(pairs.user_codes, right, values) for right, values in zip(correct, margins, strict=True)]
    names = ["ece", "brier", *(f"{measure}/{name}" for measure in ("ece", "brier") for name in pairs.groups)]
    sizes = [len(pairs.users)] * 2 + (2 * _sizes(pairs) if pairs.groups else [])
    cells = gather_cells(pairs.group_of_user, np.bincount(pairs.user_codes), np.concatenate(sums))
    columns = np.column_stack([cells.pairs, *cells.sums])

    def statistics(cells: UserCells, weights: FloatArray) -> FloatArray:
        by_group = group_totals(cells, weights, columns)
        parts = np.concatenate([by_group.sum(axis=1, keepdims=True), by_group], axis=1)
        parts = parts[:, : 1 + len(pairs.groups)]
        means = _share(parts[:, :, 1:], np.broadcast_to(parts[:, :, :1], parts[:, :, 1:].shape))
        means = means.reshape(len(weights), 1 + len(pairs.groups), len(correct), -1)
        squared, error = means[..., 0].swapaxes(1, 2), np.abs(means[..., 1:]).sum(axis=3).swapaxes(1, 2)
        return np.concatenate([error[..., :1], squared[..., :1], error[..., 1:], squared[..., 1:]], axis=2)

    return Family(names, np.array(sizes), (), cells, statistics)
