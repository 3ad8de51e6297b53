"""Quick reward models on frozen features that see a user's past pairs. (Not from the paper.)

A reward is linear in an answer's features, with weights that depend on the history: for a pair with the feature difference d
(chosen minus rejected) and a history whose mean difference is h, the margin is a function of (d, h), odd in d, with the kernel

    k((d, h), (d', h')) = <d, d'> * ((1 - b) + b * s(h, h')).

`b` says how much of the weights is the user's own, `s` how histories are compared: by their scalar product (the weights are then
linear in h: all products of a feature of the pair and one of the history) or by a Gaussian of their distance. Ridge regression on the
target 1 (every margin should be positive) has a closed form. Which kernel and which penalty is chosen on users and prompts that were not
fitted, `b = 0` among them. So the probe sees the history as strongly as the data can bear, which matters: a shared probe that is weaker
than it could be makes the teachers look better than they are.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from trl_pafo.metrics.accuracy import FloatArray, IntArray

SingleArray = NDArray[np.float32]

INNER_FOLDS = 3


class Kernel(NamedTuple):
    """How the weights follow the history: `similarity` of histories (`None`: product; else the width of a Gaussian), share `b`."""

    similarity: float | None
    share: float


WITHOUT_HISTORY = (Kernel(None, 0.0),)
WITH_HISTORY = (
    *WITHOUT_HISTORY,
    *(Kernel(None, share) for share in (0.3, 0.6, 0.9)),
    *(Kernel(0.5, share) for share in (0.6, 0.9)),
    *(Kernel(2.0, share) for share in (0.3, 0.6, 0.9)),
)
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class PairKernels:
    """
    Kernel matrices of pairs with histories.

    Args:
        products (`numpy.ndarray` of shape `(num_pairs, num_pairs)`):
            Scalar products of the pairs' feature differences.
        history_products (`numpy.ndarray` of shape `(num_pairs, num_pairs)`):
            Scalar products of the histories' mean differences; 0 for a pair without a history.
    """

    def __init__(self, products: FloatArray, history_products: FloatArray):
        # Single precision is plenty beside any penalty of the grid, and twice as fast.
        self.products = products.astype(np.float32)
        squares = np.diag(history_products).copy()
        # In units of the mean square, so that the widths and shares mean the same for any features and lengths of histories.
        scale = float(squares[squares > 0].mean()) if (squares > 0).any() else 1.0
        self._histories = (history_products / scale).astype(np.float32)
        self._squares = (squares / scale).astype(np.float32)

    def __call__(self, rows: IntArray, columns: IntArray, kernel: Kernel) -> SingleArray:
        products = self.products[np.ix_(rows, columns)]  # a copy
        if kernel.share == 0:
            return products
        similar = self._histories[np.ix_(rows, columns)]
        if kernel.similarity is not None:
            distances = self._squares[rows][:, None] + self._squares[columns][None] - 2 * similar
            similar = np.exp(np.float32(-kernel.similarity) * np.maximum(distances, 0))
        return products * (np.float32(1 - kernel.share) + np.float32(kernel.share) * similar)


def validation_losses(
    kernels: PairKernels,
    fitted: IntArray,
    user: IntArray,
    prompt: IntArray,
    candidates: tuple[Kernel, ...],
    rng: np.random.Generator,
) -> dict[tuple[Kernel, float], float]:
    """Squared error of each kernel and penalty on held-out users *and* prompts among the rows `fitted`; empty with too few.

    Each of three inner folds holds out a third of the users and a third of the prompts, fits on pairs of neither and is judged
    on pairs of both.
    """
    folds = []
    for labels in (user[fitted], prompt[fitted]):
        values, codes = np.unique(labels, return_inverse=True)
        folds.append((rng.permutation(len(values)) % INNER_FOLDS)[codes])
    losses: dict[tuple[Kernel, float], float] = {}
    for fold in range(INNER_FOLDS):
        judged = fitted[(folds[0] == fold) & (folds[1] == fold)]
        kept = fitted[(folds[0] != fold) & (folds[1] != fold)]
        if not len(judged) or len(kept) < 2:
            continue
        for kernel in candidates:
            inner, outer = kernels(kept, kept, kernel), kernels(judged, kept, kernel)
            for penalty in PENALTIES:
                loss = float(((1.0 - outer @ _ridge(inner, penalty)) ** 2).sum())
                losses[kernel, penalty] = losses.get((kernel, penalty), 0.0) + loss
    return losses


def probe_margins(
    kernels: PairKernels, fitted: IntArray, judged: IntArray, losses: dict[tuple[Kernel, float], float]
) -> FloatArray:
    """Margins of the rows `judged` under the probe with the least validation loss, fitted on the rows `fitted`.

    Without losses (too few rows to hold any out) the penalty is the middle one, without a history. Without rows to fit, 0.
    """
    if not len(fitted):
        return np.zeros(len(judged))
    kernel, penalty = min(losses, key=lambda choice: losses[choice]) if losses else (WITHOUT_HISTORY[0], 0.3)
    margins = kernels(judged, fitted, kernel) @ _ridge(kernels(fitted, fitted, kernel), penalty)
    return margins.astype(np.float64)


def _ridge(kernel: SingleArray, penalty: float) -> SingleArray:
    """Dual weights of ridge regression on the target 1; the penalty is in units of the mean of the diagonal."""
    damped = kernel.copy()
    damped[np.diag_indices_from(damped)] += penalty * max(float(np.trace(kernel)) / len(kernel), 1e-12)
    return cho_solve(cho_factor(damped, lower=True, check_finite=False, overwrite_a=True), np.ones(len(kernel), kernel.dtype))


def only_without_history(losses: dict[tuple[Kernel, float], float]) -> dict[tuple[Kernel, float], float]:
    """Of the losses, those of probes that do not see the history."""
    return {choice: loss for choice, loss in losses.items() if choice[0].share == 0}
