"""A portfolio for the users at hand: fewer calls and fewer members than for every weight there could be. (Not from the paper.)

What is promised holds for the users' weights, or for all weights between them (their convex hull: a new user whose tastes
lie between known ones is served as well). Nothing is promised for others; the certificate over all weights stays beside it.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from trl_pafo.errors import PortfolioError
from trl_pafo.palm.build import AIM, Build
from trl_pafo.palm.core import FloatArray, Oracle, check_weights
from trl_pafo.palm.portfolio import Portfolio
from trl_pafo.palm.solver.bounds import UpperBound, best_values
from trl_pafo.palm.solver.certificate import Measure
from trl_pafo.palm.solver.cover import minimum_cover
from trl_pafo.palm.solver.prune import NODES
from trl_pafo.palm.solver.regions import WeightRegion
from trl_pafo.palm.solver.search import Known, refuse_again


class UserPortfolio(NamedTuple):
    """
    A portfolio and what holds for the users that it was built for.

    `portfolio` is a [`Portfolio`] as any: its certificate is over all weights, and may be poor. `gap` is the certified gap over
    the users' weights (with `hull`, over all weights between them), in the portfolio's measure.
    """

    portfolio: Portfolio
    gap: float
    hull: bool
    num_weights: int

    def __str__(self) -> str:
        between = " and all weights between them" if self.hull else ""
        return (
            f"For {self.num_weights} different weights of users{between}: {self.portfolio.measure.name} {self.gap:.4f}, certified.\n"
            f"Over all weights there could be:\n{self.portfolio}"
        )


def build_for_users(
    oracle: Oracle,
    weights: ArrayLike,
    epsilon: float,
    delta: float = 0.0,
    *,
    hull: bool = False,
    max_calls: int = 1000,
    **options: Any,
) -> UserPortfolio:
    """
    As [`build_portfolio`], with the promise for the users' weights alone.

    The oracle is asked at the user, or the corner of a cell between users, where what is known leaves most to lose; the
    members are a minimum set cover of the users. With `hull` a cover is certified over the whole hull, and the weights at
    which it fails become users to cover.

    Args:
        oracle (`Callable`):
            See [`build_portfolio`].
        weights (array of shape `(num_users, num_rewards)`):
            The users' weights, each row on the simplex.
        epsilon, delta (`float`):
            The tolerances, see [`build_portfolio`].
        hull (`bool`, *optional*, defaults to `False`):
            Keep the promise for all weights between the users' too.
        max_calls (`int`, *optional*, defaults to `1000`):
            Calls of the oracle at most.
        **options:
            `beta`, `reward_names`, `oracle_factor`, `warm_start`, `folder` and `problem` of [`build_portfolio`]. A
            folder of answers may be shared with it: what either asked, the other knows.

    Returns:
        [`UserPortfolio`].

    Raises:
        PortfolioError: If weights are off the simplex, an option is out of range, an answer cannot be used, or `max_calls` is
            reached.
    """
    users = _checked_users(weights)
    build = Build.open(oracle, users.shape[1], epsilon, delta, **options)
    known = build.known
    region = WeightRegion.hull(users) if hull else None
    measure, goal = Measure.of(epsilon, delta)
    while (asked := _next(known, users, region, measure, goal * AIM)) is not None:
        if build.num_calls >= max_calls:
            raise build.too_many_calls(max_calls, f"the tolerance {goal:g} is not yet kept for all users")
        build.ask(asked)
    members, gap, smallest = _cover(known, known.upper_bound(), users, region, measure, goal)
    return UserPortfolio(build.finish(members, smallest), gap, hull, len(users))


def _checked_users(weights: ArrayLike) -> FloatArray:
    rows = np.asarray(weights, dtype=np.float64)
    if rows.ndim != 2 or not len(rows) or rows.shape[1] < 2:
        raise PortfolioError(f"`weights` must have shape (num_users, num_rewards), a row a user; got {rows.shape}.")
    rows = np.array([check_weights(row, rows.shape[1]) for row in rows])
    return np.unique(rows.round(12), axis=0)


def _next(known: Known, users: FloatArray, region: WeightRegion | None, measure: Measure, goal: float) -> FloatArray | None:
    """The weights to ask: the middle first, then where the gap of all known policies is the greatest; `None` if it is small."""
    if not any(call.asked for call in known.calls):
        return users.mean(axis=0)
    points = users if region is None else _corners(region, known.values, known.costs)
    gaps = measure.gaps(known.upper_bound().at(points), best_values(points, known.values, known.costs))
    worst = int(gaps.argmax())
    if gaps[worst] <= goal:
        return None
    refuse_again(known, points[worst], float(gaps[worst]), measure, goal)
    return points[worst]


def _cover(
    known: Known, bound: UpperBound, users: FloatArray, region: WeightRegion | None, measure: Measure, goal: float
) -> tuple[list[int], float, bool]:
    """Members, their certified gap over the users, and whether no fewer of the known policies keep the tolerance."""
    values, costs = known.values, known.costs
    rows = users if region is None else np.vstack([users, region.points])
    while True:
        lower = rows @ values.T - costs
        cover = minimum_cover(measure.gaps(np.broadcast_to(bound.at(rows)[:, None], lower.shape), lower) <= goal, NODES)
        chosen = cover.columns
        points = users if region is None else _corners(region, values[chosen], costs[chosen])
        gaps = measure.gaps(bound.at(points), best_values(points, values[chosen], costs[chosen]))
        # Rounding alone is no failure, and no row that was covered fails again but by rounding.
        failed = gaps > goal + 1e-9
        if not failed.any():
            return chosen, float(gaps.max()), cover.exact
        rows = np.vstack([rows, points[failed]])


def _corners(region: WeightRegion, values: FloatArray, costs: FloatArray) -> FloatArray:
    """Corners of the cells of the policies within the region: the weights at which the gap can be greatest."""
    return np.vstack([cell.points for cell in region.cells(values, costs) if cell is not None])
