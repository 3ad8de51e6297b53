"""Which group does a history speak for? The posterior of the group, and the mixture of the teachers under it. (Not from the paper.)

Groups are in the sorted order of their names, margins in units of their teachers' temperatures; all is float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq, minimize
from scipy.special import expit, log_expit, log_softmax, logsumexp, softmax

from trl_pafo.data.groups import FloatArray
from trl_pafo.errors import DataError

TEMPERATURES = (0.05, 20.0)
"""The least and the largest temperature that is fitted, in reward units."""


def fit_temperature(margins: ArrayLike) -> float:
    """The temperature `t` with the least mean of `-log sigmoid(margin / t)`, in reward units, within [`TEMPERATURES`].

    The margins, of shape `(num_pairs,)`, are a teacher's of held-out labeled pairs of its group, chosen minus rejected. Without one
    other than 0 it is 1; one that is not finite raises [`DataError`].
    """
    values = _finite(margins, "margins")

    def slope(inverse: float) -> float:
        """Derivative with respect to `1 / t`, in which the mean is convex; of least and largest margins it has one sign."""
        return float(-(values * expit(-values * inverse)).mean())

    if not values.any():
        return 1.0
    least, largest = TEMPERATURES
    if slope(1 / least) <= 0:
        return least
    return largest if slope(1 / largest) >= 0 else float(1 / brentq(slope, 1 / largest, 1 / least, xtol=1e-12))


def history_scores(past_margins: ArrayLike, past: Sequence[Sequence[int]]) -> FloatArray:
    """How well each teacher explains each history: the sum of `log sigmoid(margin)` over its pairs, of shape `(num_rows,
    num_groups)`.

    `past_margins`, of shape `(num_past_pairs, num_groups)`, are those of each past pair under each teacher, divided by its
    temperature; `past` says for each row which of the pairs are its history. An empty history scores 0.
    """
    log_likelihoods = log_expit(_finite(past_margins, "past_margins"))
    scores = np.zeros((len(past), log_likelihoods.shape[1]))
    pairs = np.array([pair for history in past for pair in history], dtype=np.int64)
    np.add.at(scores, np.repeat(np.arange(len(past)), [len(history) for history in past]), log_likelihoods[pairs])
    return scores


@dataclass(frozen=True)
class GroupLikelihood:
    """
    Log likelihood of a group given a history, `slope * score + bias` up to a constant; 0 for all groups where the history is empty.

    The slope is at least 0, one for all groups. The biases, of shape `(num_groups,)`, sum to 0, and are 0 for a group without
    histories.
    """

    slope: float
    bias: FloatArray

    @classmethod
    def fit(cls, scores: ArrayLike, group: ArrayLike) -> "GroupLikelihood":
        """Multinomial regression of the place of each row's group on [`history_scores`], in which each group that is there counts
        the same.

        A ridge that draws the slope toward 1, as strong as half a squared unit in the log likelihood of all rows, ends the fit
        where the scores tell the groups without error. Without non-empty histories of two groups the slope is 1 and the biases are
        0. A score that is not finite, or a group that is not among those of the scores, raises [`DataError`].
        """
        scores, places = _finite(scores, "scores"), np.asarray(group)
        num_groups = scores.shape[1]
        if places.shape != scores.shape[:1] or not np.isin(places, np.arange(num_groups)).all():
            raise DataError(
                f"`group` must hold a place from 0 to {num_groups - 1} for each of the {len(scores)} rows of `scores`."
            )
        tells = scores.any(axis=1)
        scores, counts = scores[tells], np.bincount(places[tells].astype(np.int64), minlength=num_groups)
        bias, there = np.zeros(num_groups), counts > 0
        if there.sum() < 2:
            return cls(1.0, bias)
        own = (np.cumsum(there) - 1)[places[tells].astype(np.int64)]
        scores, weight, is_own = scores[:, there], 1 / (there.sum() * counts[there])[own], np.eye(there.sum())[own]

        def loss(parameters: FloatArray) -> tuple[float, FloatArray]:
            slope, logits = parameters[0], parameters[0] * scores + parameters[1:]
            log_share = log_softmax(logits, axis=1)
            excess = weight[:, None] * (np.exp(log_share) - is_own)
            value = -(weight * log_share[is_own > 0]).sum() + (slope - 1) ** 2 / (2 * len(own))
            return value, np.array([(excess * scores).sum() + (slope - 1) / len(own), *excess.sum(axis=0)])

        start, bounds = np.array([1.0, *np.zeros(there.sum())]), [(0.0, None)] + [(None, None)] * there.sum()
        options = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 10_000, "maxfun": 100_000}
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
        bias[there] = found[1:] - found[1:].mean()
        return cls(float(found[0]), bias)

    def log_likelihood(self, scores: ArrayLike) -> FloatArray:
        """Of each group for each row of scores, of shape `(num_rows, num_groups)`, up to a constant of the row."""
        scores = _finite(scores, "scores")
        return np.where(scores.any(axis=1, keepdims=True), self.slope * scores + self.bias, 0.0)


def posterior(log_likelihood: ArrayLike, log_prior: ArrayLike, tau: float) -> FloatArray:
    """`softmax(log likelihood + (1 - tau) log prior)` over the groups, of shape `(num_rows, num_groups)`.

    The log likelihood has this shape, the log of the groups' shares `(num_groups,)`. With a `tau` of 0 the groups have their
    shares, with 1 all the same.
    """
    return softmax(np.asarray(log_likelihood, dtype=np.float64) + (1 - tau) * np.asarray(log_prior, dtype=np.float64), axis=1)


def mixture_margin(margins: ArrayLike, q: ArrayLike) -> FloatArray:
    """The log odds of `sum_g q_g sigmoid(margin_g)`, of shape `(num_rows,)`.

    Margins, divided by the teachers' temperatures, and weights `q`, whose rows sum to 1, have the shape `(num_rows, num_groups)`.
    """
    margins = np.asarray(margins, dtype=np.float64)
    return logsumexp(log_expit(margins), b=q, axis=1) - logsumexp(log_expit(-margins), b=q, axis=1)


def _finite(values: ArrayLike, name: str) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise DataError(f"`{name}` must be finite; check the rewards they come from.")
    return array
