"""A portfolio for the users at hand: fewer calls and fewer members than for every weight there could be. (Not from the paper.)

What is promised holds for the users' weights. Nothing is promised for others; the certificate over all weights stays beside it.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from trl_pafo.errors import PortfolioError
from trl_pafo.palm.build import AIM, Build
from trl_pafo.palm.core import FloatArray, Oracle, check_weights
from trl_pafo.palm.portfolio import Portfolio
from trl_pafo.palm.solver.bounds import best_values
from trl_pafo.palm.solver.certificate import Measure
from trl_pafo.palm.solver.cover import minimum_cover
from trl_pafo.palm.solver.prune import NODES
from trl_pafo.palm.solver.search import refuse_again


class UserPortfolio(NamedTuple):
    """
    A portfolio and what holds for the users that it was built for.

    `portfolio` is a [`Portfolio`] as any: its certificate is over all weights, and may be poor. `gap` is the greatest gap of a
    user, in the portfolio's measure.
    """

    portfolio: Portfolio
    gap: float
    num_weights: int

    def __str__(self) -> str:
        return (
            f"For {self.num_weights} different weights of users: {self.portfolio.measure.name} {self.gap:.4f}, certified.\n"
            f"Over all weights there could be:\n{self.portfolio}"
        )


def build_for_users(
    oracle: Oracle, weights: ArrayLike, epsilon: float, delta: float = 0.0, *, max_calls: int = 1000, **options: Any
) -> UserPortfolio:
    """
    As [`build_portfolio`], with the promise for the users' weights alone.

    The oracle is asked at the user for whom what is known leaves most to lose; the members are a minimum set cover of the users.

    Args:
        oracle (`Callable`):
            See [`build_portfolio`].
        weights (array of shape `(num_users, num_rewards)`):
            The users' weights, each row on the simplex.
        epsilon, delta (`float`):
            The tolerances, see [`build_portfolio`].
        max_calls (`int`, *optional*, defaults to `1000`):
            Calls of the oracle at most.
        **options:
            `beta`, `reward_names`, `oracle_factor`, `warm_start`, `folder` and `problem` of [`build_portfolio`]. A folder of answers
            may be shared with it: what either asked, the other knows.

    Returns:
        [`UserPortfolio`].

    Raises:
        PortfolioError: If weights are off the simplex, an option is out of range, an answer cannot be used, or `max_calls` is
            reached.
    """
    users = _checked_users(weights)
    build = Build.open(oracle, users.shape[1], epsilon, delta, **options)
    known = build.known
    measure, goal = Measure.of(epsilon, delta)
    # The middle first, then where the gap of all known policies is the greatest.
    asked = None if any(call.asked for call in known.calls) else users.mean(axis=0)
    while True:
        if asked is not None:
            if build.num_calls >= max_calls:
                raise build.too_many_calls(max_calls, f"the tolerance {goal:g} is not yet kept for all users")
            build.ask(asked)
        upper = known.upper_bound().at(users)
        gaps = measure.gaps(upper, best_values(users, known.values, known.costs))
        worst = int(gaps.argmax())
        if gaps[worst] <= goal * AIM:
            break
        asked = users[worst]
        refuse_again(known, asked, float(gaps[worst]), measure, goal)
    own = measure.gaps(upper[:, None], users @ known.values.T - known.costs)
    cover = minimum_cover(own <= goal, NODES)
    gap = float(own[:, cover.columns].min(axis=1).max())
    return UserPortfolio(build.finish(cover.columns, cover.exact), gap, len(users))


def _checked_users(weights: ArrayLike) -> FloatArray:
    rows = np.asarray(weights, dtype=np.float64)
    if rows.ndim != 2 or not len(rows) or rows.shape[1] < 2:
        raise PortfolioError(f"`weights` must have shape (num_users, num_rewards), one row per user; got {rows.shape}.")
    rows = np.array([check_weights(row, rows.shape[1]) for row in rows])
    return np.unique(rows.round(12), axis=0)
