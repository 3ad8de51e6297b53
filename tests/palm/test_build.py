"""PALM from end to end: the promise, the number of calls, the options, what is refused, and resuming."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from helpers.fronts import Finite, Gibbs, Sphere
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_pafo.errors import PortfolioError
from trl_pafo.palm import OracleResult, Portfolio, build_portfolio, certify, grid_size, random_weights, size_bound, weight_grid


def build(oracle, num_rewards: int = 2, epsilon: float = 0.1, delta: float = 0.0, **options) -> Portfolio:
    return build_portfolio(oracle, num_rewards, epsilon, delta, progress=False, **options)


# The promise


@settings(max_examples=15)
@given(
    st.integers(0, 10**6),
    st.integers(2, 4),
    st.sampled_from([(0.05, 0.0), (0.02, 0.03), (0.0, 0.03), (0.3, 0.0)]),
    st.sampled_from(["even", "few numbers", "specialists", "a reward that nobody earns"]),
)
def test_every_weight_is_served_within_the_tolerance(seed: int, d: int, tolerances: tuple[float, float], kind: str) -> None:
    rng = np.random.default_rng(seed)
    policies = rng.random((20, d))
    if kind == "few numbers":
        policies = (policies * 3).round() / 3
    if kind == "specialists":
        policies[:d] = np.eye(d)
    if kind == "a reward that nobody earns":
        policies[:, 0] = 0
    epsilon, delta = tolerances
    portfolio = build(Finite(policies), d, epsilon, delta)
    weights = random_weights(d, 300, seed)
    best, served = (weights @ policies.T).max(axis=1), (weights * portfolio.values[portfolio.choose_many(weights)]).sum(axis=1)
    assert (served >= (1 - epsilon) * best - delta - 1e-8).all()
    true = certify(portfolio.values, policies, delta=delta).gap(portfolio.measure)
    assert true - 1e-8 <= portfolio.gap <= (epsilon if epsilon > 0 else delta)
    assert portfolio.smallest
    assert len(portfolio) <= (size_bound(d, epsilon, delta) or np.inf)
    assert portfolio.observed_factor == 0


@pytest.mark.parametrize("beta", [0.05, 0.3])
def test_the_promise_with_a_kl_term(beta: float) -> None:
    gibbs = Gibbs(np.random.default_rng(1).random((8, 3)), beta)
    portfolio = build(gibbs, 3, 0.0, 0.01, beta=beta)
    true = certify(portfolio.values, gibbs.optimum, kl=portfolio.kl, beta=beta)
    assert true.additive_gap <= portfolio.gap <= 0.01
    assert 1 < len(portfolio) <= size_bound(3, 0.0, 0.01, beta)


def test_a_kl_that_counts_and_is_not_known_is_refused() -> None:
    """Taken for 0, it would make policies far from the reference look as good as any."""
    for options in ({}, {"warm_start": [OracleResult([0.5, 0.5])]}):
        oracle = Gibbs(np.random.default_rng(1).random((8, 2)), 0.1) if options else Sphere()
        with pytest.raises(PortfolioError, match=r"has no `kl`, which the objective w\.R - 0\.1 KL needs"):
            build(oracle, 2, 0.0, 0.1, beta=0.1, **options)


# Few calls


@pytest.mark.parametrize(
    ("d", "epsilon", "most_calls"), [(2, 0.015, 10), (3, 0.05, 30), pytest.param(5, 0.1, 150, marks=pytest.mark.slow)]
)
def test_few_calls_on_the_quarter_sphere(d: int, epsilon: float, most_calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trl_pafo.palm.solver.search.weight_grid", None)  # no grid is listed
    oracle = Sphere()
    portfolio = build(oracle, d, epsilon)
    assert len(oracle.asked) == portfolio.oracle_calls <= most_calls
    assert certify(portfolio.values, Sphere.optimum).relative_gap <= portfolio.gap <= epsilon


def test_a_share_for_the_pruning_trades_calls_for_members() -> None:
    plain, shared = build(Sphere(), 3), build(Sphere(), 3, pruning_share=0.5)
    assert shared.oracle_calls > plain.oracle_calls
    assert len(shared) < len(plain)
    assert shared.gap <= 0.1


def test_the_grid_of_the_paper() -> None:
    oracle = Sphere()
    portfolio = build(oracle, 2, 0.06, 0.06, search="grid")
    assert portfolio.gap <= 0.06
    assert portfolio.oracle_calls < grid_size(2, 0.06, 0.06) / 10
    # Every question stands on the grid of its shares: nothing was left to repair.
    grid = weight_grid(2, 0.03 / 0.97, 0.03)
    assert all(np.abs(grid - weights).sum(axis=1).min() < 1e-9 for weights in oracle.asked)


def test_a_leak_off_the_grid_is_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    # A grid that holds less than it promises: the corner weights ask what it left out.
    monkeypatch.setattr("trl_pafo.palm.solver.search.weight_grid", lambda *args, **options: np.eye(3))
    oracle = Sphere()
    portfolio = build(oracle, 3, 0.1, 0.01, search="grid")
    assert len(oracle.asked) > 3
    assert certify(portfolio.values, Sphere.optimum, delta=0.01).relative_gap <= portfolio.gap <= 0.1


# Options


def test_the_best_of_so_many() -> None:
    portfolio = build(Finite(np.random.default_rng(2).random((30, 2)) ** 0.4), 2, 0.005, num_members=2)
    values = np.array([call.result.values for call in portfolio.calls])
    gaps = [certify(values[list(pair)], portfolio.upper_bound).relative_gap for pair in combinations(range(len(values)), 2)]
    assert len(portfolio) == 2
    assert portfolio.gap == pytest.approx(min(gaps), abs=2e-6)
    assert portfolio.gap > 0.005


def test_existing_policies_cost_no_call() -> None:
    weights = random_weights(2, 4, seed=1)
    existing = [(w, OracleResult(w / np.linalg.norm(w), policy=f"old {i}")) for i, w in enumerate(weights)]
    oracle = Sphere()
    portfolio = build(oracle, 2, 0.05, warm_start=existing)
    assert portfolio.oracle_calls == len(oracle.asked) < build(Sphere(), 2, 0.05).oracle_calls + 1
    assert not any(np.allclose(w, asked) for w in weights for asked in oracle.asked)
    assert sum(call.warm for call in portfolio.calls) == 4
    # A good policy of unknown weights may serve, but says nothing about the optimum.
    unknown = build(Sphere(), 2, 0.3, warm_start=[OracleResult(np.full(2, 0.5**0.5), policy="old")])
    assert unknown.policies == ("old",)
    assert unknown.oracle_calls == len(unknown.upper_bound.weights) == 2


def test_an_inexact_oracle_whose_factor_is_given() -> None:
    class Sloppy(Sphere):
        """At least 1 - 0.02 of the best at every weight."""

        def __call__(self, weights: np.ndarray) -> OracleResult:
            result = super().__call__(weights)
            return OracleResult(0.98 * np.asarray(result.values) if len(self.asked) % 2 else result.values)

    portfolio = build(Sloppy(), 2, 0.06, oracle_factor=0.02)
    assert certify(portfolio.values, Sphere.optimum).relative_gap <= portfolio.gap <= 0.06
    assert "taken as within 0.02 of the best" in str(portfolio)
    with pytest.raises(PortfolioError, match=r"no number of calls certifies epsilon=0\.02: ask for more"):
        build(Sloppy(), 2, 0.02, oracle_factor=0.02)


def test_an_inexact_oracle_whose_factor_is_estimated() -> None:
    # The best policy for the middle is there already; the oracle's own answer in the middle is 10 % worse.
    worse = Finite([[1.0, 0.0], [0.0, 1.0], [0.72, 0.72]])
    known = [OracleResult([0.8, 0.8]), (np.array([0.5, 0.5]), OracleResult([0.72, 0.72]))]
    estimated = build(worse, 2, 0.2, warm_start=known, oracle_factor="estimate")
    assert estimated.observed_factor == estimated.upper_bound.factor == pytest.approx(0.1)


def test_an_oracle_too_far_from_the_best_serves_with_what_it_found() -> None:
    with pytest.raises(PortfolioError, match="weights that the oracle has answered"):
        build(Sphere(), 2, 0.1, 0.001, oracle_factor=0.3)
    portfolio = build(Sphere(), 2, 0.1, 0.001, oracle_factor=0.3, num_members=2)
    assert len(portfolio) == 2
    assert portfolio.gap > 0.1


def test_progress_shows_calls_and_gap(capsys: pytest.CaptureFixture) -> None:
    build_portfolio(Sphere(), 2, 0.1)
    shown = capsys.readouterr().err
    assert "asked=0.1000, gap=0.1464" in shown
    assert "gap=0.0761, members=2" in shown.splitlines()[-1]


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rewards": 1}, "at least 2 rewards"),
        ({"epsilon": float("nan")}, "epsilon must be 0 or lie"),
        ({"epsilon": 0.0}, "epsilon or delta be at least 1e-6"),
        ({"delta": -0.1}, "delta must not be negative"),
        ({"beta": -1.0}, "beta must not be negative"),
        ({"pruning_share": 1.0}, r"pruning_share must lie in \[0, 1\)"),
        ({"oracle_factor": 1.0}, r"oracle_factor must lie in \[0, 1\)"),
        ({"num_members": 0}, "num_members must be at least 1"),
        ({"reward_names": ["a", "a"]}, "2 different names"),
        ({"search": "random"}, "search='random' is unknown"),
        ({"search": "grid"}, "needs epsilon > 0 and delta > 0"),
        ({"warm_start": [3]}, r"warm_start\[0\] must be an OracleResult or a pair"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:
    oracle = Sphere()
    with pytest.raises(PortfolioError, match=message):
        build(oracle, **options)
    assert not oracle.asked


def test_too_many_calls() -> None:
    with pytest.raises(PortfolioError, match=r"After max_calls=4 calls the relative gap is 0.1464, asked: 0.01. Raise max_calls"):
        build(Sphere(), 2, 0.01, max_calls=4)
    portfolio = build(Sphere(), 2, 0.01, max_calls=4, num_members=3)
    assert portfolio.oracle_calls == 4
    assert portfolio.gap > 0.01
    with pytest.raises(PortfolioError, match="some rewards were not asked yet"):
        build(Sphere(), 2, 0.01, max_calls=0, num_members=3, warm_start=[OracleResult([0.5, 0.5])])


# Resuming


def test_a_failed_oracle_loses_nothing_and_a_finer_tolerance_goes_on(tmp_path: Path) -> None:
    class Failing(Sphere):
        def __call__(self, weights: np.ndarray) -> OracleResult:
            if len(self.asked) == 4:
                raise RuntimeError("CUDA out of memory")
            return super().__call__(weights)

    with pytest.raises(PortfolioError, match=r"CUDA out of memory\. The 4 answers before it are kept in .*calls.jsonl"):
        build(Failing(), 2, 0.015, folder=tmp_path)
    assert not (tmp_path / "portfolio.json").exists()
    rest, uninterrupted = Sphere(), Sphere()
    resumed, expected = build(rest, 2, 0.015, folder=tmp_path), build(uninterrupted, 2, 0.015)
    assert np.array_equal(np.array(uninterrupted.asked)[4:], rest.asked)
    assert (resumed.oracle_calls, resumed.gap) == (expected.oracle_calls, expected.gap)
    assert np.array_equal(resumed.values, expected.values)
    assert Portfolio.load(tmp_path).policies == resumed.policies
    again = Sphere()
    assert build(again, 2, 0.015, folder=tmp_path).gap == expected.gap
    assert not again.asked
    assert build(again, 2, 0.01, folder=tmp_path).oracle_calls == expected.oracle_calls + len(again.asked)


def test_another_problem_in_the_folder_is_refused(tmp_path: Path) -> None:
    named = Sphere()
    named.problem = {"base": "tiny"}  # type: ignore[attr-defined]
    build(named, folder=tmp_path)
    with pytest.raises(PortfolioError, match="a different problem"):
        build(named, folder=tmp_path, problem={"base": "large"})
