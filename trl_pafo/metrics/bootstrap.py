"""Resampling users, not pairs: pairs of one user resemble each other, so users are what the data hold many of.

A resample only says how often each user counts. All users of a group with the same sums are interchangeable in it, so they
are kept as one *cell* with a number of users: 100,000 users with a few pairs each are a few hundred cells.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from trl_pafo.errors import ConfigError
from trl_pafo.metrics.accuracy import FloatArray, IntArray

# Weights that are held at once: 8 MB an array.
_CHUNK_CELLS = 1_000_000
# Up to so many cells in a group a multinomial draw is faster than drawing its users.
_MANY_CELLS = 2_000


class UserCells(NamedTuple):
    """Users of equal sums as one cell, cells in the order of their groups.

    `sums` has shape `(num_sums, num_cells)`: what is summed over the pairs of each user of the cell, such as what a
    model got right, a row for each model. `pairs`, `group` and `users` have shape `(num_cells,)`: a user's number of
    pairs, its group, and the number of users in the cell.
    """

    sums: FloatArray
    pairs: FloatArray
    group: IntArray
    users: IntArray

    @property
    def group_starts(self) -> IntArray:
        """First cell of each group."""
        return np.flatnonzero(np.diff(self.group, prepend=-1))


def user_cells(user_codes: IntArray, group_of_user: IntArray, values: FloatArray) -> UserCells:
    """Cells of users with equal sums of `values`, of shape `(num_sums, num_pairs)`."""
    sums: FloatArray = np.stack([np.bincount(user_codes, weights=row) for row in values])
    return gather_cells(group_of_user, np.bincount(user_codes), sums)


def gather_cells(group_of_user: IntArray, counts: IntArray, sums: FloatArray) -> UserCells:
    """Cells from what is known of each user: group and number of pairs `(num_users,)`, sums `(num_sums, num_users)`."""
    cells, users = np.unique(np.column_stack([group_of_user, counts, *sums]), axis=0, return_counts=True)
    return UserCells(cells[:, 2:].T.copy(), cells[:, 1].copy(), cells[:, 0].astype(np.int64), users)


Statistics = Callable[[UserCells, FloatArray], FloatArray]
"""From cells and weights `(num_rows, num_cells)`, the users of each cell in a resample, to `(num_rows, num_statistics)`."""


def bootstrap_cells(
    cells: UserCells, statistics: Statistics, num_resamples: int, seed: int, fewest_users: int = 1
) -> tuple[FloatArray, FloatArray]:
    """Bootstrap over users, stratified by [`strata_of`]: as many users of each stratum as the data hold (Efron, 1979).

    Models that are compared go in together, as rows of `cells.sums`: each resample then takes the same users for all.

    Returns:
        The statistics on the data, of shape `(num_statistics,)`, and on the resamples, `(num_resamples, num_statistics)`.

    Raises:
        ConfigError: If `num_resamples` is below 1.
    """
    value = statistics(cells, cells.users[None].astype(np.float64))[0]
    drawn = bootstrap_weights(cells, num_resamples, seed, fewest_users)
    return value, np.concatenate([statistics(cells, weights) for weights in drawn])


def strata_of(cells: UserCells, fewest_users: int = 1) -> list[IntArray]:
    """Cells whose users are drawn together: those of each group, and those of all groups with fewer than `fewest_users`.

    A group of one user, drawn by itself, is always the same, as if it were certain what other users of it are like.
    """
    starts = cells.group_starts
    groups = np.split(np.arange(len(cells.users)), starts[1:])
    is_small = np.add.reduceat(cells.users, starts) < fewest_users
    small = [places for places, few in zip(groups, is_small, strict=True) if few]
    # The small ones last, so that what is drawn of the others does not depend on them.
    return [
        *(places for places, few in zip(groups, is_small, strict=True) if not few),
        *([np.concatenate(small)] if small else []),
    ]


def bootstrap_weights(cells: UserCells, num_resamples: int, seed: int, fewest_users: int = 1) -> Iterator[FloatArray]:
    """Chunks of shape `(num_rows, num_cells)`: users of each cell, drawn with replacement within each stratum."""
    rng = np.random.default_rng(seed)
    strata = strata_of(cells, fewest_users)
    for rows in _chunk_sizes(num_resamples, len(cells.users)):
        weights = np.empty((rows, len(cells.users)))
        for places in strata:
            weights[:, places] = _draw(rng, cells.users[places], rows)
        yield weights


def _draw(rng: np.random.Generator, users: IntArray, num_rows: int) -> IntArray:
    # Drawing users with replacement and counting them by cell is a multinomial over the cells.
    num_users, num_cells = int(users.sum()), len(users)
    if num_cells <= _MANY_CELLS:
        return rng.multinomial(num_users, users / num_users, size=num_rows)
    cell_of_user = np.repeat(np.arange(num_cells), users)
    drawn = (rng.integers(num_users, size=num_users) for _ in range(num_rows))
    return np.stack([np.bincount(cell_of_user[row], minlength=num_cells) for row in drawn])


def subset_weights(cells: UserCells, num_resamples: int, seed: int) -> Iterator[FloatArray]:
    """Chunks of shape `(num_rows, num_cells)`: users of each cell in a subset that takes each user with chance 1/2."""
    rng = np.random.default_rng(seed)
    for rows in _chunk_sizes(num_resamples, len(cells.users)):
        yield rng.binomial(cells.users, 0.5, size=(rows, len(cells.users))).astype(np.float64)


def _chunk_sizes(num_resamples: int, num_cells: int) -> Iterator[int]:
    if num_resamples < 1:
        raise ConfigError(f"`num_resamples` must be at least 1, got {num_resamples}.")
    size = max(1, _CHUNK_CELLS // num_cells)
    for start in range(0, num_resamples, size):
        yield min(size, num_resamples - start)


def group_totals(cells: UserCells, weights: FloatArray, values: FloatArray) -> FloatArray:
    """`values`, given for one user, summed in each group.

    Values of shape `(num_cells,)` make `(num_rows, num_groups)`; `(num_cells, num_values)` make
    `(num_rows, num_groups, num_values)`.
    """
    starts = cells.group_starts
    ends = [*starts[1:], len(cells.users)]
    return np.stack([weights[..., a:b] @ values[a:b] for a, b in zip(starts, ends, strict=True)], axis=1)
