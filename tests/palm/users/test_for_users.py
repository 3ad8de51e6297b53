"""Portfolios for the users at hand, against trying every set of policies, and against samples of the hull."""

import itertools

import numpy as np
import pytest
from helpers.fronts import Gibbs, Sphere

from trl_pafo.errors import PortfolioError
from trl_pafo.palm import build_for_users, build_portfolio


def relative_gaps(weights: np.ndarray, values: np.ndarray, optimum: np.ndarray) -> np.ndarray:
    return 1 - (weights @ values.T).max(axis=1) / optimum


@pytest.mark.parametrize("seed", range(4))
def test_every_user_is_served_by_the_fewest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    users, oracle = rng.dirichlet(np.ones(3), 12), Sphere()
    found = build_for_users(oracle, users, 0.05)
    true = relative_gaps(users, found.portfolio.values, Sphere.optimum(users))
    assert true.max() <= found.gap + 1e-9 <= 0.05 + 1e-8
    assert len(oracle.asked) == found.portfolio.oracle_calls <= 12
    # No smaller set of the known policies keeps it against the same bound.
    assert found.portfolio.smallest
    values = np.array([call.result.values for call in found.portfolio.calls])
    gaps = 1 - users @ values.T / found.portfolio.upper_bound.at(users)[:, None]
    for chosen in itertools.combinations(range(len(values)), len(found.portfolio) - 1):
        assert gaps[:, chosen].min(axis=1).max() > 0.05


def test_a_hull_keeps_the_promise_between_users() -> None:
    rng = np.random.default_rng(3)
    users = rng.dirichlet([4.0, 2.0, 2.0], 7)
    found = build_for_users(Sphere(), users, 0.05, hull=True)
    between = rng.dirichlet(np.full(7, 0.4), 20_000) @ users
    true = relative_gaps(between, found.portfolio.values, Sphere.optimum(between))
    assert true.max() <= found.gap + 1e-9 <= 0.05 + 1e-8
    bound = relative_gaps(between, found.portfolio.values, found.portfolio.upper_bound.at(between))
    assert found.gap - 0.006 < bound.max() <= found.gap + 1e-9  # the certificate is tight
    everyone = build_portfolio(Sphere(), 3, 0.05, progress=False)
    assert len(found.portfolio) < len(everyone)
    assert found.portfolio.oracle_calls < everyone.oracle_calls
    assert found.portfolio.gap > found.gap  # for all weights it is another matter
    assert "all weights between them" in str(found)


def test_users_on_a_line_and_one_user() -> None:
    users = np.array([[0.5, 0.3, 0.2], [0.3, 0.3, 0.4], [0.4, 0.3, 0.3]])
    found = build_for_users(Sphere(), users, 0.005, hull=True)
    share = np.linspace(0, 1, 101)[:, None]
    between = share * users[0] + (1 - share) * users[1]
    assert relative_gaps(between, found.portfolio.values, Sphere.optimum(between)).max() <= 0.005 + 1e-8
    one = build_for_users(Sphere(), [[0.2, 0.3, 0.5]] * 3, 0.01)
    assert (len(one.portfolio), one.portfolio.oracle_calls, one.num_weights) == (1, 1, 1)


def test_with_a_kl_term_and_an_additive_gap() -> None:
    rng = np.random.default_rng(5)
    oracle = Gibbs(rng.random((6, 3)), 0.1)
    users = rng.dirichlet(np.ones(3), 8)
    found = build_for_users(oracle, users, 0.0, 0.01, hull=True, beta=0.1)
    between = rng.dirichlet(np.full(8, 0.4), 5000) @ users
    earned = (between @ found.portfolio.values.T - 0.1 * found.portfolio.kl).max(axis=1)
    assert (oracle.optimum(between) - earned).max() <= found.gap + 1e-9 <= 0.01 + 1e-8


def test_a_folder_is_shared_with_other_builds(tmp_path) -> None:
    users = np.random.default_rng(0).dirichlet(np.ones(3), 8)
    first = Sphere()
    build_for_users(first, users, 0.05, folder=tmp_path)
    again = Sphere()
    assert build_for_users(again, users, 0.05, folder=tmp_path).portfolio.oracle_calls == len(first.asked)
    assert again.asked == []
    everyone = Sphere()
    build_portfolio(everyone, 3, 0.3, folder=tmp_path, progress=False)
    found = build_for_users(Sphere(), users, 0.05, folder=tmp_path)
    assert found.portfolio.oracle_calls == len(first.asked) + len(everyone.asked)


@pytest.mark.parametrize(
    ("weights", "options", "match"),
    [
        ([0.5, 0.5], {}, "a row a user"),
        ([[0.5, 0.6]], {}, "adding up to 1"),
        ([[1.0, 0.0], [0.0, 1.0]], {"max_calls": 1}, "After max_calls=1 calls"),
        ([[0.5, 0.5]], {"epsilon": 2.0}, "epsilon must be 0 or lie in"),
    ],
)
def test_bad_input(weights: list, options: dict, match: str) -> None:
    with pytest.raises(PortfolioError, match=match):
        build_for_users(Sphere(), weights, **{"epsilon": 0.001, **options})


def test_a_factor_that_no_call_can_make_good() -> None:
    users = [[0.3, 0.7], [0.9, 0.1]]
    with pytest.raises(PortfolioError, match="not near enough to the best"):
        build_for_users(Sphere(), users, 0.05, 0.01, oracle_factor=0.3)
