"""The numbers of a summary, by what they are computed from. Each family is bootstrapped over cells of its own.

What only needs counts of right answers has few different users, whatever their number; a support rate or a margin makes
nearly every user different. Kept apart, the many numbers of the first kind stay cheap.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from trl_pafo.errors import DataError
from trl_pafo.metrics.accuracy import EncodedPairs, FloatArray, IntArray, pair_correctness
from trl_pafo.metrics.bootstrap import UserCells, gather_cells, group_totals, user_cells
from trl_pafo.metrics.calibration import NUM_BINS, bin_edges, fold, place_in_bins, squared_errors
from trl_pafo.metrics.inequality import atkinson, cvar, entropy_split, gini, jain, max_min, std
from trl_pafo.metrics.support import Ranking

WORST_SHARE = 0.1
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


def accuracy_family(pairs: EncodedPairs, correct: Sequence[FloatArray], majority: str | None, atkinson_epsilon: float) -> Family:
    """Accuracies of groups and inequality of users; `correct` holds one array of shape `(num_pairs,)` a model."""
    users_of, several = _users_of_each(pairs, majority), len(pairs.groups) > 1
    in_majority = np.array([name == majority for name in pairs.groups])
    cells = user_cells(pairs.user_codes, pairs.group_of_user, np.stack(correct))
    alike = [_Alike.of(right / cells.pairs, cells.group) for right in cells.sums]

    def of_model(right: FloatArray, total: FloatArray, users: _Alike, weights: FloatArray) -> FloatArray:
        # A resample may hold nobody of a group that was pooled with others.
        by_group = _share(right, total)
        worst, best = by_group.min(axis=1), by_group.max(axis=1)
        columns = [right.sum(axis=1) / total.sum(axis=1), *(by_group.T if pairs.groups else ())]
        if several:
            columns += [worst, best, best - worst, np.divide(worst, best, out=np.full_like(best, np.nan), where=best > 0)]
        if pairs.has_users:
            by_user, times = users.accuracy, users.gather(weights)
            columns += [times @ by_user / times.sum(axis=1), cvar(by_user, times, WORST_SHARE)]
            columns += [measure(by_user, times) for measure in (max_min, std, gini, jain)]
            columns.append(atkinson(by_user, times, atkinson_epsilon))
            for alpha in (1.0, 2.0):
                within, between = entropy_split(by_user, users.group, times, alpha)
                columns += [within + between, within, between] if several else [within + between]
        if majority is not None:
            columns += [_share(right[:, s].sum(axis=1), total[:, s].sum(axis=1)) for s in (in_majority, ~in_majority)]
        return np.column_stack(columns)

    def statistics(cells: UserCells, weights: FloatArray) -> FloatArray:
        totals = group_totals(cells, weights, np.column_stack([cells.pairs, *cells.sums]))
        return np.stack([of_model(totals[:, :, m + 1], totals[:, :, 0], alike[m], weights) for m in range(len(alike))], axis=1)

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
        names = ("mean", "worst_decile", "max_min", "std", "gini", "jain", "atkinson")
        users_of |= dict.fromkeys((f"user_{name}" for name in names), everybody)
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


def _share(right: FloatArray, total: FloatArray) -> FloatArray:
    return np.divide(right, total, out=np.full(np.shape(right), np.nan), where=total > 0)


class _Alike(NamedTuple):
    """Cells put together by what a measure of users sees: the accuracy under one model, and the group."""

    order: IntArray
    starts: IntArray
    accuracy: FloatArray
    group: IntArray

    @classmethod
    def of(cls, accuracy: FloatArray, group: IntArray) -> "_Alike":
        order = np.lexsort([accuracy, group])
        accuracy, group = accuracy[order], group[order]
        starts = np.flatnonzero(np.r_[True, (np.diff(accuracy) != 0) | (np.diff(group) != 0)])
        return cls(order, starts, accuracy[starts], group[starts])

    def gather(self, weights: FloatArray) -> FloatArray:
        return np.add.reduceat(weights[:, self.order], self.starts, axis=1)


def support_family(pairs: EncodedPairs, correct: Sequence[FloatArray], support: FloatArray) -> Family:
    """Rank correlation of users' accuracy with their support, of shape `(num_users,)`; users with NaN are left out."""
    known = ~np.isnan(support)
    counts = np.bincount(pairs.user_codes)
    sums = [np.bincount(pairs.user_codes, weights=values) for values in correct]
    cells = gather_cells(pairs.group_of_user[known], counts[known], np.stack([*sums, support])[:, known])
    ranking = Ranking.of(cells.sums[:-1] / cells.pairs, cells.sums[-1])

    def statistics(cells: UserCells, weights: FloatArray) -> FloatArray:
        return ranking.correlation(weights)[:, :, None]

    return Family(["support_spearman"], np.array([known.sum()]), (), cells, statistics)


def calibration_family(pairs: EncodedPairs, correct: Sequence[FloatArray], margins: Sequence[Any]) -> Family:
    """Calibration overall and of each group; `margins` holds one array of shape `(num_pairs,)` a model."""
    num_users = len(pairs.users)
    rows: list[FloatArray] = []
    for right, values in zip(correct, margins, strict=True):
        rows += _calibration_sums(pairs.user_codes, num_users, right, values)
    names = ["ece", "brier", *(f"{measure}/{name}" for measure in ("ece", "brier") for name in pairs.groups)]
    sizes = [num_users, num_users, *(2 * _sizes(pairs) if pairs.groups else [])]
    cells = gather_cells(pairs.group_of_user, np.bincount(pairs.user_codes), np.stack(rows))
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


def _calibration_sums(user_codes: IntArray, num_users: int, correct: FloatArray, margins: Any) -> list[FloatArray]:
    """Sums of each user: squared errors, then right answers minus confidences in each bin."""
    if np.shape(margins) != correct.shape:
        raise DataError(f"There are {len(correct)} pairs, but `margins` has shape {np.shape(margins)}; give one a pair.")
    wrong = int((pair_correctness(margins) != correct).sum())
    if wrong:
        raise DataError(
            f"`margins` and `correct` disagree on {wrong} of {len(correct)} pairs; give the margins from which "
            "`pair_correctness` made `correct`, in the same order."
        )
    confidence, right = fold(margins)
    place = place_in_bins(confidence, bin_edges(confidence))
    gaps = np.bincount(user_codes * NUM_BINS + place, weights=right - confidence, minlength=num_users * NUM_BINS)
    return [np.bincount(user_codes, weights=squared_errors(margins)), *gaps.reshape(num_users, NUM_BINS).T]
