"""How many users would have told? Least numbers of users for a verdict of [`compare`] with a stated power.

All numbers take what was measured for the truth, and are as uncertain as that: half the difference takes four times the users.

**One group.** Let user `u` have `n_u` pairs and the sum `D_u` of the model's minus the reference's correctness, `d` be
the difference of the group, `n` the mean number of pairs, `s_0 = sqrt(mean(D_u^2)) / n` and
`s_1 = sqrt(sum (D_u - d n_u)^2 / (num_users - 1)) / n`. The interval of [`compare`] leaves out 0 where a sign-flip test
rejects, whose standard error with `N` users is `s_0 / sqrt(N)`, while the measured difference scatters by
`s_1 / sqrt(N)`. It is shown to be on its side of 0 with probability `Phi((|d| sqrt(N) - z s_0) / s_1)`, where `z` is the
normal quantile of the tail, which [`compare`] corrects for the number of groups; so that

    N = ((z s_0 + z_power s_1) / |d|)^2.

Beside it, at least `log2(1 / tail)` users must differ at all, the least with which a sign-flip test can reject; this many
must be met with the stated power, too. (Not from the paper; from the textbook formula of the sign test's large-sample power.)

**The verdict.** With `N` users in all, in the measured proportions, each group by itself shows a gain, shows a loss, or
shows neither with an estimate above or below `-margin`, with probabilities as above. Groups share no users and are
independent, so that the probability of a verdict other than "cannot tell" is a sum of products of these four.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import betainc, ndtr, ndtri

from trl_pafo.metrics.accuracy import FloatArray
from trl_pafo.metrics.bootstrap import UserCells, group_totals

# More users than there are people to ask are no number of users.
_MOST = 10**9


class GroupSpread(NamedTuple):
    """What the power depends on, each of shape `(num_groups,)`; the names are those of this module's formulas."""

    d: FloatArray
    s_0: FloatArray
    s_1: FloatArray
    differing: FloatArray  # share of users for whom the models differ
    users: FloatArray


def group_spread(cells: UserCells) -> GroupSpread:
    """Measured differences and spreads; `s_1` is NaN for a group of one user, which has none."""
    gained = cells.sums[0]

    def total(values: FloatArray) -> FloatArray:
        return group_totals(cells, cells.users[None].astype(np.float64), values)[0]

    users, pairs = total(np.ones_like(gained)), total(cells.pairs)
    d = total(gained) / pairs
    residual = gained - d[cells.group] * cells.pairs
    s_0 = np.sqrt(total(gained**2) / users) * users / pairs
    s_1 = np.sqrt(np.divide(total(residual**2), users - 1, out=np.full_like(d, np.nan), where=users > 1)) * users / pairs
    return GroupSpread(d, s_0, s_1, total((gained != 0).astype(np.float64)) / users, users)


def users_to_show(spread: GroupSpread, tail: float, power: float) -> list[int | None]:
    """Least number of users of each group with which its difference would be shown with the power; `None` where none would do.

    That is where the difference is 0, where there is only one user, and beyond a billion users. `tail` is the probability on each
    side of a group's interval.
    """

    def chance_of(group: int) -> Callable[[FloatArray], FloatArray]:
        alone = GroupSpread(*(part[group : group + 1] for part in spread))

        def chance(users: FloatArray) -> FloatArray:
            gain, loss, _ = _chances(alone, users[:, None], tail, 0.0)
            return np.where(alone.d > 0, gain, np.where(alone.d < 0, loss, 0.0))[:, 0]

        return chance

    return [_least(chance_of(group), power) for group in range(len(spread.d))]


def users_to_tell(spread: GroupSpread, tail: float, power: float, margin: float) -> int | None:
    """Least number of users in all, in the measured proportions, for a verdict other than "cannot tell" with the power.

    `None` where none would do: where all differences are 0; where one group gained and the difference of another is just
    `-margin`, so that its estimate falls below that half the time, with any number of users; where a group has only
    one user; and beyond a billion users.
    """

    def chance(users: FloatArray) -> FloatArray:
        gain, loss, doubt = _chances(spread, users[:, None] * spread.users / spread.users.sum(), tail, margin)
        neither = 1 - gain - loss - doubt
        improves = (gain + neither).prod(axis=1) - neither.prod(axis=1)
        return 1 - (1 - loss).prod(axis=1) + improves

    return _least(chance, power)


def _chances(spread: GroupSpread, users: FloatArray, tail: float, margin: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Probabilities that a gain is shown, that a loss is shown, and that a loss above `margin` is measured, not shown.

    All, and `users`, have shape `(num_numbers, num_groups)`.
    """
    certain = np.broadcast_to(spread.s_1 == 0, users.shape)
    scatter = np.where(certain, 1.0, spread.s_1) / np.sqrt(users)

    def below(threshold: FloatArray | float, d: FloatArray) -> FloatArray:
        """Probability that an estimate of `d` falls below the threshold."""
        return np.where(certain, d < threshold, ndtr((threshold - d) / scatter))

    end = ndtri(tail) * spread.s_0 / np.sqrt(users)
    # `fewest` differing users must be met before anything can be shown: a binomial tail, as an incomplete beta function.
    fewest = math.ceil(-math.log2(tail))
    enough = np.where(users >= fewest, betainc(fewest, np.maximum(np.floor(users) - fewest + 1, 1), spread.differing), 0.0)
    gain, loss = (np.minimum(below(end, d), enough) for d in (-spread.d, spread.d))
    return gain, loss, np.maximum(below(-margin, spread.d) - loss, 0.0)


def _least(chance: Callable[[FloatArray], FloatArray], power: float) -> int | None:
    """The least number of users whose chance reaches `power`: the first on a coarse grid, then on finer ones below it."""
    numbers = np.unique(np.floor(1.1 ** np.arange(math.log(_MOST, 1.1))))
    while True:
        reached = np.flatnonzero(chance(numbers) >= power)
        if not len(reached):
            return None
        place = int(reached[0])
        if place == 0 or numbers[place] - numbers[place - 1] == 1:
            return int(numbers[place])
        numbers = np.unique(np.round(np.linspace(numbers[place - 1], numbers[place], 50)))
