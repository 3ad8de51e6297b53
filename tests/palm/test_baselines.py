"""PALM against uniform and random weights: the gaps are those of the policies, chosen anew."""

import itertools

import numpy as np
import pytest
from helpers.fronts import Finite

from trl_pafo.errors import PortfolioError
from trl_pafo.palm import OracleResult, Pool, build_portfolio, certify, compare_sizes, random_weights
from trl_pafo.palm.baselines import comparison_table

VALUES = np.random.default_rng(2).random((25, 2))


def test_gaps_of_each_method_at_each_size() -> None:
    oracle = Finite(VALUES)
    portfolio = build_portfolio(oracle, 2, 0.01, progress=False)
    pool = Pool(VALUES, np.zeros(25))
    rows = compare_sizes(portfolio, oracle, 3, reference=pool, num_seeds=4)
    assert [(row["method"], row["size"]) for row in rows] == [(m, n) for n in (1, 2, 3) for m in ("PALM", "uniform", "random")]
    found = {(row["method"], row["size"]): row for row in rows}

    known = np.array([call.result.values for call in portfolio.calls])
    for size in (1, 2, 3):
        chosen = [known[list(c)] for n in range(1, size + 1) for c in itertools.combinations(range(len(known)), n)]
        best = min(certify(values, portfolio.upper_bound).relative_gap for values in chosen)
        # PALM minimizes what it can certify; here it is compared with the pool, which is no greater.
        assert found["PALM", size]["gap"] <= best + 2e-6
        draws = [certify([oracle(w).values for w in random_weights(2, size, s)], VALUES).relative_gap for s in range(4)]
        row = found["random", size]
        assert (row["gap"], row["low"], row["high"]) == pytest.approx((np.mean(draws), min(draws), max(draws)))
    assert found["uniform", 1]["draws"] == 4  # of the even grid of two points, one drawn by seed
    even = certify([oracle(w).values for w in np.array([[1, 0], [0.5, 0.5], [0, 1]])], VALUES).relative_gap
    assert found["uniform", 3]["gap"] == pytest.approx(even)
    assert found["uniform", 3]["draws"] == 1
    table = comparison_table(rows, portfolio.measure)
    assert f"| 3 | {found['PALM', 3]['gap']:.4f} | {even:.4f} |" in table
    with pytest.raises(PortfolioError, match="must be at least 1"):
        compare_sizes(portfolio, oracle, 0)


def test_answers_are_checked_as_those_of_a_build() -> None:
    portfolio = build_portfolio(Finite(VALUES), 2, 0.01, progress=False)
    without_kl = compare_sizes(portfolio, lambda weights: OracleResult(VALUES[(VALUES @ weights).argmax()]), 2)
    assert without_kl == compare_sizes(portfolio, Finite(VALUES), 2)
    with pytest.raises(PortfolioError, match=r"w = \[.*outside \[0, 1\]"):
        compare_sizes(portfolio, lambda weights: OracleResult([2.0, 0.5]), 2)
