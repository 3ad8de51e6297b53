"""The upper bound against linear programs, its dual, and the truth."""

import numpy as np
import pytest
from helpers.fronts import Gibbs, Sphere
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from trl_pafo.errors import PortfolioError
from trl_pafo.palm import Pool, UpperBound
from trl_pafo.palm.solver.bounds import Optimum, best_values


def sphere_bound(d: int, num_answers: int) -> UpperBound:
    weights = np.vstack([np.eye(d), np.random.default_rng(0).dirichlet(np.ones(d), num_answers)])
    return UpperBound(weights, Sphere.optimum(weights))


@pytest.mark.parametrize("d", [2, 3, 4, 5])
def test_vertices_and_program_agree_and_lie_above_the_truth(d: int) -> None:
    bound = sphere_bound(d, 12)
    assert bound._vertices is not None  # or each row would be a program
    weights = np.random.default_rng(1).dirichlet(np.ones(d), 15)
    upper = bound.at(weights)
    assert np.allclose(upper, [bound.solve(row) for row in weights], atol=1e-8)
    assert (upper >= Sphere.optimum(weights) - 1e-12).all()
    assert (upper <= sphere_bound(d, 5).at(weights) + 1e-8).all()  # more answers only lower it
    assert np.allclose(bound.at(bound.weights), bound.bounds, atol=1e-8)


@settings(max_examples=25)
@given(st.integers(2, 4), st.integers(0, 10**6), st.sampled_from([0.02, 0.2, 1.0]))
def test_with_a_kl_term_the_bound_is_convexity_and_the_additive_bound(d: int, seed: int, beta: float) -> None:
    rng = np.random.default_rng(seed)
    gibbs = Gibbs(rng.random((6, d)), beta)
    asked = np.vstack([np.eye(d), rng.dirichlet(np.ones(d), 4)])
    optimum = gibbs.optimum(asked)
    weights = rng.dirichlet(np.ones(d), 4)
    bound = UpperBound(asked, optimum, beta=beta)
    assert bound._vertices is not None
    upper = bound.at(weights)
    assert upper == pytest.approx([bound.solve(row) for row in weights], abs=1e-7)
    assert (upper >= gibbs.optimum(weights) - 1e-9).all()
    for row, value in zip(weights, upper, strict=True):
        # The dual: a mean of asked weights, plus the 1-norm of what it falls short by; V* >= 0 at weight 0.
        answer = linprog(
            np.concatenate([optimum, np.ones(d)]),
            A_ub=np.vstack([-np.column_stack([asked.T, np.eye(d)]), np.append(np.ones(len(asked)), np.zeros(d))]),
            b_ub=np.append(-row, 1.0),
        )
        assert value == pytest.approx(answer.fun, abs=1e-7)
        assert value <= (optimum + np.maximum(row - asked, 0).sum(axis=1)).min() + 1e-7


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (4.0, 5.0)])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_another_range_of_rewards_moves_and_stretches_the_bound(beta: float, low: float, high: float) -> None:
    # No single reward was asked for, so that the range itself bounds some of them.
    asked = np.random.default_rng(2).dirichlet(np.full(3, 5.0), 5)
    bounds, weights = Sphere.optimum(asked), np.vstack([np.eye(3), np.full((1, 3), 1 / 3)])
    plain = UpperBound(asked, bounds, beta)
    moved = UpperBound(asked, (high - low) * bounds + low, beta, (low, high))
    assert moved._vertices is not None
    assert plain.at(weights).max() == pytest.approx(1.0)
    for upper in (moved.at(weights), [moved.solve(row) for row in weights]):
        assert upper == pytest.approx((high - low) * plain.at(weights) + low, abs=1e-7)


def test_a_reward_that_nothing_earns_makes_the_polytope_flat() -> None:
    bound = UpperBound(np.eye(3), np.array([0.8, 0.5, 0.0]))
    assert bound.at(np.array([[0.2, 0.3, 0.5], [0.0, 0.0, 1.0]])) == pytest.approx([0.31, 0.0], abs=1e-8)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_a_few_answers_by_hand(beta: float) -> None:
    # 0.8 and 0.6 are known where one reward counts alone; between them V* is no higher than the line that joins them.
    bound = UpperBound(np.eye(2), np.array([0.8, 0.6]), beta)
    weights = np.array([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]])
    assert bound.at(weights) == pytest.approx([0.8, 0.7, 0.65], abs=1e-9)
    assert [bound.solve(row) for row in weights] == pytest.approx([0.8, 0.7, 0.65], abs=1e-9)
    assert UpperBound(np.array([[0.5, 0.5]]), np.array([0.4]), beta).solve(np.array([1.0, 0.0])) == pytest.approx(
        0.8 if beta == 0 else 0.9  # at most 0.5 more than 0.4, for weights that are 0.5 further
    )


def test_a_reference_says_what_it_is() -> None:
    assert UpperBound(np.eye(3), np.ones(3)).name == "upper bound from 3 answers of the oracle, taken as exact"
    within = "upper bound from 3 answers of the oracle, taken as within 0.0123 of the best"
    assert UpperBound(np.eye(3), np.ones(3), factor=0.01234).name == within
    assert Pool(np.ones((4, 2)), np.zeros(4)).name == "pool of 4 policies"
    known = Optimum(lambda weights: [int(weight) for weight in 4 * weights.max(axis=1)])
    assert known.name == "true optimum"
    found = known.at(np.array([[1.0, 0.0], [0.5, 0.5]]))
    assert (found.tolist(), found.dtype) == ([4.0, 2.0], np.float64)


def test_where_vertices_are_not_known_each_weight_is_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, weights = sphere_bound(3, 5), np.random.default_rng(1).dirichlet(np.ones(3), 4)
    assert expected._vertices is not None
    monkeypatch.setattr("trl_pafo.palm.solver.bounds.vertices", lambda *args, **options: None)
    assert sphere_bound(3, 5).at(weights) == pytest.approx(expected.at(weights), abs=1e-8)


def test_of_the_facets_only_the_answers_may_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trl_pafo.palm.solver.polytope._MOVES", (0.1,))
    corners = UpperBound(np.array([[0.5, 0.5]]), np.array([0.4]))._vertices
    assert corners is not None
    assert corners.min(axis=0) == pytest.approx([0.0, 0.0], abs=1e-12)  # where the range of the rewards ends
    assert (np.delete(corners.sum(axis=1), corners.sum(axis=1).argmin()) > 0.9).all()  # beyond 2 * 0.4


def test_bounds_that_contradict_each_other_are_refused() -> None:
    bound = UpperBound(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([-0.5, 0.5]))
    with pytest.raises(PortfolioError, match="No values fit the bounds of the 2 answers"):
        bound.at(np.array([[0.5, 0.5]]))


def test_many_weights_go_through_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trl_pafo.palm.solver.bounds._CHUNK", 10)
    rng = np.random.default_rng(3)
    weights, values, costs = rng.random((23, 3)), rng.random((4, 3)), rng.random(4)
    assert np.allclose(Pool(values, costs).at(weights), (weights @ values.T - costs).max(axis=1))
    assert best_values(weights[:0], values, costs).shape == (0,)
