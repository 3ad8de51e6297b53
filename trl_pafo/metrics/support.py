"""Does a user's accuracy go with the support of its preferences? Rank correlation, over resamples at once."""

import numpy as np
from numpy.typing import ArrayLike

from trl_pafo.errors import DataError
from trl_pafo.metrics.accuracy import EncodedPairs, FloatArray, IntArray


def spearman(x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> FloatArray:
    """Spearman's rank correlation, ties at their mean rank, in [-1, 1]; NaN where all `x` or all `y` are the same.

    Args:
        x, y (arrays of shape `(num_users,)`):
            Two quantities, such as the accuracy of each user and its support rate.
        weights (array of shape `(..., num_users)`, *optional*):
            How often each user counts.

    Returns:
        One value for each row of weights, of shape `weights.shape[:-1]`; a scalar without weights.

    Raises:
        DataError: If shapes do not fit, there is no user, or a value is NaN.
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (x, y))
    if x.ndim != 1 or x.shape != y.shape or not x.size:
        raise DataError(f"`x` and `y` must each hold one value per user, got shapes {x.shape} and {y.shape}.")
    if np.isnan([x, y]).any():
        raise DataError("`x` and `y` must not be NaN; leave out the users for whom one is unknown.")
    counts = np.ones(x.size) if weights is None else np.asarray(weights, dtype=np.float64)
    if counts.shape[-1:] != x.shape:
        raise DataError(f"`weights` must have {x.size} users on its last axis, got shape {counts.shape}.")
    place_x, place_y = (np.unique(values, return_inverse=True)[1] for values in (x, y))
    found = [_correlation(place_x, place_y, row) for row in counts.reshape(-1, x.size)]
    return np.reshape(found, counts.shape[:-1])[()]


def _correlation(x: IntArray, y: IntArray, weights: FloatArray) -> float:
    (rank_x, spread_x), (rank_y, spread_y) = _mid_ranks(x, weights), _mid_ranks(y, weights)
    if spread_x == 0 or spread_y == 0:
        return float("nan")
    covariance = (np.bincount(x, weights=weights * rank_y[y]) * rank_x).sum()
    return float(np.clip(covariance / (np.sqrt(spread_x) * np.sqrt(spread_y)), -1.0, 1.0))


def _mid_ranks(places: IntArray, weights: FloatArray) -> tuple[FloatArray, float]:
    """Mean rank of each distinct value, counted from the middle, and the weighted sum of their squares."""
    occurs = np.bincount(places, weights=weights)
    total = occurs.sum()
    # The sum has a closed form, which is exactly 0 where all are the same.
    return np.cumsum(occurs) - (occurs + total) / 2, (total**3 - (occurs * occurs * occurs).sum()) / 12


def support_of_users(support: ArrayLike, pairs: EncodedPairs) -> FloatArray:
    """Support rate of each user of `pairs.users`, of shape `(num_users,)`, from one value a pair; NaN where it is unknown.

    Raises:
        DataError: If a user has two values, shapes do not fit, or no user has a value.
    """
    try:
        values = np.asarray(support, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"`support` must hold numbers: {error}. Correct it, or leave it out.") from error
    if values.shape != pairs.user_codes.shape:
        raise DataError(f"`support` must hold one value for each of {len(pairs.user_codes)} pairs, got shape {values.shape}.")
    of_user = np.full(len(pairs.users), np.nan)
    of_user[pairs.user_codes] = values
    again = of_user[pairs.user_codes]
    moved = np.flatnonzero((again != values) & ~(np.isnan(again) & np.isnan(values)))
    if len(moved):
        user = pairs.users[pairs.user_codes[moved[0]]]
        raise DataError(f"User {user!r} has more than one value of `support`; it belongs to the user, so give one.")
    if np.isnan(of_user).all():
        raise DataError("No user has a `support`: all are NaN. Leave it out, or give support rates.")
    return of_user
