"""The lazy search: what it asks, when it stops, and that laziness changes nothing."""

from itertools import islice

import numpy as np
import pytest
from helpers.fronts import Finite, Sphere

from trl_pafo.errors import PortfolioError
from trl_pafo.palm import Oracle, OracleCall, OracleResult, certify, weight_grid
from trl_pafo.palm.core import checked_result
from trl_pafo.palm.solver.bounds import best_values
from trl_pafo.palm.solver.certificate import Measure
from trl_pafo.palm.solver.search import Known, corner_search, grid_search, simplex_corners


def answer_of(weights: np.ndarray, result: OracleResult, warm: bool = False) -> OracleCall:
    return OracleCall(weights, checked_result(result, len(weights), "the test"), warm)


def known_singles(oracle: Oracle, d: int) -> Known:
    known = Known(d, 0.0, 0.0)
    for weights in simplex_corners(known):
        known.calls.append(answer_of(weights, oracle(weights)))
    return known


def run(known: Known, oracle: Oracle, questions) -> list[tuple[np.ndarray, float]]:
    asked = []
    for weights, gap in questions:
        known.calls.append(answer_of(weights, oracle(weights)))
        asked.append((weights, gap))
    return asked


def test_single_rewards_come_first_and_once() -> None:
    known = known_singles(Sphere(), 3)
    assert np.array_equal([call.weights for call in known.calls], np.eye(3))
    assert list(simplex_corners(known)) == []


def test_corner_search_asks_the_worst_until_none_is_left() -> None:
    oracle = Sphere()
    known = known_singles(oracle, 3)
    questions = corner_search(known, Measure(True), 0.05)
    weights, gap = next(questions)
    certificate = certify(known.values, known.upper_bound())
    assert gap == pytest.approx(certificate.relative_gap)
    assert weights == pytest.approx(certificate.relative_weights)
    asked = run(known, oracle, corner_search(known, Measure(True), 0.05))
    gaps = [gap for _, gap in asked]
    assert gaps == sorted(gaps, reverse=True)
    assert min(gaps) > 0.05 >= certify(known.values, known.upper_bound()).relative_gap


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (0.4, 1.0, 0.6)])
def test_the_heap_asks_what_looking_at_every_point_asks(scales: tuple[float, ...]) -> None:
    def oracle(weights: np.ndarray) -> OracleResult:
        """A sphere whose axes have these lengths, so that one reward may promise more than another."""
        return OracleResult(np.array(scales) * Sphere()(weights * scales).values)

    epsilon, delta, grid = 0.03, 0.01, (0.1, 0.1)
    lazy = known_singles(oracle, 3)
    asked = run(lazy, oracle, grid_search(lazy, epsilon, delta, grid))
    eager, points = known_singles(oracle, 3), weight_grid(3, *grid)
    for weights, violation in asked:
        violations = (1 - epsilon) * eager.upper_bound().at(points) - delta - best_values(points, eager.values, eager.costs)
        assert violation == pytest.approx(violations.max(), abs=1e-8)
        assert violations[np.abs(points - weights).sum(axis=1).argmin()] == pytest.approx(violation, abs=1e-8)
        eager.calls.append(answer_of(weights, oracle(weights)))
    violations = (1 - epsilon) * eager.upper_bound().at(points) - delta - best_values(points, eager.values, eager.costs)
    assert len(asked) > 10
    assert violations.max() <= 1e-8


def test_an_oracle_that_misses_is_not_asked_twice() -> None:
    known = Known(2, 0.0, 0.2)
    oracle = Finite([[1.0, 0.0], [0.0, 1.0], [0.6, 0.6]])
    for weights in simplex_corners(known):
        known.calls.append(answer_of(weights, oracle(weights)))
    with pytest.raises(PortfolioError, match=r"weights that the oracle has answered.*Factor allowed for: 0.2; seen: 0"):
        run(known, oracle, corner_search(known, Measure(True), 0.05))
    with pytest.raises(
        PortfolioError, match=r"The additive gap is still 0\.\d+ \(asked: 0\) at weights that the oracle has answered"
    ):
        run(known, oracle, islice(grid_search(known, 0.01, 0.01, (0.1, 0.1)), 50))


def test_what_an_answer_is_beaten_by() -> None:
    calls = [
        answer_of(np.array([1.0, 0.0]), OracleResult(np.array([0.8, 0.0]))),
        answer_of(np.array([0.0, 1.0]), OracleResult(np.array([0.0, 0.9]))),
        answer_of(np.full(2, np.nan), OracleResult(np.array([0.96, 0.1])), warm=True),
    ]
    known = Known(2, 0.0, 0.1, calls)
    weights, own, best = known.answers()
    assert np.array_equal(weights, np.eye(2))
    assert own == pytest.approx([0.8, 0.9])
    assert best == pytest.approx([0.96, 0.9])
    assert known.observed_factor() == pytest.approx(0.16 / 0.96)
    given = known.upper_bound()
    assert given.bounds == pytest.approx([0.96, 1.0])  # 0.8 / 0.9 was beaten; 0.9 / 0.9 was not
    estimated = Known(2, 0.0, "estimate", calls).upper_bound()
    assert estimated.factor == pytest.approx(1 / 6)
    assert estimated.bounds == pytest.approx([0.96, 0.9 * 6 / 5])


def test_an_answer_below_the_reference_policy_bounds_nothing_below_it() -> None:
    call = answer_of(np.array([0.5, 0.5]), OracleResult(np.array([0.1, 0.1]), kl=5.0))
    assert Known(2, 0.1, 0.0, [call]).upper_bound().bounds == pytest.approx([0.0])
