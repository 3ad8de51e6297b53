"""Sets of weights on the simplex: the structured grid, its size and the bound that follows, and the baselines' weights."""

import itertools
import math

import numpy as np

from trl_pafo.errors import PortfolioError
from trl_pafo.palm.core import FloatArray

MAX_GRID = 2_000_000


def weight_grid(num_rewards: int, epsilon: float, delta: float) -> FloatArray:
    """The structured grid of weights: relative steps where a weight is large, one additive step below.

    ```
    levels = {0} u {tau (1 + epsilon)^k} u {1},  tau = delta / num_rewards
    G      = {u / |u|_1 : some u_i = 1, the rest in levels}
    ```

    For rewards in `[0, 1]`, every w has a g in G such that a policy that is the best for g earns at least
    `(1 - epsilon) V*(w) - delta` at w. That the grid is geometric, relative and additive at once is the paper's (PALM,
    arXiv 2604.04144); the levels are our reading.

    Args:
        num_rewards (`int`):
            Number of rewards, at least 2.
        epsilon (`float`):
            Relative tolerance, in (0, 1).
        delta (`float`):
            Additive tolerance, greater than 0, in units of the rewards.

    Returns:
        Array of shape `(num_points, num_rewards)`, every row on the simplex.

    Raises:
        PortfolioError: If a tolerance is out of range, or the grid has more than two million points.
    """
    size = grid_size(num_rewards, epsilon, delta)
    if size > MAX_GRID:
        raise PortfolioError(
            f"The grid for {num_rewards} rewards, epsilon={epsilon:g} and delta={delta:g} has {size:,} points. Raise the "
            "tolerances, or search on corner weights (search='corners'), which needs no grid."
        )
    tau = delta / num_rewards
    steps = np.arange(_num_levels(num_rewards, epsilon, delta) - 2)
    levels = np.concatenate([[0.0], tau * (1 + epsilon) ** steps, [1.0]])
    # Each point once: the first of its coordinates that is 1 decides, those before it are below 1.
    blocks = []
    for first in range(num_rewards):
        axes = [levels[:-1]] * first + [levels[-1:]] + [levels] * (num_rewards - first - 1)
        blocks.append(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, num_rewards))
    points = np.concatenate(blocks)
    return points / points.sum(axis=1, keepdims=True)


def grid_size(num_rewards: int, epsilon: float, delta: float) -> int:
    """Number of points of [`weight_grid`], without listing them."""
    levels = _num_levels(num_rewards, epsilon, delta)
    return levels**num_rewards - (levels - 1) ** num_rewards


def size_bound(num_rewards: int, epsilon: float, delta: float, beta: float = 0.0) -> int | None:
    """So many members are always enough for these tolerances, however many users there are and whatever the policies.

    For `beta = 0` and `epsilon > 0`, with L the number of levels of [`weight_grid`]:

    ```
    |P| <= |G| <= d L^(d-1),    L = 2 + ceil(log_{1+epsilon}(d / delta))
    ```

    That there is such a bound, in d alone, is the paper's; this form is our reading. For `beta > 0` or `epsilon = 0` the
    objective has no relative form; then it is the number of points of an even grid, binom(n + d - 1, d - 1) with
    n = ceil(d / (2 delta)), since every w has a point g of it with |w - g|_1 <= d / (2 n) and
    V*(w) - J(w, pi_g) <= |w - g|_1 (ours).

    Args:
        num_rewards (`int`):
            Number of rewards d.
        epsilon (`float`):
            Relative tolerance.
        delta (`float`):
            Additive tolerance.
        beta (`float`, *optional*, defaults to `0.0`):
            Weight of the KL term.

    Returns:
        The bound, or `None` where `delta = 0`: no bound in d alone is known then.
    """
    if delta == 0:
        return None
    if beta == 0 and epsilon > 0:
        return num_rewards * _num_levels(num_rewards, epsilon, delta) ** (num_rewards - 1)
    steps = math.ceil(num_rewards / (2 * delta))
    return math.comb(steps + num_rewards - 1, num_rewards - 1)


def uniform_weights(num_rewards: int, num_points: int) -> FloatArray:
    """An even grid on the simplex: the smallest with at least `num_points` points, of shape `(>= num_points, num_rewards)`."""
    steps = 1
    while math.comb(steps + num_rewards - 1, num_rewards - 1) < num_points:
        steps += 1
    bars = np.array(list(itertools.combinations(range(steps + num_rewards - 1), num_rewards - 1)))
    edges = np.column_stack([np.full(len(bars), -1), bars, np.full(len(bars), steps + num_rewards - 1)])
    return (np.diff(edges, axis=1) - 1) / steps


def random_weights(num_rewards: int, num_points: int, seed: int = 0) -> FloatArray:
    """Weights drawn evenly from the simplex, of shape `(num_points, num_rewards)`."""
    return np.random.default_rng(seed).dirichlet(np.ones(num_rewards), size=num_points)


def _num_levels(num_rewards: int, epsilon: float, delta: float) -> int:
    if num_rewards < 2:
        raise PortfolioError(f"A portfolio needs at least 2 rewards, got num_rewards={num_rewards}.")
    if not 0 < epsilon < 1:
        raise PortfolioError(f"The grid needs epsilon in (0, 1), got {epsilon}.")
    if not delta > 0:
        raise PortfolioError(f"The grid needs delta > 0, got {delta}: without a floor it is infinite. Use search='corners'.")
    ratio = num_rewards / delta
    # A power that is exact but for rounding needs no level more.
    return 2 + max(math.ceil(math.log(ratio) / math.log1p(epsilon) - 1e-9), 0)
