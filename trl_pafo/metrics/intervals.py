"""Intervals from a bootstrap over users, and what a bootstrap cannot know ([`honest_ends`]).

It draws the users that were seen, so its interval lies between the lowest and the highest of them. With `n` users all lie on
the same side of the population's middle in `2^(1 - n)` of samples, so even the complete range misses it more often than
`1 - confidence` where `n < 1 + log2(1 / (1 - confidence))`. With fewer users than that, 6 at 95 %, there is no interval, as
opposed to a narrow one.

Where all users have the *same* accuracy, every resample has it too, and the interval would have no width. But users of
whom the sample holds nobody may differ: if they are a share `q` of all, a sample of `n` misses them with probability
`(1 - q)^n`, which falls below `(1 - confidence) / 2` at `q = 1 - ((1 - confidence) / 2)^(1/n)`. The ends are the means if such
a share of users had the lowest, or the highest, accuracy there is. For users who are all right, or all wrong, this is the
interval of Clopper and Pearson (1934) over users. What is no accuracy has no interval where no resample differs.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from trl_pafo.errors import ConfigError
from trl_pafo.metrics.accuracy import FloatArray


def fewest_users(confidence: float) -> int:
    """Least number of users from which there is an interval, see the top of this module."""
    check_confidence(confidence)
    return math.ceil(1 - math.log2(1 - confidence) - 1e-9)


def honest_ends(
    value: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    num_users: ArrayLike,
    confidence: float,
    limits: tuple[float, float] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Ends of intervals over users that hold their values, and claim nothing that so few users cannot show; NaN where they are not
    known.

    The rules stand at the top of this module. All arrays have the shape `(num_statistics,)`, or broadcast to it: the statistics on
    the data, their ends from a bootstrap, and on how many users each rests. `confidence` is that of each interval by itself.
    `limits` are the lowest and the highest mean that a user can have, where the statistics are means over users.
    """
    at, seen = np.asarray(value, dtype=np.float64), np.asarray(num_users)
    lower, upper = np.minimum(low, at), np.maximum(high, at)
    flat = upper - lower <= 1e-12
    known = seen >= fewest_users(confidence)
    if limits is None:
        known = known & ~flat
    else:
        missed = 1 - ((1 - confidence) / 2) ** (1 / np.maximum(seen, 1))
        lower = np.where(flat, at - missed * (at - limits[0]), lower)
        upper = np.where(flat, at + missed * (limits[1] - at), upper)
    return np.where(known, lower, np.nan), np.where(known, upper, np.nan)


def percentile_interval(resamples: FloatArray, confidence: float) -> tuple[FloatArray, FloatArray]:
    """Lower and upper ends of the percentile interval of each statistic, both of shape `(num_statistics,)`.

    Simple, and too narrow with few users: with 15 users a group, 95 % intervals missed the truth in up to 11 % of simulated
    runs. Good for a plot, not for a claim ([`compare`] makes those).

    Args:
        resamples (array of shape `(num_resamples, num_statistics)`):
            Values on resamples; NaN is left out.
        confidence (`float`):
            Confidence of each interval by itself, in (0, 1).

    Raises:
        ConfigError: If `confidence` is not in (0, 1).
    """
    check_confidence(confidence)
    ends = np.full((2, resamples.shape[1]), np.nan)
    for column, values in enumerate(resamples.T):
        known = values[~np.isnan(values)]
        if len(known):
            ends[:, column] = np.quantile(known, [(1 - confidence) / 2, 1 - (1 - confidence) / 2])
    return ends[0], ends[1]


def check_confidence(confidence: float) -> None:
    """Raise [`ConfigError`] unless the confidence is a probability below 1."""
    if not 0 < confidence < 1:
        raise ConfigError(f"`confidence` must be above 0 and below 1 (0.95 for 95 %), got {confidence}.")
