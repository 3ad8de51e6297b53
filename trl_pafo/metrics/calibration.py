"""Do margins mean what they say? Calibration of the probabilities that a reward model gives to preferences.

Under Bradley-Terry the probability that the chosen response wins is `p = sigmoid(margin)`. The label of a pair is always "the
chosen one wins", so binning `p` against it would only find that nothing but wins occur. Pairs are therefore *folded* to the
response that the model prefers: the confidence is `max(p, 1 - p) = sigmoid(|margin|)`, in [.5, 1], and it is right where the
margin is positive (half right at a tie). Among pairs of confidence .7, a calibrated model is right in 70 %. This equals entering
each pair twice, once in either order, and binning `p` over [0, 1].

**Margins must be log-odds**: those of a Bradley-Terry model, raw. A reward that was normalized, clipped or trained with
another loss ranks just as well and is not calibrated.

**Few pairs look uncalibrated.** The error of a perfectly calibrated model is not 0 on a finite sample, and the larger the
fewer pairs there are: a small group has the higher error by chance alone. [`ece_noise`] says how large that is.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from trl_pafo.errors import DataError
from trl_pafo.metrics.accuracy import FloatArray, IntArray, pair_correctness

NUM_BINS = 10


def confidence_bins(margins: ArrayLike) -> tuple[FloatArray, IntArray]:
    """Confidence in [.5, 1] of each pair, and its bin of ten of equal width, both of shape `(num_pairs,)`.

    A confidence on an edge belongs to the higher bin.
    """
    confidence = expit(np.abs(np.asarray(margins, dtype=np.float64)))
    edges = np.linspace(0.5, 1.0, NUM_BINS + 1)
    return confidence, np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, NUM_BINS - 1)


def calibration_sums(user_codes: IntArray, correct: FloatArray, margins: Any) -> FloatArray:
    """Sums of each user, of shape `(1 + NUM_BINS, num_users)`: squared errors, then right answers minus confidences by bin.

    The squared error of a pair is `(1 - p)^2`, whose mean is the Brier score: .25 for a model that says .5 to everything. (Brier's
    own sum over both classes, 1950, is twice that.)

    Raises:
        DataError: If `margins` are not those from which `correct` was made.
    """
    values = np.asarray(margins, dtype=np.float64)
    if values.shape != correct.shape:
        raise DataError(f"There are {len(correct)} pairs, but `margins` has shape {values.shape}; give one per pair.")
    wrong = int((pair_correctness(values) != correct).sum())
    if wrong:
        raise DataError(
            f"`margins` and `correct` disagree on {wrong} of {len(correct)} pairs; give the margins from which "
            "`pair_correctness` made `correct`, in the same order."
        )
    confidence, place = confidence_bins(values)
    num_users = int(user_codes.max()) + 1
    gaps = np.bincount(user_codes * NUM_BINS + place, weights=correct - confidence, minlength=num_users * NUM_BINS)
    return np.stack([np.bincount(user_codes, weights=expit(-values) ** 2), *gaps.reshape(num_users, NUM_BINS).T])


def ece_noise(margins: ArrayLike) -> float:
    """The calibration error to expect of a perfectly calibrated model of these confidences. (Not from the paper.)

    `sum over bins of sqrt(2 / pi * sum of c (1 - c)) / num_pairs`: the mean absolute deviation of a normal variable with
    the variance of the wins in the bin. For independent pairs; those of one user resemble each other, which adds.
    """
    confidence, place = confidence_bins(margins)
    variance = np.bincount(place, weights=confidence * (1 - confidence))
    return float(np.sqrt(2 / np.pi * variance).sum() / len(confidence))
