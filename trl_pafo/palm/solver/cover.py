"""Minimum set cover: the fewest columns such that every row has one of them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, milp

from trl_pafo.errors import PortfolioError

BoolArray = NDArray[np.bool_]


class Cover(NamedTuple):
    """The chosen columns in rising order, whether it is known that no smaller cover exists, and the nodes that it took."""

    columns: list[int]
    exact: bool
    nodes: int


def minimum_cover(covers: BoolArray, nodes: int | None = None, enough: int = 0) -> Cover:
    """The fewest columns that cover all rows: an integer program (HiGHS), or greedy with reverse delete.

    `covers`, of shape `(num_rows, num_columns)`, says whether a column covers a row. The integer program may visit so many `nodes`
    of the branch and bound tree; 0 is greedy, and so is what is returned when the limit is reached; `Cover.exact` says so. (A limit
    in seconds would make the result depend on the machine.) A greedy cover of at most `enough` columns is good enough. A row that
    no column covers raises [`PortfolioError`].
    """
    if not covers.any(axis=1).all():
        raise PortfolioError(f"{int((~covers.any(axis=1)).sum())} weights are covered by no policy; widen the tolerance.")
    rows = minimal_rows(covers)
    columns, exact, visited = _greedy(rows), False, 0
    if nodes != 0 and len(columns) > enough:
        ones = np.ones(rows.shape[1])
        answer = milp(
            ones,
            constraints=LinearConstraint(rows.astype(np.float64), lb=1.0),
            integrality=ones,
            bounds=(0, 1),
            options={} if nodes is None else {"node_limit": nodes},
        )
        visited = int(answer.mip_node_count or 0)
        if answer.x is not None and answer.status == 0:
            columns, exact = [int(column) for column in np.flatnonzero(answer.x > 0.5)], True
    return Cover(sorted(columns), exact, visited)


def minimal_rows(covers: BoolArray) -> BoolArray:
    """The rows that imply all others: equal rows once, and no row that holds all columns of another."""
    rows = np.unique(covers, axis=0)
    rows = rows[np.argsort(rows.sum(axis=1), kind="stable")]
    sizes, kept = rows.sum(axis=1), np.ones(len(rows), dtype=bool)
    numbers = rows.astype(np.float32)
    for place in range(len(rows)):
        if kept[place]:
            implied = numbers[place + 1 :] @ numbers[place] == sizes[place]
            kept[place + 1 :] &= ~implied
    return rows[kept]


def _greedy(covers: BoolArray) -> list[int]:
    """Always the column that covers most of what is left; then those dropped that turn out not to be needed."""
    left, chosen = covers.copy(), []
    while len(left):
        best = int(left.sum(axis=0).argmax())
        chosen.append(best)
        left = left[~left[:, best]]
    for column in reversed(chosen[:-1].copy()):
        others = [other for other in chosen if other != column]
        if covers[:, others].any(axis=1).all():
            chosen = others
    return chosen
