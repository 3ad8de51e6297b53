"""Does a user's accuracy go with the support of its preferences? Rank correlation, over resamples at once."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from trl_pafo.data.labels import as_label
from trl_pafo.errors import DataError
from trl_pafo.metrics.accuracy import EncodedPairs, FloatArray, IntArray


def spearman(x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> FloatArray:
    """Spearman's rank correlation, ties at their mean rank, in [-1, 1]; NaN where all `x` or all `y` are the same.

    Args:
        x (array of shape `(num_users,)`):
            One quantity, such as the accuracy of each user.
        y (array of shape `(num_users,)`):
            The other, such as its support rate.
        weights (array of shape `(..., num_users)`, *optional*):
            How often each user counts.

    Returns:
        One value for each row of weights, of shape `weights.shape[:-1]`; a scalar without weights.

    Raises:
        DataError: If shapes do not fit, there is no user, or a value is NaN.
    """
    columns = [np.asarray(values, dtype=np.float64) for values in (x, y)]
    if columns[0].ndim != 1 or columns[0].shape != columns[1].shape or not columns[0].size:
        raise DataError(f"`x` and `y` must hold one value a user each, got shapes {columns[0].shape} and {columns[1].shape}.")
    if any(np.isnan(values).any() for values in columns):
        raise DataError("`x` and `y` must not be NaN; leave out the users for whom one is unknown.")
    counts = np.ones(columns[0].size) if weights is None else np.asarray(weights, dtype=np.float64)
    if counts.shape[-1:] != columns[0].shape:
        raise DataError(f"`weights` must have {columns[0].size} users on its last axis, got shape {counts.shape}.")
    found = Ranking.of(columns[0][None], columns[1]).correlation(counts.reshape(-1, columns[0].size))
    return found.reshape(counts.shape[:-1])[()]


class Ranking(NamedTuple):
    """Places of users among the distinct values of several quantities `x`, of shape `(num_x, num_users)`, and of one `y`."""

    x: IntArray
    y: IntArray

    @classmethod
    def of(cls, x: FloatArray, y: FloatArray) -> "Ranking":
        """Sorting once serves any number of resamples."""
        return cls(np.stack([_places(values) for values in x]), _places(y))

    def correlation(self, weights: FloatArray) -> FloatArray:
        """[`spearman`] of each `x` with `y` for each row of weights, of shape `(num_rows, num_x)`."""
        return np.array([self._of_row(row) for row in weights]).reshape(len(weights), len(self.x))

    def _of_row(self, weights: FloatArray) -> list[float]:
        rank_y, spread_y = _mid_ranks(self.y, weights)
        weighted = weights * rank_y[self.y]
        found = []
        for x in self.x:
            rank_x, spread_x = _mid_ranks(x, weights)
            covariance = (np.bincount(x, weights=weighted) * rank_x).sum()
            known = spread_x > 0 and spread_y > 0
            found.append(np.clip(covariance / (np.sqrt(spread_x) * np.sqrt(spread_y)), -1.0, 1.0) if known else np.nan)
        return found


def _places(values: FloatArray) -> IntArray:
    return np.unique(values, return_inverse=True)[1]


def _mid_ranks(places: IntArray, weights: FloatArray) -> tuple[FloatArray, float]:
    """Mean rank of each distinct value, counted from the middle, and the weighted sum of their squares."""
    occurs = np.bincount(places, weights=weights)
    total = occurs.sum()
    # The sum has a closed form, which is exactly 0 where all are the same.
    return np.cumsum(occurs) - (occurs + total) / 2, (total**3 - (occurs * occurs * occurs).sum()) / 12


def support_of_users(support: ArrayLike | Mapping[str, float], pairs: EncodedPairs) -> FloatArray:
    """Support rate of each user of `pairs.users`, of shape `(num_users,)`; NaN where it is unknown.

    Args:
        support (array of shape `(num_pairs,)` or `(num_users,)`, or `Mapping`):
            One value a pair, the same on all pairs of a user; or one a user in the order of `pairs.users`, which is
            sorted; or from user to value. If there are as many pairs as users, an array is taken as one value a pair.
        pairs ([`EncodedPairs`]):
            The pairs.

    Raises:
        DataError: If a user is missing or has two values, shapes do not fit, or no user has a value.
    """
    num_users, num_pairs = len(pairs.users), len(pairs.user_codes)
    if isinstance(support, Mapping):
        given = {as_label(user): value for user, value in support.items()}
        missing = [user for user in pairs.users if user not in given]
        if missing:
            raise DataError(
                f"`support` lacks {len(missing)} of {num_users} users, such as {missing[0]!r}; give NaN where it is unknown."
            )
        of_user = np.array([given[user] for user in pairs.users], dtype=np.float64)
    else:
        try:
            values = np.asarray(support, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"`support` must hold numbers: {error}. Correct it, or leave it out.") from error
        if values.shape == (num_pairs,):
            of_user = np.full(num_users, np.nan)
            of_user[pairs.user_codes] = values
            again = of_user[pairs.user_codes]
            moved = np.flatnonzero((again != values) & ~(np.isnan(again) & np.isnan(values)))
            if len(moved):
                user = pairs.users[pairs.user_codes[moved[0]]]
                raise DataError(f"User {user!r} has more than one value of `support`; it belongs to the user, so give one.")
        elif values.shape == (num_users,):
            of_user = values
        else:
            raise DataError(
                f"`support` must hold one value for each of {num_pairs} pairs, or of {num_users} users, got shape {values.shape}."
            )
    if np.isnan(of_user).all():
        raise DataError(
            "No user has a `support`: all are NaN. Leave it out, or give the support rates of `trl_pafo.data.groups`."
        )
    return of_user
