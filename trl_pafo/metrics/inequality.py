"""How unevenly a benefit is spread over users, in closed forms.

The benefit of a user is its accuracy, never a raw margin: the measures divide by the mean, which has a meaning only
for values >= 0. They see *observed* accuracies, and so the noise of few pairs too: with four pairs each, users of one
and the same true accuracy look unequal. Compare numbers over the same pairs only.

Every function takes `benefits` of shape `(num_users,)` and, optionally, `weights` of shape `(..., num_users)` that say
how often each user counts (whole numbers in a bootstrap). It returns one value for each row of weights: an array of
shape `weights.shape[:-1]`, a scalar without weights. Ties need no rule, since their order changes no value. Where all
benefits are zero nobody has more than another, and every measure says so: 0, or 1 for [`jain`].

All raise [`DataError`] where benefits are missing, negative or not finite, or where weights do not fit.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import xlogy

from trl_pafo.errors import ConfigError, DataError
from trl_pafo.metrics.accuracy import FloatArray


def gini(benefits: ArrayLike, weights: ArrayLike | None = None) -> FloatArray:
    """Gini coefficient: half the mean difference between two users (drawn with replacement), over the mean.

    In [0, 1 - 1/num_users]: 0 where all are equal, the upper bound where one user has everything.
    """
    values, shares = _prepare(benefits, weights)
    order = np.argsort(values)
    shares = shares[..., order]
    up_to = np.cumsum(shares, axis=-1)
    return np.maximum(_sum(shares, _relative(values[order], shares) * (2 * up_to - shares - 1)), 0.0)


def cvar(benefits: ArrayLike, weights: ArrayLike | None = None, share: float = 0.1) -> FloatArray:
    """Mean benefit of the worst `share` of the users (conditional value at risk), in the unit of the benefits.

    Exact where `share * num_users` is not whole: the user on the border counts by the fraction that lies within. With
    fewer than `1 / share` users it is the benefit of the worst one.

    Args:
        share (`float`, *optional*, defaults to `0.1`):
            Share of users, in (0, 1]. At 1, the mean over all.

    Raises:
        ConfigError: If `share` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(f"`share` is a share of the users, above 0 and at most 1; got {share}.")
    values, shares = _prepare(benefits, weights)
    order = np.argsort(values)
    shares = shares[..., order]
    before = np.cumsum(shares, axis=-1) - shares
    tail = np.clip(share - before, 0.0, shares)
    return _sum(tail, values[order]) / tail.sum(axis=-1)


def jain(benefits: ArrayLike, weights: ArrayLike | None = None) -> FloatArray:
    """Jain's index `mean(b)^2 / mean(b^2)` (Jain et al., 1984), in [1/num_users, 1]; 1 where all are equal."""
    values, shares = _prepare(benefits, weights)
    return 1.0 / np.maximum(_sum(shares, _relative(values, shares) ** 2), 1.0)


def atkinson(benefits: ArrayLike, weights: ArrayLike | None = None) -> FloatArray:
    """Atkinson index (Atkinson, 1970) with aversion 1/2: the share of the mean that could be given up if all users had the same.

    `1 - mean(sqrt(b/mu))^2`, in [0, 1]. (With an aversion of 1 or more, a single user with benefit 0 would make it 1.)
    """
    values, shares = _prepare(benefits, weights)
    return np.clip(1.0 - _sum(shares, np.sqrt(_relative(values, shares))) ** 2, 0.0, 1.0)


def theil(benefits: ArrayLike, weights: ArrayLike | None = None) -> FloatArray:
    """Theil index `mean((b/mu) log(b/mu))`, in [0, log num_users] (nats); a user with benefit 0 adds 0."""
    values, shares = _prepare(benefits, weights)
    relative = _relative(values, shares)
    return np.maximum(_sum(shares, xlogy(relative, relative)), 0.0)


def std(benefits: ArrayLike, weights: ArrayLike | None = None) -> FloatArray:
    """Standard deviation over the users (divided by their number), in the unit of the benefits."""
    values, shares = _prepare(benefits, weights)
    mean = _sum(shares, values)
    return np.sqrt(_sum(shares, (values - mean[..., None]) ** 2))


def max_min(benefits: ArrayLike, weights: ArrayLike | None = None) -> FloatArray:
    """Best minus worst benefit among the users that count at all."""
    values, shares = _prepare(benefits, weights)
    best = np.where(shares > 0, values, -np.inf).max(axis=-1)
    return best - np.where(shares > 0, values, np.inf).min(axis=-1)


def mean(benefits: ArrayLike, weights: ArrayLike | None = None) -> FloatArray:
    """Mean benefit of the users, each with the same weight."""
    values, counts = np.asarray(benefits), np.ones(np.shape(benefits)) if weights is None else np.asarray(weights)
    return counts @ values / counts.sum(axis=-1)


USER_MEASURES: dict[str, Callable[[ArrayLike, ArrayLike], FloatArray]] = {
    "mean": mean,
    "worst_decile": cvar,
    "max_min": max_min,
    "std": std,
    "gini": gini,
    "jain": jain,
    "atkinson": atkinson,
    "theil": theil,
}
"""What a summary computes from the users' accuracies, with an interval, under the name `user_{name}`."""


def _prepare(benefits: ArrayLike, weights: ArrayLike | None) -> tuple[FloatArray, FloatArray]:
    """Checked benefits `(num_users,)`, and the share of the population that each user makes up, `(..., num_users)`."""
    values = np.asarray(benefits, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise DataError(f"`benefits` must hold one value per user and at least one user, got shape {values.shape}.")
    if not np.isfinite(values).all() or values.min() < 0:
        raise DataError("`benefits` must be finite and not negative; use the accuracies of users, not their margins.")
    counts = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    if counts.shape[-1:] != values.shape:
        raise DataError(f"`weights` must have {values.size} users on its last axis, got shape {counts.shape}.")
    totals = counts.sum(axis=-1, keepdims=True)
    if not np.isfinite(totals).all() or counts.min() < 0 or totals.min() <= 0:
        raise DataError("`weights` must be finite and not negative, and each row must hold a positive one.")
    return values, counts / totals


def _relative(values: FloatArray, shares: FloatArray) -> FloatArray:
    """Benefits over the mean of each row; ones where all that count are zero, since these are equal."""
    mean = _sum(shares, values)[..., None]
    return np.divide(values, mean, out=np.ones_like(shares), where=mean > 0)


def _sum(shares: FloatArray, terms: FloatArray) -> FloatArray:
    return (shares * terms).sum(axis=-1)
