"""Portfolios for the users at hand, against trying every set of policies."""

import itertools

import numpy as np
import pytest
from helpers.fronts import Gibbs, Sphere

from trl_pafo.errors import PortfolioError
from trl_pafo.palm import build_for_users, build_portfolio


@pytest.mark.parametrize("seed", range(2))
def test_every_user_is_served_by_the_fewest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    users, oracle = rng.dirichlet(np.ones(3), 12), Sphere()
    found = build_for_users(oracle, users, 0.05)
    true = 1 - (users @ found.portfolio.values.T).max(axis=1) / Sphere.optimum(users)
    assert true.max() <= found.gap + 1e-9 <= 0.05 + 1e-8
    assert found.gap < found.portfolio.gap  # for all weights it is another matter
    assert len(oracle.asked) == found.portfolio.oracle_calls <= 12
    # No smaller set of the known policies keeps it against the same bound.
    assert found.portfolio.smallest
    values = np.array([call.result.values for call in found.portfolio.calls])
    gaps = 1 - users @ values.T / found.portfolio.upper_bound.at(users)[:, None]
    for chosen in itertools.combinations(range(len(values)), len(found.portfolio) - 1):
        assert gaps[:, chosen].min(axis=1).max() > 0.05


def test_with_a_kl_term_and_an_additive_gap() -> None:
    rng = np.random.default_rng(5)
    oracle, users = Gibbs(rng.random((6, 3)), 0.1), rng.dirichlet(np.ones(3), 8)
    found = build_for_users(oracle, users, 0.0, 0.01, beta=0.1)
    earned = (users @ found.portfolio.values.T - 0.1 * found.portfolio.kl).max(axis=1)
    assert (oracle.optimum(users) - earned).max() <= found.gap + 1e-9 <= 0.01 + 1e-8


def test_a_folder_is_shared_with_other_builds(tmp_path) -> None:
    users = np.random.default_rng(0).dirichlet(np.ones(3), 8)
    first, again, everyone = Sphere(), Sphere(), Sphere()
    build_for_users(first, users, 0.05, folder=tmp_path)
    assert build_for_users(again, users, 0.05, folder=tmp_path).portfolio.oracle_calls == len(first.asked)
    assert again.asked == []
    build_portfolio(everyone, 3, 0.3, folder=tmp_path, progress=False)
    found = build_for_users(Sphere(), users, 0.05, folder=tmp_path)
    assert found.portfolio.oracle_calls == len(first.asked) + len(everyone.asked)


@pytest.mark.parametrize(
    ("weights", "options", "match"),
    [
        ([0.5, 0.5], {}, "one row per user"),
        ([[1.0, 0.0], [0.0, 1.0]], {"max_calls": 1}, "After max_calls=1 calls"),
        ([[0.3, 0.7], [0.9, 0.1]], {"epsilon": 0.05, "delta": 0.01, "oracle_factor": 0.3}, "not near enough to the best"),
    ],
)
def test_bad_input(weights: list, options: dict, match: str) -> None:
    with pytest.raises(PortfolioError, match=match):
        build_for_users(Sphere(), weights, **{"epsilon": 0.001, **options})
