"""Minimum set cover against trying every set of columns."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_pafo.errors import PortfolioError
from trl_pafo.palm import minimum_cover
from trl_pafo.palm.solver.cover import minimal_rows


def smallest_size(covers: np.ndarray) -> int:
    for size in range(1, covers.shape[1] + 1):
        if any(covers[:, list(columns)].any(axis=1).all() for columns in combinations(range(covers.shape[1]), size)):
            return size
    raise AssertionError("no cover")


def problem(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    covers = rng.random((rng.integers(1, 25), rng.integers(1, 9))) < rng.choice([0.2, 0.35, 0.6])
    covers[~covers.any(axis=1), 0] = True
    return covers


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_the_smallest(seed: int) -> None:
    covers = problem(seed)
    cover = minimum_cover(covers)
    assert cover.exact
    assert covers[:, cover.columns].any(axis=1).all()
    assert len(cover.columns) == smallest_size(covers)


@settings(max_examples=80)
@given(st.integers(0, 10**6))
def test_greedy_covers_and_keeps_nothing_in_vain(seed: int) -> None:
    covers = problem(seed)
    cover = minimum_cover(covers, nodes=0)
    assert cover.nodes == 0
    assert covers[:, cover.columns].any(axis=1).all()
    for column in cover.columns:
        others = [other for other in cover.columns if other != column]
        assert not covers[:, others].any(axis=1).all()
    assert not cover.exact


def test_greedy_may_be_taken_if_it_is_enough() -> None:
    gains = []
    for seed in range(20):
        covers = np.random.default_rng(seed).random((40, 20)) < 0.2
        covers[~covers.any(axis=1), 0] = True
        greedy, least = minimum_cover(covers, nodes=0), minimum_cover(covers)
        gains.append(len(greedy.columns) - len(least.columns))
        assert minimum_cover(covers, enough=len(greedy.columns)).columns == greedy.columns
        assert len(minimum_cover(covers, enough=len(least.columns)).columns) == len(least.columns)
    assert min(gains) == 0 < max(gains)


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_rows_that_others_imply_are_left_out(seed: int) -> None:
    covers = problem(seed)
    rows = minimal_rows(covers)
    for row in covers:
        assert any((row | kept == row).all() for kept in rows)
    for first, second in combinations(rows, 2):
        assert not (first | second == first).all()
        assert not (first | second == second).all()


def test_a_row_without_a_column_is_refused() -> None:
    with pytest.raises(PortfolioError, match="1 weights are covered by no policy"):
        minimum_cover(np.array([[True, False], [False, False]]))
