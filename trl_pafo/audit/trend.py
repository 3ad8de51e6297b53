"""User accuracy against the support of the user's preferences: the bias that PAFO is about."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from trl_pafo.audit.ceiling import mean_over_users, user_weights, with_interval
from trl_pafo.metrics import spearman
from trl_pafo.metrics.accuracy import FloatArray, check_correct, encode_labels

MAX_VALUES = 8
NUM_BINS = 6


def accuracy_against_support(
    correct: ArrayLike,
    user: Iterable[object],
    support: ArrayLike,
    ceiling: ArrayLike | None = None,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy of users by their support rate, its trend, and the noise ceiling beside it.

    Args:
        correct (array of shape `(num_pairs,)`):
            Correctness of each pair, in [0, 1].
        user (`Iterable`, one a pair):
            Whose pair it is.
        support (array of shape `(num_pairs,)`):
            Support rate of the pair's user.
        ceiling (array of shape `(num_pairs,)`, *optional*):
            Whether the majority of others is right, as of [`~trl_pafo.audit.ceiling.majority_of_others`]; NaN where unknown.
        num_resamples (`int`, *optional*, defaults to `1000`):
            Resamples over users.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resamples.

    Returns:
        `dict`: `spearman` (accuracy of users with support; NaN where either does not vary) and `slope` (accuracy gained from
        support 0 to 1, of the least-squares line over pairs) with `value`, `low`, `high`, and the line's `intercept`; `users`,
        with `support`, `accuracy`, `pairs` of each; `bins`, each with `low` and `high` support, `mean` support, `users`, `pairs`,
        `accuracy` with its interval, and where a ceiling is given `common_pairs`, and on these `ceiling` and `accuracy_there`.
    """
    correct = check_correct(correct)
    rates = np.asarray(support, dtype=np.float64)
    _, codes = encode_labels(user, "user", len(correct))
    pairs = np.bincount(codes)
    accuracy = np.bincount(codes, correct) / pairs
    rate = np.zeros(len(pairs))
    rate[codes] = rates
    weights = user_weights(len(pairs), num_resamples, seed)
    slopes, intercepts = _lines(rate, accuracy, weights * pairs)
    bins = []
    for number, members in enumerate(_bins(rate)):
        rows = members[codes]
        entry: dict[str, Any] = {
            "low": float(rate[members].min()),
            "high": float(rate[members].max()),
            "mean": float(rates[rows].mean()),
            "users": int(members.sum()),
            "pairs": int(rows.sum()),
        }
        own = user_weights(int(members.sum()), num_resamples, seed + number + 1)
        place = np.cumsum(members) - 1
        entry["accuracy"] = mean_over_users(correct[rows], place[codes[rows]], own)
        if ceiling is not None:
            best = np.asarray(ceiling, dtype=np.float64)
            common = rows & ~np.isnan(best)
            entry["common_pairs"] = int(common.sum())
            if common.any():
                entry["ceiling"] = mean_over_users(best[common], place[codes[common]], own)
                entry["accuracy_there"] = float(correct[common].mean())
        bins.append(entry)
    return {
        "spearman": with_interval(spearman(accuracy, rate, weights), len(pairs)),
        "slope": with_interval(slopes, len(pairs)),
        "intercept": float(intercepts[0]),
        "users": {"support": rate.tolist(), "accuracy": accuracy.tolist(), "pairs": pairs.tolist()},
        "bins": bins,
    }


def _lines(x: FloatArray, y: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Slope and intercept of the weighted least-squares line, one a row of weights; NaN where x does not vary."""
    total = weights.sum(axis=1)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    spread = weights @ x**2 / total - mean_x**2
    together = weights @ (x * y) / total - mean_x * mean_y
    slope = np.divide(together, spread, out=np.full_like(spread, np.nan), where=spread > 1e-12)
    return slope, mean_y - slope * mean_x


def _bins(rate: FloatArray) -> list[Any]:
    """Members of each bin: one a value where there are few values, else about equally many users."""
    values = np.unique(rate)
    if len(values) <= MAX_VALUES:
        return [rate == value for value in values]
    edges = np.unique(np.quantile(rate, np.linspace(0, 1, NUM_BINS + 1)))
    place = np.clip(np.searchsorted(edges, rate, side="right") - 1, 0, len(edges) - 2)
    return [place == number for number in range(len(edges) - 1) if (place == number).any()]
