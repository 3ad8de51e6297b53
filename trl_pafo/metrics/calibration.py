"""Do margins mean what they say? Calibration of the probabilities that a reward model gives to preferences.

Under Bradley-Terry the probability that the chosen response wins is `p = sigmoid(margin)`. The label of a pair is
always "the chosen one wins", so that binning `p` against it would only find that nothing but wins occur. But which
response stands first is arbitrary: a model that gives .3 to the chosen response gives .7 to the rejected one. Pairs are
therefore *folded* to the response that the model prefers: the confidence is `max(p, 1 - p) = sigmoid(|margin|)`, in
[.5, 1], and it is right where the margin is positive (half right at a tie). Among pairs of confidence .7, a calibrated
model is right in 70 %. This equals entering each pair twice, once in either order, and binning `p` over [0, 1].

**Margins must be log-odds**: those of a Bradley-Terry model, raw. A reward that was normalized, clipped or trained with
another loss ranks just as well and is not calibrated.

**Few pairs look uncalibrated.** The error of a perfectly calibrated model is not 0 on a finite sample, and the larger the
fewer pairs there are: a small group has the higher error by chance alone. [`ece_noise`] says how large that is.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from trl_pafo.errors import ConfigError
from trl_pafo.metrics.accuracy import FloatArray, IntArray, check_correct, encode_labels, pair_correctness

Binning = Literal["width", "mass"]
NUM_BINS = 10


class ReliabilityBins(NamedTuple):
    """Pairs by confidence: `edges` of shape `(num_bins + 1,)`; the others of shape `(num_bins,)`.

    `pairs` counts; `confidence` and `accuracy` are means over the pairs of a bin, NaN in an empty one.
    """

    edges: FloatArray
    pairs: IntArray
    confidence: FloatArray
    accuracy: FloatArray


def fold(margins: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Confidence in [.5, 1] and correctness in {0, .5, 1} of each pair, both of shape `(num_pairs,)`.

    Args:
        margins (array of shape `(num_pairs,)`):
            Rewards of the chosen minus rewards of the rejected responses, as log-odds.

    Raises:
        DataError: If there is no pair or a margin is NaN.
    """
    correct = check_correct(pair_correctness(margins), "margins")
    return expit(np.abs(np.asarray(margins, dtype=np.float64))), correct


def bin_edges(confidence: FloatArray, num_bins: int = NUM_BINS, binning: Binning = "width") -> FloatArray:
    """Edges of the bins of confidence, ascending, of shape `(num_bins + 1,)`.

    Args:
        confidence (array of shape `(num_pairs,)`):
            First output of [`fold`].
        num_bins (`int`, *optional*, defaults to `10`):
            Number of bins.
        binning (`str`, *optional*, defaults to `"width"`):
            `"width"`: bins of equal width over [.5, 1], the same for any model and group. `"mass"`: bins of equally
            many pairs, at quantiles of `confidence`; equal confidences stay together, so that there may be fewer bins.

    Raises:
        ConfigError: If an option cannot be used.
    """
    if binning not in get_args(Binning):
        raise ConfigError(f"`binning` must be one of {', '.join(get_args(Binning))}, got {binning!r}.")
    if num_bins < 1:
        raise ConfigError(f"`num_bins` must be at least 1, got {num_bins}.")
    if binning == "width":
        return np.linspace(0.5, 1.0, num_bins + 1)
    edges = np.unique(np.quantile(confidence, np.linspace(0.0, 1.0, num_bins + 1)))
    return edges if len(edges) > 1 else np.repeat(edges, 2)


def place_in_bins(confidence: FloatArray, edges: FloatArray) -> IntArray:
    """The bin of each pair, of shape `(num_pairs,)`. A confidence on an inner edge belongs to the higher bin."""
    return np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, len(edges) - 2)


def reliability(margins: ArrayLike, *, num_bins: int = NUM_BINS, binning: Binning = "width") -> ReliabilityBins:
    """Accuracy against confidence, for a reliability diagram.

    Args:
        margins (array of shape `(num_pairs,)`):
            Margins as log-odds.
        num_bins (`int`, *optional*, defaults to `10`):
            Number of bins.
        binning (`str`, *optional*, defaults to `"width"`):
            As in [`bin_edges`].

    Raises:
        DataError: If there is no pair or a margin is NaN.
        ConfigError: If an option cannot be used.
    """
    confidence, correct = fold(margins)
    edges = bin_edges(confidence, num_bins, binning)
    place = place_in_bins(confidence, edges)
    pairs = np.bincount(place, minlength=len(edges) - 1)
    means = [
        np.divide(
            np.bincount(place, weights=values, minlength=len(pairs)), pairs, out=np.full(len(pairs), np.nan), where=pairs > 0
        )
        for values in (confidence, correct)
    ]
    return ReliabilityBins(edges, pairs, *means)


def ece(margins: ArrayLike, *, num_bins: int = NUM_BINS, binning: Binning = "width") -> float:
    """Expected calibration error: mean over pairs of `|accuracy - confidence|` of their bin, in [0, 1].

    Bins of the folded confidence, as this module says; the measure of Guo et al. (2017) for two classes.

    Args:
        margins (array of shape `(num_pairs,)`):
            Margins as log-odds.
        num_bins (`int`, *optional*, defaults to `10`):
            Number of bins.
        binning (`str`, *optional*, defaults to `"width"`):
            As in [`bin_edges`].

    Raises:
        DataError: If there is no pair or a margin is NaN.
        ConfigError: If an option cannot be used.
    """
    bins = reliability(margins, num_bins=num_bins, binning=binning)
    return float(np.nansum(bins.pairs * np.abs(bins.accuracy - bins.confidence)) / bins.pairs.sum())


def ece_noise(margins: ArrayLike, *, num_bins: int = NUM_BINS, binning: Binning = "width") -> float:
    """The [`ece`] to expect of a perfectly calibrated model of these confidences. (Not from the paper.)

    `sum over bins of sqrt(2 / pi * sum of c (1 - c)) / num_pairs`: the mean absolute deviation of a normal variable with
    the variance of the wins in the bin. For independent pairs; those of one user resemble each other, which adds.
    """
    confidence, _ = fold(margins)
    edges = bin_edges(confidence, num_bins, binning)
    variance = np.bincount(place_in_bins(confidence, edges), weights=confidence * (1 - confidence))
    return float(np.sqrt(2 / np.pi * variance).sum() / len(confidence))


def brier(margins: ArrayLike) -> float:
    """Brier score: mean of `(1 - p)^2`, in [0, 1]. Needs no folding: either order of a pair gives the same.

    .25 for a model that says .5 to everything. (Brier's own sum over both classes, 1950, is twice that.)

    Args:
        margins (array of shape `(num_pairs,)`):
            Margins as log-odds.

    Raises:
        DataError: If there is no pair or a margin is NaN.
    """
    return float(squared_errors(margins).mean())


def squared_errors(margins: ArrayLike) -> FloatArray:
    """What each pair adds to the mean that is [`brier`], of shape `(num_pairs,)`."""
    check_correct(pair_correctness(margins), "margins")
    return expit(-np.asarray(margins, dtype=np.float64)) ** 2


def group_calibration(
    margins: ArrayLike, group: Iterable[object], *, num_bins: int = NUM_BINS, binning: Binning = "width"
) -> dict[str, dict[str, float]]:
    """`ece`, `ece_noise` and `brier` over the pairs of each group, groups in sorted order.

    [`fairness_summary`] gives them with intervals.

    Args:
        margins (array of shape `(num_pairs,)`):
            Margins as log-odds.
        group (`Iterable`, one a pair):
            The group of the pair's user.
        num_bins (`int`, *optional*, defaults to `10`):
            Number of bins.
        binning (`str`, *optional*, defaults to `"width"`):
            As in [`bin_edges`]; `"mass"` takes the quantiles of each group for itself.

    Raises:
        DataError: If there is no pair, a margin is NaN, or a group is missing.
        ConfigError: If an option cannot be used.
    """
    values = np.asarray(margins, dtype=np.float64)
    names, codes = encode_labels(group, "group", values.size)

    def measures(mine: FloatArray) -> dict[str, float]:
        return {
            "ece": ece(mine, num_bins=num_bins, binning=binning),
            "ece_noise": ece_noise(mine, num_bins=num_bins, binning=binning),
            "brier": brier(mine),
        }

    return {name: measures(values[codes == code]) for code, name in enumerate(names)}
