"""The interval of the gap for noise in the values."""

import numpy as np
import pytest

from trl_pafo.errors import PortfolioError
from trl_pafo.palm import OracleResult, Portfolio, UpperBound, build_portfolio, certify


class Noisy:
    """Ten policies with values prompt by prompt; the best by their means."""

    def __init__(self, num_prompts: int, spread: float, beta: float = 0.0):
        rng = np.random.default_rng(0)
        means = rng.uniform(0.3, 0.7, (10, 2))
        noise = spread * rng.uniform(-1, 1, (10, num_prompts, 2)) + spread * rng.uniform(-1, 1, (1, num_prompts, 2))
        self.table = means[:, None] + noise
        self.kl = rng.random((10, num_prompts))
        self.beta = beta

    def __call__(self, weights: np.ndarray) -> OracleResult:
        best = int((self.table.mean(axis=1) @ weights - self.beta * self.kl.mean(axis=1)).argmax())
        values, kl = self.table[best], self.kl[best]
        return OracleResult(values.mean(axis=0), kl.mean(), best, prompt_values=values, prompt_kl=kl)


def portfolio_of(oracle: Noisy, **options) -> Portfolio:
    return build_portfolio(oracle, 2, 0.05, beta=oracle.beta, progress=False, **options)


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_as_by_hand(beta: float) -> None:
    oracle = Noisy(30, 0.1, beta)
    portfolio = portfolio_of(oracle, num_members=1)
    rng = np.random.default_rng(3)
    gaps = []
    for _ in range(25):
        counts = rng.multinomial(30, np.full(30, 1 / 30))
        drawn = np.repeat(np.arange(30), counts)
        values = np.array([oracle.table[c.result.policy][drawn].mean(axis=0) for c in portfolio.calls])
        kl = np.array([oracle.kl[c.result.policy][drawn].mean() for c in portfolio.calls])
        weights = np.array([c.weights for c in portfolio.calls])
        bounds = (weights @ values.T - beta * kl).max(axis=1)
        members = list(portfolio.members)
        bound = UpperBound(weights, bounds, beta)
        gaps.append(certify(values[members], bound, kl=kl[members], beta=beta).relative_gap)
    expected = np.quantile(gaps, [0.05, 0.95])
    assert portfolio.gap_interval(25, level=0.9, seed=3) == pytest.approx(expected, abs=1e-8)


def test_more_prompts_narrow_it_and_equal_prompts_close_it() -> None:
    widths = []
    for num_prompts in (20, 2000):
        low, high = portfolio_of(Noisy(num_prompts, 0.1), num_members=1).gap_interval(40)
        widths.append(high - low)
    assert 0 < widths[1] < widths[0] / 3
    portfolio = portfolio_of(Noisy(6, 0.0), num_members=1)
    assert portfolio.gap_interval(5) == pytest.approx((portfolio.gap, portfolio.gap), abs=1e-9)
    assert np.isnan(portfolio_of(Noisy(5, 0.1), num_members=1).gap_interval(5)).all()


@pytest.mark.parametrize(
    ("changes", "beta", "message"),
    [
        ({"prompt_values": None}, 0.0, "Policy 0 has no `prompt_values`"),
        ({"prompt_kl": None}, 0.1, "Policy 0 has no `prompt_kl`"),
    ],
)
def test_without_values_a_prompt_there_is_none(changes: dict, beta: float, message: str) -> None:
    oracle = Noisy(10, 0.1, beta)

    def forgetful(weights: np.ndarray) -> OracleResult:
        return OracleResult(**{**vars(oracle(weights)), **changes})

    portfolio = build_portfolio(forgetful, 2, 0.05, beta=beta, progress=False)
    with pytest.raises(PortfolioError, match=message):
        portfolio.gap_interval(5)


def test_other_prompts_do_not_compare() -> None:
    def unequal(weights: np.ndarray) -> OracleResult:
        return Noisy(10 if weights[0] > 0.5 else 12, 0.1)(weights)

    with pytest.raises(PortfolioError, match="numbers of prompts differ"):
        build_portfolio(unequal, 2, 0.05, progress=False).gap_interval(5)


def test_options_out_of_range() -> None:
    portfolio = portfolio_of(Noisy(10, 0.1))
    for options in ({"num_resamples": 0}, {"level": 1.0}):
        with pytest.raises(PortfolioError, match="must be positive and level"):
            portfolio.gap_interval(**options)
