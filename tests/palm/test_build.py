"""PALM as a whole: the promise, the number of calls, the options, what is refused, and resuming."""

import os
import signal
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from helpers.fronts import Finite, Gibbs, Sphere
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_pafo.errors import PortfolioError
from trl_pafo.palm import OracleResult, Portfolio, build_portfolio, certify, grid_size, random_weights, weight_grid


def build(oracle, num_rewards: int, epsilon: float, delta: float = 0.0, **options) -> Portfolio:
    return build_portfolio(oracle, num_rewards, epsilon, delta, progress=False, **options)


# The promise


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(2, 4),
    st.sampled_from([(0.05, 0.0), (0.02, 0.03), (0.0, 0.03), (0.3, 0.0)]),
    st.sampled_from(["even", "few numbers", "specialists"]),
)
def test_every_weight_is_served_within_the_tolerance(seed: int, d: int, tolerances: tuple[float, float], kind: str) -> None:
    rng = np.random.default_rng(seed)
    policies = rng.random((20, d))
    if kind == "few numbers":
        policies = (policies * 3).round() / 3
    if kind == "specialists":
        policies[:d] = np.eye(d)
    epsilon, delta = tolerances
    portfolio = build(Finite(policies), d, epsilon, delta)
    true = certify(portfolio.values, policies, epsilon=epsilon, delta=delta)
    weights = random_weights(d, 300, seed)
    best, served = (weights @ policies.T).max(axis=1), (weights * portfolio.values[portfolio.choose_many(weights)]).sum(axis=1)
    assert (served >= (1 - epsilon) * best - delta - 1e-8).all()
    goal = epsilon if epsilon > 0 else delta
    assert true.gap(portfolio.measure) <= portfolio.gap + 1e-8
    assert portfolio.gap <= goal
    assert portfolio.smallest
    assert portfolio.size_bound is None or len(portfolio) <= portfolio.size_bound
    assert portfolio.observed_factor == 0


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_no_fewer_of_the_known_policies_would_do(seed: int) -> None:
    policies = np.random.default_rng(seed).random((15, 2)) ** 0.5
    portfolio = build(Finite(policies), 2, 0.02)
    values = np.array([call.result.values for call in portfolio.calls])
    for members in combinations(range(len(values)), len(portfolio) - 1):
        if members:
            assert certify(values[list(members)], portfolio.upper_bound).relative_gap > 0.02


@pytest.mark.parametrize("beta", [0.05, 0.3])
def test_the_promise_with_a_kl_term(beta: float) -> None:
    gibbs = Gibbs(np.random.default_rng(1).random((8, 3)), beta)
    portfolio = build(gibbs, 3, 0.0, 0.01, beta=beta)
    true = certify(portfolio.values, gibbs.optimum, kl=portfolio.kl, beta=beta)
    assert true.additive_gap <= portfolio.gap <= 0.01
    assert len(portfolio) <= portfolio.size_bound
    assert len(portfolio) > 1


def test_negative_rewards_with_an_additive_gap() -> None:
    policies = np.random.default_rng(0).uniform(-5, 5, (30, 3))
    portfolio = build(Finite(policies), 3, 0.0, 0.5, reward_range=(-5.0, 5.0))
    assert certify(portfolio.values, policies).additive_gap <= portfolio.gap + 1e-8 <= 0.5 + 1e-8


def test_a_reward_that_nobody_can_earn() -> None:
    policies = np.array([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.6, 0.6, 0.0]])
    portfolio = build(Finite(policies), 3, 0.05)
    assert certify(portfolio.values, policies).relative_gap <= 0.05


# Few calls


def test_quarter_circle() -> None:
    oracle = Sphere()
    portfolio = build(oracle, 2, 0.015)
    assert len(oracle.asked) == portfolio.oracle_calls <= 10
    assert certify(portfolio.values, Sphere.optimum).relative_gap <= portfolio.gap <= 0.015


def test_quarter_sphere() -> None:
    oracle = Sphere()
    portfolio = build(oracle, 3, 0.05)
    assert len(oracle.asked) == portfolio.oracle_calls <= 30
    assert certify(portfolio.values, Sphere.optimum).relative_gap <= portfolio.gap <= 0.05


def test_share_for_the_pruning_trades_calls_for_members() -> None:
    plain, shared = build(Sphere(), 3, 0.1), build(Sphere(), 3, 0.1, split=(0.0, 0.5, 0.5))
    assert shared.oracle_calls > plain.oracle_calls
    assert len(shared) < len(plain)
    assert shared.gap <= 0.1


@pytest.mark.slow
def test_five_rewards_without_listing_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trl_pafo.palm.solver.search.weight_grid", None)
    portfolio = build(Sphere(), 5, 0.1)
    assert portfolio.gap <= 0.1
    assert certify(portfolio.values, Sphere.optimum).relative_gap <= portfolio.gap


def test_the_grid_of_the_paper() -> None:
    oracle = Sphere()
    portfolio = build(oracle, 2, 0.06, 0.06, search="grid")
    assert portfolio.gap <= 0.06
    assert portfolio.oracle_calls < grid_size(2, 0.06, 0.06) / 10
    # Every question stands on the grid of its shares: nothing was left to repair.
    grid = weight_grid(2, 0.03 / 0.97, 0.03)
    assert all(np.abs(grid - weights).sum(axis=1).min() < 1e-9 for weights in oracle.asked)
    assert len(portfolio) <= portfolio.size_bound


def test_a_leak_off_the_grid_is_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    # A grid that holds less than it promises: the corner weights ask what it left out.
    monkeypatch.setattr("trl_pafo.palm.solver.search.weight_grid", lambda *args, **options: np.eye(3))
    oracle = Sphere()
    portfolio = build(oracle, 3, 0.1, 0.01, search="grid")
    assert len(oracle.asked) > 3
    assert certify(portfolio.values, Sphere.optimum, delta=0.01).relative_gap <= portfolio.gap <= 0.1


# Options


def test_the_best_of_so_many() -> None:
    policies = np.random.default_rng(2).random((30, 2)) ** 0.4
    portfolio = build(Finite(policies), 2, 0.005, num_members=2)
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
    middle = OracleResult(np.full(2, 0.5**0.5), policy="old")
    unknown = build(Sphere(), 2, 0.3, warm_start=[middle])
    assert unknown.policies == ("old",)
    assert unknown.oracle_calls == 2
    assert len(unknown.upper_bound.weights) == 2


class Sloppy(Sphere):
    """Aims beside the target: at least 1 - 0.02 of the best at every weight."""

    def __call__(self, weights: np.ndarray) -> OracleResult:
        result = super().__call__(weights)
        return OracleResult(0.98 * np.asarray(result.values) if len(self.asked) % 2 else result.values)


def test_an_inexact_oracle_whose_factor_is_given() -> None:
    portfolio = build(Sloppy(), 2, 0.06, oracle_factor=0.02)
    true = certify(portfolio.values, Sphere.optimum).relative_gap
    assert true <= portfolio.gap <= 0.06
    assert "taken as within 0.02 of the best" in str(portfolio)
    with pytest.raises(PortfolioError, match=r"no number of calls certifies epsilon=0\.02: ask for more"):
        build(Sloppy(), 2, 0.02, oracle_factor=0.02)


def test_an_inexact_oracle_whose_factor_is_estimated() -> None:
    # The best policy for the middle is there already; the oracle's own answer in the middle is 10 % worse.
    worse = Finite([[1.0, 0.0], [0.0, 1.0], [0.72, 0.72]])
    existing = OracleResult([0.8, 0.8])
    portfolio = build(worse, 2, 0.2, warm_start=[existing, (np.array([0.5, 0.5]), OracleResult([0.72, 0.72]))])
    assert portfolio.observed_factor == pytest.approx(0.1)
    estimated = build(
        worse, 2, 0.2, warm_start=[existing, (np.array([0.5, 0.5]), OracleResult([0.72, 0.72]))], oracle_factor="estimate"
    )
    assert estimated.upper_bound.factor == pytest.approx(0.1)
    assert estimated.upper_bound.bounds == pytest.approx(portfolio.upper_bound.bounds / np.array([1, 0.9, 0.9]))


def test_an_oracle_too_far_from_the_best_serves_with_what_it_found() -> None:
    with pytest.raises(PortfolioError, match="weights that the oracle has answered"):
        build(Sphere(), 2, 0.1, 0.001, oracle_factor=0.3)
    portfolio = build(Sphere(), 2, 0.1, 0.001, oracle_factor=0.3, num_members=2)
    assert len(portfolio) == 2
    assert portfolio.gap > 0.1
    assert certify(portfolio.values, portfolio.upper_bound, delta=0.001).relative_gap == pytest.approx(portfolio.gap)


def test_greedy_is_said_to_be_greedy() -> None:
    portfolio = build(Sphere(), 3, 0.1, exact_cover=False)
    assert portfolio.gap <= 0.1
    assert not portfolio.smallest
    assert "chosen greedily" in str(portfolio)


def test_progress_shows_calls_and_gap(capsys: pytest.CaptureFixture) -> None:
    build_portfolio(Sphere(), 2, 0.1)
    shown = capsys.readouterr().err
    assert "call" in shown
    assert "asked=0.1000, gap=0.1464" in shown
    assert "gap=0.0761, members=2" in shown.splitlines()[-1]


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rewards": 1}, "at least 2 rewards"),
        ({"epsilon": 1.0}, r"epsilon must be 0 or lie in \[1e-6, 1\)"),
        ({"epsilon": -0.1}, "epsilon must be 0 or lie"),
        ({"epsilon": float("nan")}, "epsilon must be 0 or lie"),
        ({"epsilon": 0.0}, "epsilon or delta be at least 1e-6"),
        ({"delta": -0.1}, "delta must not be negative"),
        ({"beta": -1.0}, "beta must not be negative"),
        ({"reward_range": (1.0, 0.0)}, r"reward_range must be \(least, greatest\)"),
        ({"reward_range": (-1.0, 1.0)}, "needs rewards that are not negative"),
        ({"split": (0.5, 0.4, 0.2)}, "three shares"),
        ({"split": (1.0, 0.0, 0.0)}, "the search's above 0"),
        ({"oracle_factor": 1.0}, r"oracle_factor must lie in \[0, 1\)"),
        ({"oracle_factor": "guess"}, "or be 'estimate'"),
        ({"oracle_factor": "estimate", "epsilon": 0, "delta": 0.1, "reward_range": (-1.0, 1.0)}, "may make negative; use 0"),
        ({"num_members": 0}, "num_members must be at least 1"),
        ({"reward_names": ["a"]}, "2 different names"),
        ({"reward_names": ["a", "a"]}, "2 different names"),
        ({"search": "random"}, "search='random' is unknown"),
        ({"search": "grid"}, "needs epsilon > 0 and delta > 0"),
        ({"search": "grid", "delta": 0.1, "beta": 0.1}, "and beta = 0"),
        ({"warm_start": [3]}, r"warm_start\[0\] must be an OracleResult or a pair"),
        ({"warm_start": [OracleResult([0.1])]}, r"warm_start\[0\]: `values` must have shape \(2,\)"),
        ({"warm_start": [([0.1, 0.1], OracleResult([0.1, 0.1]))]}, "simplex"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:
    oracle = Sphere()
    with pytest.raises(PortfolioError, match=message):
        build(oracle, **{"num_rewards": 2, "epsilon": 0.1, **options})
    assert not oracle.asked


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (OracleResult([0.5, float("nan")]), r"answer to w = \[1., 0.\]: `values` holds NaN"),
        (OracleResult([0.5, 0.5, 0.5]), r"must have shape \(2,\), got \(3,\)"),
        (OracleResult([-0.5, 0.5]), "Normalize the rewards"),
        (None, "expected an OracleResult"),
    ],
)
def test_answers_that_cannot_be_used(answer: OracleResult, message: str) -> None:
    with pytest.raises(PortfolioError, match=message):
        build(lambda weights: answer, 2, 0.1)


def test_too_many_calls() -> None:
    with pytest.raises(PortfolioError, match=r"After max_calls=4 calls the relative gap is 0.1464, asked: 0.01. Raise max_calls"):
        build(Sphere(), 2, 0.01, max_calls=4)
    with pytest.raises(PortfolioError, match="some rewards were not asked yet"):
        build(Sphere(), 2, 0.01, max_calls=1)
    portfolio = build(Sphere(), 2, 0.01, max_calls=4, num_members=3)
    assert portfolio.oracle_calls == 4
    assert portfolio.gap > 0.01
    with pytest.raises(PortfolioError, match="some rewards were not asked yet"):
        build(Sphere(), 2, 0.01, max_calls=0, num_members=3, warm_start=[OracleResult([0.5, 0.5])])


# Resuming


class Dying(Sphere):
    """Fails at its n-th call."""

    def __init__(self, last: int):
        super().__init__()
        self.last = last

    def __call__(self, weights: np.ndarray) -> OracleResult:
        if len(self.asked) == self.last:
            raise RuntimeError("CUDA out of memory")
        return super().__call__(weights)


def test_an_oracle_that_dies_loses_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        PortfolioError, match=r"RuntimeError: CUDA out of memory\. The 4 answers before it are kept in .*calls.jsonl"
    ):
        build(Dying(4), 2, 0.015, folder=tmp_path)
    assert not (tmp_path / "portfolio.json").exists()
    rest, whole = Sphere(), Sphere()
    resumed = build(rest, 2, 0.015, folder=tmp_path)
    uninterrupted = build(whole, 2, 0.015)
    assert np.array_equal(np.array(whole.asked)[4:], rest.asked)
    assert resumed.oracle_calls == uninterrupted.oracle_calls
    assert np.array_equal(resumed.values, uninterrupted.values)
    assert resumed.gap == uninterrupted.gap
    assert Portfolio.load(tmp_path).policies == resumed.policies


def test_a_finished_build_calls_nothing_and_a_finer_one_goes_on(tmp_path: Path) -> None:
    first = build(Sphere(), 2, 0.05, folder=tmp_path)
    again = Sphere()
    assert build(again, 2, 0.05, folder=tmp_path).gap == first.gap
    assert not again.asked
    finer = build(again, 2, 0.01, folder=tmp_path)
    assert finer.gap <= 0.01
    assert finer.oracle_calls == first.oracle_calls + len(again.asked)


def test_another_problem_in_the_folder_is_refused(tmp_path: Path) -> None:
    build(Sphere(), 2, 0.1, folder=tmp_path, problem={"base": "tiny"})
    with pytest.raises(PortfolioError, match="another problem"):
        build(Sphere(), 2, 0.1, folder=tmp_path, problem={"base": "large"})
    with pytest.raises(PortfolioError, match="num_rewards: 2 -> 3"):
        build(Sphere(), 3, 0.1, folder=tmp_path, problem={"base": "tiny"})
    named = Sphere()
    named.problem = {"base": "tiny"}  # type: ignore[attr-defined]
    assert build(named, 2, 0.1, folder=tmp_path).oracle_calls > 0
    assert not named.asked


SCRIPT = """
import os, signal, sys
import numpy as np
from trl_pafo.palm import OracleResult, build_portfolio

def oracle(weights):
    with open(sys.argv[2], "a") as file:
        file.write("x")
    if os.path.getsize(sys.argv[2]) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return OracleResult(weights / np.linalg.norm(weights), policy="p")

print(build_portfolio(oracle, 2, 0.015, folder=sys.argv[1], progress=False).gap)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_build_resumes(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), str(counter)]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len((tmp_path / "run" / "calls.jsonl").read_text().splitlines()) == 1 + 5
    rest = Sphere()
    resumed = build(rest, 2, 0.015, folder=tmp_path / "run")
    uninterrupted = build(Sphere(), 2, 0.015)
    assert len(rest.asked) == uninterrupted.oracle_calls - 5
    assert resumed.gap == uninterrupted.gap
