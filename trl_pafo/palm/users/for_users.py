"""A portfolio for the users at hand: fewer calls and fewer members than for every weight there could be. (Not from the paper.)

What is promised holds for the users' weights, or for all weights between them (their convex hull: a new user whose tastes
lie between known ones is served as well). Nothing is promised for others; the certificate over all weights stays beside it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from trl_pafo.errors import PortfolioError
from trl_pafo.palm.build import ask_oracle, checked_options, open_search
from trl_pafo.palm.core import FloatArray, Oracle, OracleCall, OracleResult, check_weights
from trl_pafo.palm.portfolio import Portfolio
from trl_pafo.palm.solver.bounds import UpperBound, best_values
from trl_pafo.palm.solver.certificate import Measure, certify
from trl_pafo.palm.solver.cover import minimum_cover
from trl_pafo.palm.solver.regions import WeightRegion
from trl_pafo.palm.solver.search import Known, observed_factor, refuse_again

# Nodes of the branch and bound tree for one choice of members.
_NODES = 500
_AIM = 1 - 1e-6


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
    beta: float = 0.0,
    reward_range: tuple[float, float] = (0.0, 1.0),
    reward_names: Sequence[str] | None = None,
    oracle_factor: float | Literal["estimate"] = 0.0,
    warm_start: Sequence[OracleResult | tuple[ArrayLike, OracleResult]] = (),
    max_calls: int = 1000,
    folder: str | Path | None = None,
    problem: Mapping[str, Any] | None = None,
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
        beta, reward_range, reward_names, oracle_factor, warm_start, max_calls, folder, problem (*optional*):
            See [`build_portfolio`]. A folder of answers may be shared with it: what either asked, the other knows.

    Returns:
        [`UserPortfolio`].

    Raises:
        PortfolioError: If weights are off the simplex, an option is out of range, an answer cannot be used, or `max_calls` is
            reached.
    """
    users = _checked_users(weights)
    num_rewards = users.shape[1]
    names = checked_options(num_rewards, epsilon, delta, beta, reward_range, reward_names, (0.0, 1.0, 0.0), oracle_factor, None)
    log, known = open_search(oracle, num_rewards, beta, reward_range, names, oracle_factor, warm_start, folder, problem)
    num_calls = sum(not call.warm for call in known.calls)
    region = WeightRegion.hull(users) if hull else None
    measure, goal = Measure.of(epsilon, delta)
    while (asked := _next(known, users, region, measure, goal * _AIM)) is not None:
        if num_calls >= max_calls:
            raise PortfolioError(
                f"After max_calls={num_calls} calls the tolerance {goal:g} is not yet kept for all users. Raise max_calls or the tolerance."
            )
        call = OracleCall(asked, ask_oracle(oracle, asked, num_rewards, reward_range, num_calls, log))
        if log is not None:
            log.append(call)
        known.calls.append(call)
        num_calls += 1
    bound = known.upper_bound()
    members, gap, smallest = _cover(known, bound, users, region, measure, goal)
    _, own, best = known.answers()
    kl = np.array([call.result.kl for call in known.calls])[members]
    portfolio = Portfolio(
        calls=tuple(known.calls),
        members=tuple(members),
        epsilon=epsilon,
        delta=delta,
        beta=beta,
        reward_range=reward_range,
        reward_names=names,
        oracle_calls=num_calls,
        certificate=certify(known.values[members], bound, kl=kl, beta=beta, epsilon=epsilon, delta=delta),
        upper_bound=bound,
        size_bound=None,
        smallest=smallest,
        observed_factor=observed_factor(own, best),
    )
    if folder is not None:
        portfolio.save(folder)
    return UserPortfolio(portfolio, gap, hull, len(users))


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
        cover = minimum_cover(measure.gaps(np.broadcast_to(bound.at(rows)[:, None], lower.shape), lower) <= goal, _NODES)
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
