"""Vertices against solving every set of facets; proof that a set is complete."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.spatial import HalfspaceIntersection

from trl_pafo.errors import PortfolioError
from trl_pafo.palm.solver import polytope
from trl_pafo.palm.solver.polytope import MAX_MOVE, _fits, _is_complete, envelope_corners, vertices

CUBE, SIDES = np.vstack([np.eye(3), -np.eye(3)]), np.repeat([1.0, 0.0], 3)


def every_vertex(normals: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Where d facets meet and no other is left behind."""
    found = []
    for facets in combinations(range(len(normals)), normals.shape[1]):
        system = normals[list(facets)]
        if abs(np.linalg.det(system)) > 1e-9:
            point = np.linalg.solve(system, offsets[list(facets)])
            if (normals @ point <= offsets + 1e-9).all():
                found.append(point)
    return np.array(found)


def every_corner(values: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Corners of {(w, t) : t >= w.v - c} by solving in w and t with sum w = 1."""
    d = values.shape[1]
    rows = [(np.append(value, -1.0), cost) for value, cost in zip(values, costs, strict=True)]
    rows += [(-np.eye(d + 1)[i], 0.0) for i in range(d)]
    found = []
    for chosen in combinations(rows, d):
        system = np.array([row for row, _ in chosen] + [np.append(np.ones(d), 0.0)])
        if abs(np.linalg.det(system)) > 1e-9:
            point = np.linalg.solve(system, [side for _, side in chosen] + [1.0])
            if (point[:d] >= -1e-9).all() and (values @ point[:d] - costs <= point[d] + 1e-9).all():
                found.append(point[:d])
    return np.array(found)


def assert_none_is_missing(corners: np.ndarray, values: np.ndarray) -> None:
    """min over w of max_k w.v_k - w.slope is reached in a corner: one that is missing shows."""
    num_policies, d = values.shape
    limits, bounds = np.column_stack([values, -np.ones(num_policies)]), [(0, None)] * d + [(None, None)]
    for slope in np.random.default_rng(0).random((8, d)):
        answer = linprog(
            np.append(-slope, 1.0), limits, np.zeros(num_policies), [np.append(np.ones(d), 0.0)], [1.0], bounds=bounds
        )
        assert ((corners @ values.T).max(axis=1) - corners @ slope).min() == pytest.approx(answer.fun, abs=1e-8)


@settings(max_examples=60)
@given(st.integers(2, 4), st.integers(1, 6), st.integers(0, 10**6), st.sampled_from(["even", "few numbers", "equal"]))
def test_corners_are_all_there(d: int, num_policies: int, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    values, costs = rng.random((num_policies, d)), rng.random(num_policies) * rng.choice([0, 0.3])
    if kind == "few numbers":
        values, costs = rng.integers(0, 3, (num_policies, d)) / 2, np.zeros(num_policies)
    if kind == "equal":
        values, costs = values[np.zeros(num_policies, int)], np.zeros(num_policies)
    corners = envelope_corners(values, costs)
    assert np.allclose(corners.points.sum(axis=1), 1)
    expected = every_corner(values, costs)
    distances = np.abs(expected[:, None] - corners.points).max(axis=-1)
    # A degenerate corner may be split along an edge, but each true one is there.
    assert (distances.min(axis=1) <= 1e-6).all()


def test_a_degenerate_polytope_is_split_and_stays_bounded_from_outside() -> None:
    # Eight planes through one point of the cube.
    rng = np.random.default_rng(1)
    weights = rng.dirichlet(np.ones(3), 8)
    normals = np.vstack([weights, np.eye(3), -np.eye(3)])
    offsets = np.concatenate([weights @ np.full(3, 0.6), np.ones(3), np.zeros(3)])
    found = vertices(normals, offsets, np.full(3, 0.1), movable=8)
    assert 0 < found.move <= 1e-9
    exact = every_vertex(normals, offsets)
    for direction in rng.dirichlet(np.ones(3), 50):
        assert 0 <= (found.points @ direction).max() - (exact @ direction).max() + 1e-15 <= 1e-7


def test_a_missing_vertex_is_noticed() -> None:
    facets = HalfspaceIntersection(np.column_stack([CUBE, -SIDES]), np.full(3, 0.4)).dual_facets
    assert _is_complete(facets, 3)
    for missing in range(len(facets)):
        assert not _is_complete(facets[:missing] + facets[missing + 1 :], 3)


def test_where_more_facets_meet_than_there_are_dimensions_nothing_is_proven() -> None:
    # A pyramid on a square: four facets meet in its tip.
    sides = np.array([[1, 0, 1, -1], [-1, 0, 1, -1], [0, 1, 1, -1], [0, -1, 1, -1], [0, 0, -1, 0]], dtype=float)
    facets = HalfspaceIntersection(sides, np.array([0, 0, 0.4])).dual_facets
    assert sorted(map(len, facets)) == [3, 3, 3, 3, 4]
    assert not _is_complete(facets, 3)


def test_a_simple_polytope_is_not_moved() -> None:
    found = vertices(CUBE, SIDES, np.full(3, 0.4), movable=3)
    assert found.move == 0
    assert sorted(found.points.round(9).tolist()) == [list(corner) for corner in np.ndindex(2, 2, 2)]


def test_the_movable_facets_move_outwards_each_by_an_amount_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polytope, "_MOVES", (0.1,))
    first, again = (vertices(CUBE, SIDES, np.full(3, 0.4), movable=3) for _ in range(2))
    moved = first.points.max(axis=0) - 1
    assert first.move == 0.1
    assert ((moved >= 0.05) & (moved <= 0.1)).all()
    assert len(np.unique(moved.round(6))) == 3
    assert np.abs(first.points.min(axis=0)).max() < 1e-12
    assert np.array_equal(first.points, again.points)


@pytest.mark.parametrize(
    ("excess", "unmoved", "moved"),
    [
        ([0.0, 0.0, -0.5], True, True),
        ([1e-10, -1e-10, -0.5], True, True),  # rounding
        ([0.0, 0.0, -1e-13], False, True),  # as good as on a facet that is not its own
        ([0.0, 0.0, 1e-8], False, False),  # beyond another facet
        ([0.0, -1e-8, -0.5], False, False),  # not on its own facet
        ([0.0, 0.0, -np.inf], False, False),
    ],
)
def test_vertices_lie_on_their_own_facets_and_within_the_others(excess: list[float], unmoved: bool, moved: bool) -> None:
    for move, expected in ((0.0, unmoved), (MAX_MOVE, moved)):
        assert _fits(np.array([[0.0, -0.5, 0.0], excess]), [[0, 2], [0, 1]], move) == expected


def test_corners_do_not_depend_on_the_level_of_the_rewards_nor_on_what_all_policies_cost() -> None:
    rng = np.random.default_rng(2)
    values, costs = rng.random((5, 3)), 0.3 * rng.random(5)
    corners = envelope_corners(values, costs)
    expected = np.unique(every_corner(values, costs).round(9), axis=0)
    assert np.unique(corners.points.round(9), axis=0) == pytest.approx(expected, abs=1e-8)
    assert len(corners.points) == len(expected)  # each once
    assert corners.move == 0
    for level, cost in ((4.0, 0.0), (-4.0, 0.0), (0.0, 20.0)):
        found = envelope_corners(values + level, costs + cost).points
        assert np.unique(found.round(7), axis=0) == pytest.approx(expected, abs=1e-6)
    assert 0 < envelope_corners(values[[0, 1, 1]], costs[[0, 1, 1]]).move <= MAX_MOVE


def test_the_plane_of_each_policy_moves_by_an_amount_of_its_own_and_the_simplex_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polytope, "_MOVES", (0.1,))
    first, middle, last = np.sort(envelope_corners(np.eye(2), np.zeros(2)).points[:, 0])
    assert (first, last) == pytest.approx((0, 1), abs=1e-12)
    assert 1e-3 < abs(middle - 0.5) <= 0.025  # unmoved, two mirror images meet in the middle


def test_facets_that_are_nearly_equal_are_not_merged() -> None:
    # With Qhull's own options no move would give a simple polytope.
    values = np.random.default_rng(1).integers(0, 9, (20, 5)) / 8
    assert_none_is_missing(envelope_corners(values, np.zeros(20)).points, values)


def test_corners_that_cannot_be_enumerated() -> None:
    with pytest.raises(
        PortfolioError, match=r"corner weights of 6 policies with 3 rewards.*equal, use.*to a scale of about 1\.$"
    ):
        envelope_corners(1e9 * np.random.default_rng(0).random((6, 3)), np.zeros(6))


def test_a_flat_polytope_has_no_answer() -> None:
    normals = np.vstack([np.eye(2), -np.eye(2)])
    assert vertices(normals, np.array([1.0, 0.0, 0.0, 0.0]), np.array([0.5, 0.0]), movable=0) is None


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("d", [3, 4, 5])
def test_many_policies_with_few_distinct_values(levels: int, d: int) -> None:
    rng = np.random.default_rng(levels)
    values = rng.integers(0, levels + 1, (60, d)) / levels
    assert_none_is_missing(envelope_corners(values, np.zeros(60)).points, values)
