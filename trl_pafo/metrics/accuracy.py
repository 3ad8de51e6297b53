"""From margins to accuracies: of pairs, of users, of groups."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trl_pafo.data.labels import normalize_labels
from trl_pafo.errors import DataError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def pair_correctness(margins: ArrayLike) -> FloatArray:
    """1 where the model prefers the chosen response, 0 where it prefers the rejected one, 0.5 where it cannot tell.

    Half a point for a tie is what a coin would earn: a model that scores everything alike has accuracy 0.5, not 0.

    Args:
        margins (array of shape `(num_pairs,)`):
            Rewards of the chosen minus rewards of the rejected responses, in reward units.

    Returns:
        `float64` array of shape `(num_pairs,)`.

    Raises:
        DataError: If a margin is NaN.
    """
    margins = np.asarray(margins, dtype=np.float64)
    missing = int(np.isnan(margins).sum())
    if missing:
        raise DataError(
            f"{missing} of {margins.size} margins are NaN, so these pairs are neither right nor wrong: find out why "
            "the model scored them NaN (an overflow in half precision is common), or leave the pairs out."
        )
    return 0.5 * (np.sign(margins) + 1.0)


def win_rates(margins: ArrayLike, part: Iterable[object] | None = None) -> dict[str, float]:
    """Counts as Personalized RewardBench reports them, which gives nothing for a tie (their `evaluation/pointwise.py`).

    Args:
        margins (array of shape `(num_pairs,)`):
            Rewards of the chosen minus rewards of the rejected responses, in reward units.
        part (`Iterable`, one a pair, *optional*):
            Its subset.

    Returns:
        `dict[str, float]`: `chosen_win_rate`, the share of pairs whose chosen response has the higher reward; `chosen_win_rate/{part}` of
        each subset; `ties`, a number of pairs; and `mean_difference` of the rewards.

    Raises:
        DataError: If a margin is NaN.
    """
    margins = np.asarray(margins, dtype=np.float64)
    wins = pair_correctness(margins) == 1
    of_parts = {} if part is None else group_accuracy(wins, part)
    return {
        "chosen_win_rate": float(wins.mean()),
        **{f"chosen_win_rate/{name}": rate for name, rate in of_parts.items()},
        "ties": float((margins == 0).sum()),
        "mean_difference": float(margins.mean()),
    }


def preference_score(margins: ArrayLike) -> dict[str, float]:
    """The number that PersonalRewardBench's authors compute over pairs: 1 for a right one, -1 for a wrong one, 0 for a tie (`evaluate`
    of their `synthesizeme.py`, which asks a judge in both orders; a reward has the same sign in both).

    Args:
        margins (array of shape `(num_pairs,)`):
            Rewards of the chosen minus rewards of the rejected responses, in reward units.

    Returns:
        `dict[str, float]`: `mean` in [-1, 1], and the `accuracy` that is the same on a scale from 0 to 1.

    Raises:
        DataError: If a margin is NaN.
    """
    accuracy = float(pair_correctness(margins).mean())
    return {"mean": 2 * accuracy - 1, "accuracy": accuracy}


def user_accuracy(correct: ArrayLike, user: Iterable[object]) -> tuple[list[str], FloatArray, IntArray]:
    """Accuracy of each user over its own pairs.

    Args:
        correct (array of shape `(num_pairs,)`):
            Output of [`pair_correctness`], in [0, 1].
        user (`Iterable`, one a pair):
            Whose pair it is.

    Returns:
        The users in sorted order, their accuracies and their numbers of pairs, each of length `num_users`.

    Raises:
        DataError: If there is no pair, a value is outside [0, 1], or a user is missing.
    """
    correct = check_correct(correct)
    users, codes = encode_labels(user, "user", len(correct))
    counts = np.bincount(codes)
    return users, np.bincount(codes, weights=correct) / counts, counts


def group_accuracy(correct: ArrayLike, group: Iterable[object]) -> dict[str, float]:
    """Accuracy over the pairs of each group, groups in sorted order. A user with more pairs counts for more.

    Args:
        correct (array of shape `(num_pairs,)`):
            Output of [`pair_correctness`], in [0, 1].
        group (`Iterable`, one a pair):
            The group of the pair's user.

    Raises:
        DataError: If there is no pair, a value is outside [0, 1], or a group is missing.
    """
    correct = check_correct(correct)
    groups, codes = encode_labels(group, "group", len(correct))
    return dict(zip(groups, (np.bincount(codes, weights=correct) / np.bincount(codes)).tolist(), strict=True))


def group_gap(accuracy: Mapping[str, float]) -> dict[str, float]:
    """Accuracies of groups in a few numbers: their mean, each group counted once, the lowest, the highest, difference and ratio."""
    low, high = min(accuracy.values()), max(accuracy.values())
    several = len(accuracy) > 1  # one group has no gap to others
    return {
        "accuracy_group_mean": sum(accuracy.values()) / len(accuracy),
        "accuracy_group_min": low,
        "accuracy_group_max": high,
        "accuracy_difference": high - low if several else math.nan,
        "accuracy_ratio": low / high if several and high > 0 else math.nan,
    }


def check_correct(correct: ArrayLike, name: str = "correct") -> FloatArray:
    """`correct` as a `float64` vector; [`DataError`] unless there are pairs and all values lie in [0, 1]."""
    values = np.asarray(correct, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise DataError(f"`{name}` must hold one value per pair and at least one pair, got an array of shape {values.shape}.")
    if not ((values >= 0) & (values <= 1)).all():
        raise DataError(f"`{name}` must lie in [0, 1]; turn margins into it with `pair_correctness`.")
    return values


def check_both(correct: ArrayLike, reference_correct: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Correctness of a model and of a reference as vectors of one length; [`DataError`] otherwise."""
    values, reference = check_correct(correct), check_correct(reference_correct, "reference_correct")
    if len(reference) != len(values):
        raise DataError(
            f"The model has {len(values)} pairs and the reference {len(reference)}: score both on the same pairs, "
            "in the same order."
        )
    return values, reference


def encode_labels(labels: Iterable[object], name: str, num_pairs: int) -> tuple[list[str], IntArray]:
    """The distinct labels as sorted strings, and the place of each pair's label among them, of shape `(num_pairs,)`."""
    values = normalize_labels(labels, name, "The pairs")
    if len(values) != num_pairs:
        raise DataError(f"There are {num_pairs} pairs, but {len(values)} values of `{name}`; give one per pair.")
    names = sorted(set(values))
    place = {label: code for code, label in enumerate(names)}
    return names, np.fromiter(map(place.__getitem__, values), dtype=np.int64, count=num_pairs)


class EncodedPairs(NamedTuple):
    """Users and groups of pairs as integers.

    `user_codes` and `group_codes` have shape `(num_pairs,)` and point into `users` and `groups`; `group_of_user`, of
    shape `(num_users,)`, points into `groups`. Where no groups are known, `groups` is empty and all codes are 0. Where no
    users are known (`has_users` is false), each pair counts as a user of its own.
    """

    users: list[str]
    groups: list[str]
    user_codes: IntArray
    group_codes: IntArray
    group_of_user: IntArray
    has_users: bool = True


def encode_pairs(user: Iterable[object] | None, group: Iterable[object] | None, num_pairs: int) -> EncodedPairs:
    """Encode the two columns, each of which may be unknown; [`DataError`] where a value is missing or a user is in two groups."""
    has_users = user is not None
    if user is None:
        users, user_codes = [str(i) for i in range(num_pairs)], np.arange(num_pairs)
    else:
        users, user_codes = encode_labels(user, "user", num_pairs)
    if group is None:
        nobody = np.zeros(num_pairs, dtype=np.int64)
        return EncodedPairs(users, [], user_codes, nobody, np.zeros(len(users), dtype=np.int64), has_users)
    groups, group_codes = encode_labels(group, "group", num_pairs)
    group_of_user = np.zeros(len(users), dtype=np.int64)
    group_of_user[user_codes] = group_codes
    moved = np.flatnonzero(group_of_user[user_codes] != group_codes)
    if len(moved):
        first = moved[0]
        both = sorted({groups[group_codes[first]], groups[group_of_user[user_codes[first]]]})
        raise DataError(
            f"User {users[user_codes[first]]!r} has pairs in two groups ({', '.join(both)}); give each user one group, "
            "or make the group a part of the user's name."
        )
    return EncodedPairs(users, groups, user_codes, group_codes, group_of_user, has_users)
