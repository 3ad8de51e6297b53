"""Fewest policies, and the best of so many, against certifying every choice."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, milp

from trl_pafo.errors import PortfolioError
from trl_pafo.palm import Pool, certify
from trl_pafo.palm.solver.certificate import Measure
from trl_pafo.palm.solver.prune import NODES, Pruner


def pool_of(seed: int, beta: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    d = int(rng.integers(2, 5))
    values = np.abs(rng.normal(size=(7, d)))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values * rng.uniform(0.85, 1, (7, 1)), beta * rng.random(7)


def gap_of(members: list[int], values: np.ndarray, costs: np.ndarray, measure: Measure) -> float:
    kl = costs if costs.any() else None
    beta = 1.0 if costs.any() else 0.0
    certificate = certify(
        values[members], values, kl=None if kl is None else kl[members], reference_kl=kl, beta=beta, delta=measure.delta
    )
    return certificate.gap(measure)


def least_gaps(values: np.ndarray, costs: np.ndarray, measure: Measure) -> list[float]:
    """The least gap of 1, 2, ... policies."""
    places = range(len(values))
    return [min(gap_of(list(members), values, costs, measure) for members in combinations(places, size)) for size in (1, 2, 3, 7)]


@settings(max_examples=3)
@given(st.integers(0, 10**6), st.sampled_from([(True, 0.0), (True, 0.03), (False, 0.0)]), st.booleans())
def test_fewest_and_best(seed: int, kind: tuple[bool, float], with_costs: bool) -> None:
    values, costs = pool_of(seed, 0.2 if with_costs else 0.0)
    measure = Measure(*kind)
    pool = Pool(values, costs)
    least = least_gaps(values, costs, measure)
    for size, gap in zip((1, 2, 3), least, strict=False):
        choice = Pruner(values, costs, pool, measure).best(size)
        assert choice.exact
        assert len(choice.members) <= size
        assert choice.gap == pytest.approx(gap, abs=2e-6)
        assert gap_of(choice.members, values, costs, measure) == pytest.approx(choice.gap, abs=1e-9)
    goal = (least[0] + least[1]) / 2
    if least[1] + 1e-5 < goal < least[0] - 1e-5:
        choice = Pruner(values, costs, pool, measure).smallest(goal)
        assert choice.exact
        assert len(choice.members) == 2
        # Of all pairs that would do, the best.
        assert choice.gap == pytest.approx(least[1], abs=2e-6)


def test_a_cover_that_leaks_is_cut_until_it_holds() -> None:
    values = np.abs(np.random.default_rng(26).normal(size=(25, 3)))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    costs, pool, measure = np.zeros(25), Pool(values, np.zeros(25)), Measure(True)
    greedy = Pruner(values, costs, pool, measure, nodes=0).smallest(0.05)
    choice = Pruner(values, costs, pool, measure).smallest(0.05)
    assert max(gap_of(found.members, values, costs, measure) for found in (choice, greedy)) <= 0.05
    assert not greedy.exact
    assert choice.exact
    assert len(choice.members) == len(greedy.members) - 1
    # As many policies cannot do better, though covers of finitely many weights promise it.
    tighter = Pruner(values, costs, pool, measure).smallest(choice.gap - 1e-4)
    assert tighter.gap <= choice.gap - 1e-4
    assert len(tighter.members) > len(choice.members)
    # A cover of sampled weights can only be smaller: with as many it proves that there is no smaller one.
    weights = np.random.default_rng(0).dirichlet(np.ones(3), 20_000)
    scores = weights @ values.T
    rows = np.unique(scores >= 0.95 * scores.max(axis=1, keepdims=True), axis=0)
    ones = np.ones(25)
    sampled = milp(ones, constraints=LinearConstraint(rows.astype(float), lb=1), integrality=ones, bounds=(0, 1))
    assert round(sampled.fun) == len(choice.members)


def test_a_choice_within_few_nodes_holds_and_is_no_proof() -> None:
    values = np.abs(np.random.default_rng(26).normal(size=(25, 3)))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    costs, pool = np.zeros(25), Pool(values, np.zeros(25))
    pruner = Pruner(values, costs, pool, Measure(True), nodes=5)
    for choice in (pruner.smallest(0.05), pruner.best(3)):
        assert not choice.exact
        assert gap_of(choice.members, values, costs, Measure(True)) == pytest.approx(choice.gap, abs=1e-9)
    assert pruner.nodes <= 0
    assert Pruner(values, costs, pool, Measure(True)).nodes == NODES


def test_of_equal_policies_the_first_is_chosen() -> None:
    values, costs = pool_of(3)
    twice, measure = np.repeat(values, 2, axis=0), Measure(True)
    choice = Pruner(values, costs, Pool(values, costs), measure).best(2)
    assert Pruner(twice, np.zeros(14), Pool(values, costs), measure).best(2) == (
        [2 * member for member in choice.members],
        pytest.approx(choice.gap, abs=1e-6),
        True,
    )


def test_a_promise_that_no_choice_keeps() -> None:
    values = np.array([[1.0, 0.0], [0.0, 1.0]])
    pool = Pool(np.array([[0.9, 0.9]]), np.zeros(1))
    with pytest.raises(PortfolioError, match=r"certified relative gap of 0\.44.*above 0\.1; search on"):
        Pruner(values, np.zeros(2), pool, Measure(True)).smallest(0.1)


def test_members_that_are_worth_nothing_somewhere() -> None:
    # One member leaves one reward at 0, a gap of 1 there; with a cost it is worse than nothing.
    values, costs = np.array([[1.0, 0.0], [0.0, 1.0], [0.7, 0.7]]), np.array([0.0, 0.0, 5.0])
    pool = Pool(values, np.zeros(3))
    choice = Pruner(values, costs, pool, Measure(True)).best(2)
    assert choice.members == [0, 1]
    assert choice.gap == pytest.approx(1 - 0.5 / 0.7, abs=1e-6)


def test_a_first_choice_with_an_infinite_gap_is_improved() -> None:
    values, costs = np.array([[2, 2, 0], [0, 1, 0], [1, 2, 0], [2, 0, 0]]) / 3, np.array([0.2, 0.1, 0.3, 0.1])
    pool, measure = Pool(values, costs), Measure(True)
    pruner = Pruner(values, costs, pool, measure)
    assert pruner._worst(pruner._first_choice(2)) == np.inf
    least = min(gap_of(list(members), values, costs, measure) for size in (1, 2) for members in combinations(range(4), size))
    assert pruner.best(2).gap == pytest.approx(least, abs=2e-6)
