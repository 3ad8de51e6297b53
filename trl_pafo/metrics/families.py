"""The numbers of a summary, by what they are computed from. Each family is bootstrapped over cells of its own.

What only needs counts of right answers has few different users, whatever their number; a support rate makes nearly every user
different. Kept apart, the many numbers of the first kind stay cheap.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np

from trl_pafo.metrics.accuracy import EncodedPairs, FloatArray, IntArray
from trl_pafo.metrics.bootstrap import UserCells, gather_cells, group_totals, user_cells
from trl_pafo.metrics.inequality import USER_MEASURES
from trl_pafo.metrics.support import spearman


class Family(NamedTuple):
    """Numbers of a model from the same sums of users.

    `statistics(cells, weights)` returns them in an array of shape `(num_rows, len(names))`. `num_users` says on how many users
    each rests: for what compares groups, those of the smallest. `means` are the names of means over users.
    """

    names: list[str]
    num_users: IntArray
    means: Collection[str]
    cells: UserCells
    statistics: Callable[[UserCells, FloatArray], FloatArray]


def accuracy_family(pairs: EncodedPairs, correct: FloatArray) -> Family:
    """Accuracies of groups and inequality of users; `correct` has shape `(num_pairs,)`."""
    users_of, several = _users_of_each(pairs), len(pairs.groups) > 1
    cells = user_cells(pairs.user_codes, pairs.group_of_user, correct[None])
    accuracy, alike = np.unique(cells.sums[0] / cells.pairs, return_inverse=True)
    order = np.argsort(alike, kind="stable")
    starts = np.searchsorted(alike[order], np.arange(len(accuracy)))

    def statistics(cells: UserCells, weights: FloatArray) -> FloatArray:
        totals = group_totals(cells, weights, np.column_stack([cells.pairs, *cells.sums]))
        total, right = totals[:, :, 0], totals[:, :, 1]
        # A resample may hold nobody of a group that was pooled with others.
        by_group = np.divide(right, total, out=np.full_like(right, np.nan), where=total > 0)
        worst, best = by_group.min(axis=1), by_group.max(axis=1)
        columns = [right.sum(axis=1) / total.sum(axis=1), *(by_group.T if pairs.groups else ())]
        if several:
            columns += [worst, best, best - worst, np.divide(worst, best, out=np.full_like(best, np.nan), where=best > 0)]
        if pairs.has_users:
            times = np.add.reduceat(weights[:, order], starts, axis=1)  # users of equal accuracy together
            columns += [measure(accuracy, times) for measure in USER_MEASURES.values()]
        return np.column_stack(columns)

    means = [n for n in users_of if n.startswith("accuracy/") or n in ("overall", "group_min", "group_max", "user_mean")]
    return Family(list(users_of), np.array(list(users_of.values())), means, cells, statistics)


def _users_of_each(pairs: EncodedPairs) -> dict[str, int]:
    """The names of the numbers on accuracies, and on how many users each rests."""
    sizes = np.bincount(pairs.group_of_user).tolist()  # all users where no groups are known
    everybody, smallest, several = len(pairs.users), min(sizes), len(pairs.groups) > 1
    users_of = {"overall": everybody, **{f"accuracy/{name}": size for name, size in zip(pairs.groups, sizes, strict=False)}}
    if several:
        users_of |= dict.fromkeys(("group_min", "group_max", "difference", "ratio"), smallest)
    if pairs.has_users:
        users_of |= dict.fromkeys((f"user_{name}" for name in USER_MEASURES), everybody)
    return users_of


def support_family(pairs: EncodedPairs, correct: FloatArray, support: FloatArray) -> Family:
    """Rank correlation of users' accuracy with their support, of shape `(num_users,)`; users with NaN are left out."""
    known = ~np.isnan(support)
    right = np.bincount(pairs.user_codes, weights=correct)
    counts = np.bincount(pairs.user_codes)
    cells = gather_cells(pairs.group_of_user[known], counts[known], np.stack([right, support])[:, known])

    def statistics(cells: UserCells, weights: FloatArray) -> FloatArray:
        right, rate = cells.sums
        return spearman(right / cells.pairs, rate, weights)[:, None]

    return Family(["support_spearman"], np.array([known.sum()]), (), cells, statistics)
