"""The finished portfolio: choosing, showing, saving, and the interval of its gap."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.fronts import Gibbs, Sphere

from trl_pafo.errors import PortfolioError
from trl_pafo.palm import OracleResult, Portfolio, UpperBound, build_portfolio, certify, random_weights


@pytest.fixture(scope="module")
def portfolio() -> Portfolio:
    return build_portfolio(Sphere(), 3, 0.1, reward_names=["safe", "brief", "kind"], progress=False)


@pytest.fixture(scope="module")
def regularized() -> Portfolio:
    gibbs = Gibbs(np.random.default_rng(0).random((5, 2)), 0.1)
    existing = OracleResult([0.5, 0.5], kl=0.3, policy=Path("old"))
    return build_portfolio(gibbs, 2, 0.0, 0.01, beta=0.1, warm_start=[existing], progress=False)


def test_the_choice_is_the_best_member(portfolio: Portfolio, regularized: Portfolio) -> None:
    for chosen in (portfolio, regularized):
        weights = random_weights(chosen.values.shape[1], 50)
        for row in weights:
            scores = [row @ v - chosen.beta * kl for v, kl in zip(chosen.values, chosen.kl, strict=True)]
            assert chosen.choose(row) == int(np.argmax(scores))
        assert chosen.choose_many(weights).tolist() == [chosen.choose(row) for row in weights]


def test_weights_off_the_simplex(portfolio: Portfolio) -> None:
    with pytest.raises(PortfolioError, match="simplex"):
        portfolio.choose([0.5, 0.5, 0.5])
    with pytest.raises(PortfolioError, match=r"got \[0.5, 0.6, 0. \]"):
        portfolio.choose_many([[0.5, 0.5, 0.0], [0.5, 0.6, 0.0]])
    with pytest.raises(PortfolioError, match=r"\(num_users, 3\), got \(3,\)"):
        portfolio.choose_many([0.5, 0.5, 0.0])


def test_outputs_name_the_objective_and_show_kl(portfolio: Portfolio, regularized: Portfolio) -> None:
    assert "objective w.R; against the upper bound from" in str(portfolio)
    assert "objective w.R - 0.1 KL; against the upper bound from" in str(regularized)
    assert "chosen greedily" in str(replace(portfolio, smallest=False))
    assert regularized.table().splitlines()[0].split(" | ")[-2:] == ["KL", "w.R - 0.1 KL |"]
    rows = portfolio.table().splitlines()
    assert rows[0] == "| member | w safe | w brief | w kind | safe | brief | kind | KL | w.R |"
    # Which of several smallest covers is kept may hang on rounding; what is shown of a member may not.
    weights, values = portfolio.weights[1], portfolio.values[1]
    shown = [*(f"{w:.3f}" for w in weights), *(f"{v:.4f}" for v in values), "unknown", f"{weights @ values:.4f}"]
    assert rows[3] == f"| 1 {portfolio.policies[1]} | {' | '.join(shown)} |"
    old = OracleResult([0.7, 0.7], policy="old")  # of unknown weights
    found = build_portfolio(Sphere(), 2, 0.5, warm_start=[old], num_members=1, progress=False)
    assert found.table().splitlines()[2] == "| 0 old | - | - | 0.7000 | 0.7000 | unknown | - |"


@pytest.mark.parametrize("name", ["portfolio", "regularized"])
def test_saved_and_loaded(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    saved: Portfolio = request.getfixturevalue(name)
    saved.save(tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["portfolio.json"]
    for source in (tmp_path / "out", tmp_path / "out" / "portfolio.json"):
        loaded = Portfolio.load(source)
        assert str(loaded) == str(saved)
        assert np.array_equal(loaded.weights, saved.weights, equal_nan=True)
        assert (loaded.gap, loaded.members, loaded.oracle_calls) == (saved.gap, saved.members, saved.oracle_calls)
        weights = random_weights(saved.values.shape[1], 20)
        assert np.array_equal(loaded.upper_bound.at(weights), saved.upper_bound.at(weights))
    content = json.loads((tmp_path / "out" / "portfolio.json").read_text())
    assert content["objective"] == saved.objective
    assert content["certificate"]["additive_gap"] == saved.certificate.additive_gap


def test_what_cannot_be_saved_or_loaded(portfolio: Portfolio, tmp_path: Path) -> None:
    in_memory = build_portfolio(lambda w: OracleResult(w / np.linalg.norm(w), policy=object()), 2, 0.3, progress=False)
    with pytest.raises(PortfolioError, match="return its path"):
        in_memory.save(tmp_path)
    with pytest.raises(PortfolioError, match="No portfolio at"):
        Portfolio.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(PortfolioError, match="cannot be written to"):
        portfolio.save(tmp_path / "file")
    portfolio.save(tmp_path / "old")
    content = json.loads((tmp_path / "old" / "portfolio.json").read_text())
    first, num_calls = content["calls"][0], len(content["calls"])
    for change, message in [
        ({"format": "trl-pafo portfolio 0"}, "not of this version"),
        ({"members": [num_calls]}, f"`members` must be different places from 0 to {num_calls - 1}, got \\[{num_calls}\\]"),
        ({"members": [0, -1]}, "`members` must be different places"),
        ({"members": [0, 0]}, "`members` must be different places"),
        ({"members": [True]}, "`members` must be different places"),
        ({"members": []}, "`members` must be different places"),
        ({"calls": None}, "not iterable"),
        ({"calls": [{**first, "values": [0.5, 0.5]}]}, r"policy 0: `values` must have shape \(3,\)"),
        ({"calls": [{**first, "values": [0.5, 0.5, 7]}]}, "policy 0: the values .* are outside"),
        ({"calls": [{**first, "weights": [0.5, 0.5, 7]}]}, "policy 0: `weights` must lie on the simplex"),
        ({"calls": [{**first, "weights": [0.5, 0.5]}]}, r"policy 0: `weights` must have shape \(3,\)"),
        ({"calls": [{**first, "values": [10**400, 0, 0]}]}, "OverflowError"),
        ({"reward_names": ["safe", "brief", "brief"]}, "must be 3 different names"),
        ({"epsilon": float("nan")}, "epsilon must be 0 or lie in"),
        ({"beta": -1}, "beta must not be negative"),
        ({"oracle_factor": 1}, "oracle_factor must lie in"),
    ]:
        (tmp_path / "old" / "portfolio.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(
            PortfolioError, match=rf"old/portfolio\.json cannot be read as a portfolio \(.*{message}.*; build it again"
        ):
            Portfolio.load(tmp_path / "old")


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

    def portfolio(self, **options) -> Portfolio:
        return build_portfolio(self, 2, 0.05, beta=self.beta, num_members=1, progress=False, **options)


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_interval_of_the_gap_by_hand(beta: float) -> None:
    oracle = Noisy(30, 0.1, beta)
    portfolio = oracle.portfolio()
    rng = np.random.default_rng(3)
    gaps = []
    for _ in range(25):
        drawn = np.repeat(np.arange(30), rng.multinomial(30, np.full(30, 1 / 30)))
        values = np.array([oracle.table[c.result.policy][drawn].mean(axis=0) for c in portfolio.calls])
        kl = np.array([oracle.kl[c.result.policy][drawn].mean() for c in portfolio.calls])
        weights = np.array([c.weights for c in portfolio.calls])
        bound = UpperBound(weights, (weights @ values.T - beta * kl).max(axis=1), beta)
        members = list(portfolio.members)
        gaps.append(certify(values[members], bound, kl=kl[members], beta=beta).relative_gap)
    expected = np.quantile(gaps, [0.05, 0.95])
    assert portfolio.gap_interval(25, level=0.9, seed=3) == pytest.approx(expected, abs=1e-8)


def test_equal_prompts_close_the_interval_and_few_leave_it_unknown() -> None:
    portfolio = Noisy(6, 0.0).portfolio()
    assert portfolio.gap_interval(5) == pytest.approx((portfolio.gap, portfolio.gap), abs=1e-9)
    assert np.isnan(Noisy(5, 0.1).portfolio().gap_interval(5)).all()


def test_what_an_interval_needs() -> None:
    def unequal(weights: np.ndarray) -> OracleResult:
        return Noisy(10 if weights[0] > 0.5 else 12, 0.1)(weights)

    def without(name: str, beta: float = 0.0):
        return lambda weights: OracleResult(**{**vars(Noisy(10, 0.1, beta)(weights)), name: None})

    for oracle, beta, options, message in [
        (unequal, 0.0, {}, "numbers of prompts differ"),
        (without("prompt_values"), 0.0, {}, "Policy 0 has no `prompt_values`"),
        (without("prompt_kl", 0.1), 0.1, {}, "Policy 0 has no `prompt_kl`"),
        (Noisy(10, 0.1), 0.0, {"num_resamples": 0}, "must be positive and level"),
        (Noisy(10, 0.1), 0.0, {"level": 1.0}, "must be positive and level"),
    ]:
        portfolio = build_portfolio(oracle, 2, 0.05, beta=beta, progress=False)
        with pytest.raises(PortfolioError, match=message):
            portfolio.gap_interval(**options)
