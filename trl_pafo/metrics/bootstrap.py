"""Resampling users, not pairs: pairs of one user resemble each other, so users are what the data hold many of.

A resample only ever says how often each user counts. All users of a group with the same sums are interchangeable in
it, so they are kept as one *cell* with a number of users: 100,000 users with a few pairs each are a few hundred cells,
and a resample of them a few hundred whole numbers.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from trl_pafo.errors import ConfigError, DataError
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


def user_cells(user_codes: IntArray, group_of_user: IntArray, correct: ArrayLike) -> UserCells:
    """Sums of each user, equal users put together.

    Args:
        user_codes (`int` array of shape `(num_pairs,)`):
            The user of each pair, from 0 on.
        group_of_user (`int` array of shape `(num_users,)`):
            The group of each user, from 0 on.
        correct (array of shape `(num_pairs,)` or `(num_models, num_pairs)`):
            What is summed.

    Raises:
        DataError: If shapes do not fit or a user has no pair.
    """
    values = np.atleast_2d(np.asarray(correct, dtype=np.float64))
    if user_codes.ndim != 1 or values.ndim != 2 or values.shape[1] != len(user_codes) or not len(user_codes):
        raise DataError(f"`correct` of shape {values.shape} does not give a value for each of {len(user_codes)} pairs.")
    counts = np.bincount(user_codes, minlength=len(group_of_user))
    if len(counts) != len(group_of_user) or counts.min() == 0:
        raise DataError(f"`group_of_user` names {len(group_of_user)} users, but {np.count_nonzero(counts)} have pairs.")
    return gather_cells(
        group_of_user, counts, np.stack([np.bincount(user_codes, weights=row, minlength=len(counts)) for row in values])
    )


def gather_cells(group_of_user: IntArray, counts: IntArray, sums: FloatArray) -> UserCells:
    """Cells from what is known of each user: group and number of pairs `(num_users,)`, sums `(num_sums, num_users)`."""
    cells, users = np.unique(np.column_stack([group_of_user, counts, *sums]), axis=0, return_counts=True)
    return UserCells(cells[:, 2:].T.copy(), cells[:, 1].copy(), cells[:, 0].astype(np.int64), users)


Statistics = Callable[[UserCells, FloatArray], FloatArray]


class Bootstrap(NamedTuple):
    """`value`, of shape `(num_statistics,)`, on the data; `resamples`, of shape `(num_resamples, num_statistics)`."""

    value: FloatArray
    resamples: FloatArray


def bootstrap_users(
    user_codes: IntArray,
    group_of_user: IntArray,
    correct: ArrayLike,
    statistics: Statistics,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Bootstrap:
    """Bootstrap over users, stratified: every resample holds as many users of each group as the data (Efron, 1979).

    Models that are compared go in together, as rows of `correct`: each resample then takes the same users for all.

    Args:
        user_codes (`int` array of shape `(num_pairs,)`):
            The user of each pair, from 0 on.
        group_of_user (`int` array of shape `(num_users,)`):
            The group of each user, from 0 on.
        correct (array of shape `(num_pairs,)` or `(num_models, num_pairs)`):
            Correctness of each pair.
        statistics (`Callable`):
            `statistics(cells, weights)` with [`UserCells`] and weights of shape `(num_rows, num_cells)`, which say how
            many users of each cell a resample holds; returns an array of shape `(num_rows, num_statistics)`.
        num_resamples (`int`, *optional*, defaults to `1000`):
            Number of resamples.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resamples.

    Raises:
        ConfigError: If `num_resamples` is below 1.
        DataError: If shapes do not fit or a user has no pair.
    """
    return bootstrap_cells(user_cells(user_codes, group_of_user, correct), statistics, num_resamples, seed)


def bootstrap_cells(cells: UserCells, statistics: Statistics, num_resamples: int, seed: int, fewest_users: int = 1) -> Bootstrap:
    """[`bootstrap_users`] of users who are cells already, in the strata of [`strata_of`]."""
    value = statistics(cells, cells.users[None].astype(np.float64))[0]
    drawn = bootstrap_weights(cells, num_resamples, seed, fewest_users)
    return Bootstrap(value, np.concatenate([statistics(cells, weights) for weights in drawn]))


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
    strata = [(places, cells.users[places], cell_of_user(cells.users[places])) for places in strata_of(cells, fewest_users)]
    for rows in chunk_sizes(num_resamples, len(cells.users)):
        weights = np.empty((rows, len(cells.users)))
        for places, users, owner in strata:
            weights[:, places] = _draw(rng, users, owner, rows)
        yield weights


def _draw(rng: np.random.Generator, users: IntArray, owner: IntArray, num_rows: int) -> IntArray:
    # Drawing users with replacement and counting them by cell is a multinomial over the cells.
    num_users, num_cells = len(owner), len(users)
    if num_cells <= _MANY_CELLS:
        return rng.multinomial(num_users, users / num_users, size=num_rows)
    weights = np.empty((num_rows, num_cells), dtype=np.int64)
    for row in weights:
        drawn = rng.integers(num_users, size=num_users)
        row[:] = np.bincount(drawn if num_cells == num_users else owner[drawn], minlength=num_cells)
    return weights


def cell_of_user(users: IntArray) -> IntArray:
    """The place of the cell of each single user, from the numbers of users in the cells."""
    return np.repeat(np.arange(len(users)), users)


def subset_weights(cells: UserCells, num_resamples: int, seed: int) -> Iterator[FloatArray]:
    """Chunks of shape `(num_rows, num_cells)`: users of each cell in a subset that takes each user with chance 1/2."""
    rng = np.random.default_rng(seed)
    for rows in chunk_sizes(num_resamples, len(cells.users)):
        yield rng.binomial(cells.users, 0.5, size=(rows, len(cells.users))).astype(np.float64)


def chunk_sizes(num_resamples: int, num_cells: int) -> Iterator[int]:
    """Numbers of rows to hold at once that add up to `num_resamples`; [`ConfigError`] unless that is positive."""
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
