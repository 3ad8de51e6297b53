"""The structured grid: its size, and that it covers the simplex as promised."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_pafo.errors import PortfolioError
from trl_pafo.palm import grid_size, random_weights, size_bound, uniform_weights, weight_grid


@pytest.mark.parametrize(("num_rewards", "points"), [(2, 155), (3, 21_931)])
def test_size_for_five_percent(num_rewards: int, points: int) -> None:
    assert grid_size(num_rewards, 0.05, 0.05) == points
    assert points <= size_bound(num_rewards, 0.05, 0.05)


@pytest.mark.parametrize(("num_rewards", "epsilon", "delta"), [(2, 0.3, 0.2), (3, 0.2, 0.3), (4, 0.5, 0.4), (5, 0.9, 0.9)])
def test_every_point_is_listed_once(num_rewards: int, epsilon: float, delta: float) -> None:
    grid = weight_grid(num_rewards, epsilon, delta)
    assert len(grid) == grid_size(num_rewards, epsilon, delta)
    assert len(np.unique(grid.round(12), axis=0)) == len(grid)
    assert np.allclose(grid.sum(axis=1), 1)
    assert (grid >= 0).all()
    tau = delta / num_rewards
    levels = grid / grid.max(axis=1, keepdims=True)
    inner = levels[(levels > 1e-12) & (levels < 1 - 1e-12)]
    powers = np.log(inner / tau) / np.log1p(epsilon)
    assert np.allclose(powers, powers.round())
    assert (inner > tau * (1 - 1e-9)).all()


@settings(max_examples=40)
@given(st.integers(2, 4), st.floats(0.05, 0.5), st.floats(0.05, 0.5), st.integers(0, 10**6))
def test_a_best_policy_of_the_grid_is_good_everywhere(d: int, epsilon: float, delta: float, seed: int) -> None:
    if grid_size(d, epsilon, delta) > 20_000:
        epsilon, delta = 0.5, 0.5
    rng = np.random.default_rng(seed)
    policies = rng.random((30, d)) ** rng.choice([0.3, 1, 5])
    grid = weight_grid(d, epsilon, delta)
    chosen = policies[np.unique((grid @ policies.T).argmax(axis=1))]
    weights = rng.dirichlet(np.full(d, 0.5), 500)
    best = (weights @ policies.T).max(axis=1)
    assert ((weights @ chosen.T).max(axis=1) >= (1 - epsilon) * best - delta - 1e-12).all()


def test_the_bound_of_palm_as_stated() -> None:
    for d, epsilon, delta in [(2, 0.05, 0.05), (3, 0.1, 0.02), (5, 0.2, 0.1)]:
        assert size_bound(d, epsilon, delta) == d * (2 + math.ceil(math.log(d / delta) / math.log(1 + epsilon))) ** (d - 1)
    assert size_bound(3, 0.05, 0.0) is None


@pytest.mark.parametrize(("d", "delta"), [(2, 0.1), (3, 0.2), (4, 0.5), (5, 0.7)])
def test_the_even_grid_behind_the_additive_bound(d: int, delta: float) -> None:
    bound = size_bound(d, 0.0, delta)
    assert bound == size_bound(d, 0.3, delta, beta=0.1)
    grid = uniform_weights(d, bound)
    assert len(grid) == bound
    weights = random_weights(d, 400)
    nearest = np.abs(weights[:, None] - grid).sum(axis=-1).min(axis=1)
    assert nearest.max() <= delta


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 0.1, 0.1), "at least 2 rewards"),
        ((2, 0.0, 0.1), r"epsilon in \(0, 1\)"),
        ((2, 1.0, 0.1), r"epsilon in \(0, 1\)"),
        ((2, 0.1, 0.0), "delta > 0.*corners"),
        ((5, 0.05, 0.05), "points.*corners"),
    ],
)
def test_a_grid_that_cannot_be_listed_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(PortfolioError, match=message):
        weight_grid(*arguments)
