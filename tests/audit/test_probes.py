"""Probes against ridge regression on explicit features."""

import numpy as np
import pytest
from helpers.rounding import rounding

from trl_pafo.audit.probes import (
    PENALTIES,
    WITH_HISTORY,
    Kernel,
    PairKernels,
    only_without_history,
    probe_margins,
    validation_losses,
)

RNG = np.random.default_rng(0)
DIFFERENCES, HISTORIES = RNG.normal(size=(40, 5)), RNG.normal(size=(40, 5))
HISTORIES[3] = 0  # a user's first pair
KERNELS = PairKernels(DIFFERENCES @ DIFFERENCES.T, HISTORIES @ HISTORIES.T)
FITTED, JUDGED = np.arange(30), np.arange(30, 40)


@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_the_product_kernel_is_ridge_regression_on_all_products(share):
    """Weights linear in the history: features d and all products of d and h, and no constant."""
    squares = (HISTORIES**2).sum(axis=1)
    scaled = HISTORIES / np.sqrt(squares[squares > 0].mean())
    products = (DIFFERENCES[:, :, None] * scaled[:, None, :]).reshape(40, -1)
    features = np.hstack([np.sqrt(1 - share) * DIFFERENCES, np.sqrt(share) * products])
    penalty = 0.3 * (features[FITTED] ** 2).sum() / len(FITTED)
    x = features[FITTED]
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ np.ones(len(x)))
    margins = probe_margins(KERNELS, FITTED, JUDGED, {(Kernel(None, share), 0.3): 0.0})
    assert margins == pytest.approx(features[JUDGED] @ weights, abs=1e-4)


def test_the_gaussian_kernel():
    squares = (HISTORIES**2).sum(axis=1)
    scaled = HISTORIES / np.sqrt(squares[squares > 0].mean())
    found = KERNELS(FITTED, JUDGED, Kernel(2.0, 0.6))
    for i, j in ((0, 30), (3, 35), (29, 39)):
        near = np.exp(-2.0 * ((scaled[i] - scaled[j]) ** 2).sum())
        assert found[i, j - 30] == pytest.approx(DIFFERENCES[i] @ DIFFERENCES[j] * (0.4 + 0.6 * near), abs=1e-4)


def test_a_turned_pair_has_the_opposite_margin():
    turned = np.vstack([DIFFERENCES, -DIFFERENCES[JUDGED]])
    history = np.vstack([HISTORIES, HISTORIES[JUDGED]])
    kernels = PairKernels(turned @ turned.T, history @ history.T)
    for kernel in WITH_HISTORY:
        margins = probe_margins(kernels, FITTED, np.r_[JUDGED, np.arange(40, 50)], {(kernel, 1.0): 0.0})
        assert margins[:10] == pytest.approx(-margins[10:], abs=rounding(margins))


def test_validation_prefers_the_history_where_it_matters_and_not_where_it_does_not():
    rng = np.random.default_rng(1)
    user, prompt = np.repeat(np.arange(60), 5), rng.integers(40, size=300)
    taste = rng.choice([-1, 1], size=(60, 3))[user] * 1.0
    for depends in (True, False):
        differences = rng.normal(size=(300, 3))
        wanted = (differences * (taste if depends else 1.0)).sum(axis=1)
        differences *= np.sign(wanted)[:, None]
        kernels = PairKernels(differences @ differences.T, taste @ taste.T)
        losses = validation_losses(kernels, np.arange(300), user, prompt, WITH_HISTORY, np.random.default_rng(0))
        assert len(losses) == len(WITH_HISTORY) * len(PENALTIES)
        assert (min(losses, key=losses.get)[0].share > 0) == depends
        without = only_without_history(losses)
        assert len(without) == len(PENALTIES)
        assert all(kernel.share == 0 for kernel, _ in without)


def test_nothing_to_fit_gives_no_preference_and_few_rows_no_validation():
    assert probe_margins(KERNELS, np.array([], dtype=int), JUDGED, {}).tolist() == [0.0] * 10
    one = np.array([0])
    losses = validation_losses(KERNELS, one, np.zeros(40, int), np.zeros(40, int), WITH_HISTORY, np.random.default_rng(0))
    assert losses == {}
    assert np.isfinite(probe_margins(KERNELS, one, JUDGED, losses)).all()
