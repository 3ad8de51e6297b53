"""Regions of weights, against linear programs and samples."""

import numpy as np
import pytest
from scipy.optimize import linprog

from trl_pafo.palm.solver.regions import WeightRegion


def random_cuts(num_rewards: int, num_cuts: int, seed: int) -> tuple[WeightRegion, np.ndarray]:
    """A region that holds a hidden weight vector, and the normals that cut it."""
    rng = np.random.default_rng(seed)
    hidden = rng.dirichlet(np.ones(num_rewards))
    normals = rng.normal(size=(num_cuts, num_rewards))
    normals *= np.where(normals @ hidden < 0, -1, 1)[:, None]
    region = WeightRegion.simplex(num_rewards)
    for normal in normals:
        cut = region.cut(normal)
        assert cut is not None
        region = cut
    return region, normals


@pytest.mark.parametrize("num_rewards", [2, 3, 4, 6])
def test_the_corners_give_the_maximum_of_every_direction(num_rewards: int) -> None:
    region, normals = random_cuts(num_rewards, 10, seed=num_rewards)
    assert (region.points @ normals.T >= -1e-9).all()
    assert region.points.sum(axis=1) == pytest.approx(1)
    for direction in np.random.default_rng(0).normal(size=(10, num_rewards)):
        answer = linprog(-direction, -normals, np.zeros(len(normals)), np.ones((1, num_rewards)), [1.0], bounds=(0, 1))
        assert (region.points @ direction).max() == pytest.approx(-answer.fun, abs=1e-9)


def test_planes_through_a_corner_change_nothing_or_leave_it() -> None:
    simplex = WeightRegion.simplex(3)
    assert simplex.cut(np.array([0.0, 1.0, 1.0])) is simplex
    point = simplex.cut(np.array([0.0, -1.0, -1.0]))
    assert point is not None
    assert np.array_equal(point.points, [[1.0, 0.0, 0.0]])
    assert simplex.cut(np.array([-1.0, -1.0, -1.0])) is None


@pytest.mark.parametrize("length", [1e-14, 1e6])
def test_the_length_of_a_normal_does_not_matter(length: float) -> None:
    normal, simplex = np.array([1.0, 1.0, -2.0]), WeightRegion.simplex(3)
    expected = np.array([[0, 2 / 3, 1 / 3], [0, 1, 0], [2 / 3, 0, 1 / 3], [1, 0, 0]])
    assert np.unique(simplex.cut(length * normal).points.round(9), axis=0) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("size", [0.1, 1e-6])
def test_a_small_region_is_cut_as_a_large_one(size: float) -> None:
    # All weights of at least 1/3 - size: a triangle, of which the plane w_1 = 1/3 leaves the smaller part.
    region = WeightRegion.simplex(3)
    for normal in [*(np.eye(3) - (1 / 3 - size)), np.array([2.0, -1.0, -1.0])]:
        cut = region.cut(normal)
        assert cut is not None
        region = cut
    found = np.sort((region.points - 1 / 3) / size, axis=0)
    assert found == pytest.approx(np.array([[0, -1, -1], [0, -1, -1], [2, 1, 1]]), abs=1e-4)


def test_weights_add_up_to_one_after_many_cuts() -> None:
    rng, region = np.random.default_rng(5), WeightRegion.simplex(3)
    hidden = np.array([0.2, 0.3, 0.5])
    for normal in rng.normal(size=(40, 3)):
        through_center = normal - normal @ region.center
        cut = region.cut(through_center if through_center @ hidden >= 0 else -through_center)
        assert cut is not None
        region = cut
    assert region.points.sum(axis=1) == pytest.approx(1, abs=1e-12)
    assert (region.normals @ hidden >= 0).all()
    assert np.abs(region.points - hidden).max() < 1e-3


def test_many_planes_through_one_point() -> None:
    """Constraints beyond those a corner needs (all pass through the middle)."""
    region = WeightRegion.simplex(4)
    normals = [[1, -1, 0, 0], [0, 1, -1, 0], [0, 0, 1, -1], [1, 0, -1, 0], [1, 0, 0, -1], [0, 1, 0, -1], [1, 1, -1, -1]]
    for normal in np.array(normals, dtype=float):
        cut = region.cut(normal)
        assert cut is not None
        region = cut
    expected = [[1, 0, 0, 0], [1 / 2, 1 / 2, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0], [1 / 4] * 4]
    for corner in expected:
        assert np.abs(region.points - corner).sum(axis=1).min() < 1e-9
    assert (np.diff(region.points, axis=1) <= 1e-9).all()  # w_1 >= w_2 >= w_3 >= w_4


def test_cells_are_where_a_policy_is_the_best() -> None:
    rng = np.random.default_rng(1)
    values, costs = rng.random((7, 3)), 0.1 * rng.random(7)
    cells = WeightRegion.simplex(3).cells(values, costs)
    weights = rng.dirichlet(np.ones(3), 500)
    best = (weights @ values.T - costs).argmax(axis=1)
    assert {place for place, cell in enumerate(cells) if cell is not None} >= set(best.tolist())
    for row, member in zip(weights, best, strict=True):
        cell = cells[member]
        assert cell is not None
        assert (cell.normals @ row >= -1e-9).all()
    for member, cell in enumerate(cells):
        if cell is not None:
            earned = cell.points @ values.T - costs
            assert earned[:, member] == pytest.approx(earned.max(axis=1), abs=1e-9)
