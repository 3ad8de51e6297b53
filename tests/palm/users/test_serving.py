"""Who is served by what, against loops over users."""

import numpy as np
import pytest
from helpers.fronts import Finite, Gibbs

from trl_pafo.errors import PortfolioError
from trl_pafo.palm import Optimum, Portfolio, build_portfolio, serve


@pytest.fixture(scope="module")
def portfolio() -> Portfolio:
    values = np.random.default_rng(0).random((30, 3)) ** 0.5
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return build_portfolio(Finite(values), 3, 0.05, progress=False)


@pytest.fixture(scope="module")
def users() -> np.ndarray:
    return np.random.default_rng(1).dirichlet(np.ones(3), 50)


def test_every_user_has_the_best_member_and_no_more_than_the_certified_gap(portfolio: Portfolio, users: np.ndarray) -> None:
    service = serve(portfolio, users)
    with pytest.raises(PortfolioError, match="pass `groups`"):
        service.by_group()
    for weights, member, gap in zip(users, service.members, service.gaps, strict=True):
        earned = [float(np.dot(weights, values)) for values in portfolio.values]
        assert earned[member] == max(earned)
        upper = portfolio.upper_bound.solve(weights)
        assert gap == pytest.approx(1 - max(earned) / upper, abs=1e-8)
        assert gap <= portfolio.gap + 1e-9


def test_with_a_kl_term_what_is_earned_is_net_of_it(users: np.ndarray) -> None:
    oracle = Gibbs(np.random.default_rng(3).random((5, 3)), 0.2)
    portfolio = build_portfolio(oracle, 3, 0.0, 0.02, beta=0.2, progress=False)
    service = serve(portfolio, users, reference=Optimum(oracle.optimum))
    earned = [max(w @ v - 0.2 * kl for v, kl in zip(portfolio.values, portfolio.kl, strict=True)) for w in users]
    assert service.gaps == pytest.approx(oracle.optimum(users) - earned, abs=1e-9)
    assert 0 < service.gaps.max() <= portfolio.gap + 1e-9


def test_usage_and_perplexity(portfolio: Portfolio) -> None:
    # Each member's own weights once: even use. One user alone: one member.
    own = portfolio.weights[[portfolio.choose(w) == member for member, w in enumerate(portfolio.weights)]]
    assert serve(portfolio, own).perplexity == pytest.approx(len(own))
    assert serve(portfolio, own[:1]).perplexity == 1.0
    shares = serve(portfolio, np.repeat(own[:2], [3, 1], axis=0))
    assert sorted(shares.usage)[-2:] == [0.25, 0.75]
    assert np.log(shares.perplexity) == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))


def test_the_worst_served_group(portfolio: Portfolio, users: np.ndarray) -> None:
    gaps = serve(portfolio, users).gaps
    order = np.argsort(gaps)
    groups = np.empty(50, dtype=object)
    groups[order[:30]], groups[order[30:]] = "well", "badly"
    service = serve(portfolio, users, groups.tolist())
    first, second = service.by_group()
    assert (first.name, first.users, second.name, second.users) == ("badly", 20, "well", 30)
    assert first.gap == pytest.approx(np.mean(gaps[order[30:]]))
    assert first.worst_gap == gaps.max()
    assert first.low < first.gap < first.high
    assert 20 * first.usage + 30 * second.usage == pytest.approx(50 * service.usage)
    assert "worst-served group: badly\n" in f"{service}\n"
    assert service.to_json()["groups"][0]["name"] == "badly"
    same = serve(portfolio, np.vstack([users, users]), ["a"] * 50 + ["b"] * 50)
    assert "perhaps by chance" in str(same)


def test_the_interval_of_few_users_is_unknown(portfolio: Portfolio, users: np.ndarray) -> None:
    service = serve(portfolio, users[:5], ["a"] * 5)
    assert np.isnan(service.by_group()[0].low)
    assert "[unknown]" in str(service)
    assert service.to_json()["groups"][0]["low"] is None


@pytest.mark.parametrize(
    ("weights", "groups", "match"),
    [
        ([[0.5, 0.5]], None, r"shape \(num_users, 3\)"),
        (np.zeros((0, 3)), None, "no users to serve"),
        ([[0.2, 0.3, 0.5]], ["a", "b"], "1 users and 2 groups"),
    ],
)
def test_bad_input(portfolio: Portfolio, weights: list, groups: list | None, match: str) -> None:
    with pytest.raises(PortfolioError, match=match):
        serve(portfolio, weights, groups)
