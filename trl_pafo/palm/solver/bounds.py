"""What the best policy for a weight can be worth at most: from the answers of the oracle, from a pool, or known."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linprog

from trl_pafo.errors import PortfolioError
from trl_pafo.palm.core import FloatArray
from trl_pafo.palm.solver.polytope import vertices

_CHUNK = 4_000_000


class Reference(Protocol):
    """What a portfolio is compared with."""

    @property
    def name(self) -> str:
        """In words, for outputs."""

    def at(self, weights: FloatArray) -> FloatArray:
        """The value to reach at each row of `weights`: a convex function of the weights."""


@dataclass(frozen=True)
class UpperBound:
    """
    The most that any policy can earn, given what the oracle said about some weights.

    ```
    UB(w) = max { w.v : w_k.v <= bounds_k for all k, low <= v_i <= high }                      beta = 0
    UB(w) = max { w.v - c : w_k.v - c <= bounds_k for all k, low <= v_i <= high, c >= 0 }      beta > 0, c = beta KL
    ```

    The first is palm's upper bound in our reading. The second is ours: by duality it is the least bound that follows from V* being
    convex in w and from V*(w) - V*(w') <= |w - w'|_1.

    No policy earns more than the `bounds` at the `weights`, of shape `(num_answers, num_rewards)`. The `factor` of the oracle, for
    which they allow, is only named.
    """

    weights: FloatArray
    bounds: FloatArray
    beta: float = 0.0
    reward_range: tuple[float, float] = (0.0, 1.0)
    factor: float = 0.0

    @property
    def name(self) -> str:
        exact = "taken as exact" if self.factor == 0 else f"taken as within {self.factor:.3g} of the best"
        return f"upper bound from {len(self.weights)} answers of the oracle, {exact}"

    def at(self, weights: FloatArray) -> FloatArray:
        """UB at each row, of shape `(num_weights,)`; from the vertices of the polytope, or an LP a row if they fail."""
        if self._vertices is None:
            return np.array([self.solve(row) for row in weights])
        return _max_product(self._lift(weights), self._vertices)

    def solve(self, weights: FloatArray) -> float:
        """UB at one vector of weights, by one linear program.

        Raises:
            PortfolioError: If no values fit all the bounds.
        """
        normals, offsets = self._facets
        num_rewards = self.weights.shape[1]
        ranges: list[tuple[float, float | None]] = [self.reward_range] * num_rewards
        if self.beta > 0:
            ranges.append((0.0, None))
        num_answers = len(self.weights)
        answer = linprog(-self._lift(weights[None])[0], normals[:num_answers], offsets[:num_answers], bounds=ranges)
        if answer.status != 0:
            raise PortfolioError(f"No values fit the bounds of the {num_answers} answers ({answer.message.strip()}); check them.")
        return float(-answer.fun)

    @cached_property
    def _facets(self) -> tuple[FloatArray, FloatArray]:
        """{x : normals @ x <= offsets}, x = v or (v, c). The answers come first."""
        low, high = self.reward_range
        num_rewards = self.weights.shape[1]
        normals = np.vstack([self.weights, np.eye(num_rewards), -np.eye(num_rewards)])
        offsets = np.concatenate([self.bounds, np.full(num_rewards, high), np.full(num_rewards, -low)])
        if self.beta == 0:
            return normals, offsets
        cost = np.concatenate([np.full(len(self.weights), -1.0), np.zeros(2 * num_rewards)])
        ends = np.zeros((2, num_rewards + 1))
        ends[:, -1] = [-1.0, 1.0]
        # A best c is at most high - low, so that closing the polytope above that takes nothing away.
        return np.vstack([np.column_stack([normals, cost]), ends]), np.append(offsets, [0.0, 3 * (high - low)])

    @cached_property
    def _vertices(self) -> FloatArray | None:
        low, high = self.reward_range
        num_rewards = self.weights.shape[1]
        if self.beta > 0:
            interior = np.append(np.full(num_rewards, (low + high) / 2), high - low)
        else:
            room = min(float(self.bounds.min()), high) - low
            if room < 1e-6 * (high - low):
                return None  # so flat that no point is well inside
            interior = np.full(num_rewards, low + room / 2)
        found = vertices(*self._facets, interior, movable=len(self.weights))
        return None if found is None else found.points

    def _lift(self, weights: FloatArray) -> FloatArray:
        return np.column_stack([weights, np.full(len(weights), -1.0)]) if self.beta > 0 else weights


@dataclass(frozen=True)
class Pool:
    """The best of a given set of policies: their values, of shape `(num_policies, num_rewards)`, and costs, beta times KL."""

    values: FloatArray
    costs: FloatArray

    @property
    def name(self) -> str:
        return f"pool of {len(self.values)} policies"

    def at(self, weights: FloatArray) -> FloatArray:
        """The best scalarised value in the pool at each row."""
        return best_values(weights, self.values, self.costs)


@dataclass(frozen=True)
class Optimum:
    """
    The true optimum, where it is known as a function V* from weights `(num_weights, num_rewards)` to values `(num_weights,)`. It
    must be convex, as the maximum of linear functions is.
    """

    function: Callable[[FloatArray], ArrayLike]

    @property
    def name(self) -> str:
        return "true optimum"

    def at(self, weights: FloatArray) -> FloatArray:
        """V* at each row."""
        values = np.asarray(self.function(weights), dtype=np.float64)
        if values.shape != (len(weights),):
            raise PortfolioError(
                f"The optimum must have one value for each of {len(weights)} rows of weights, as np.linalg.norm(weights, axis=1) has; got shape "
                f"{values.shape}."
            )
        return values


def best_values(weights: FloatArray, values: FloatArray, costs: FloatArray) -> FloatArray:
    """max over policies of w.values - costs, for each row of `weights`; of shape `(num_weights,)`."""
    return _max_product(np.column_stack([weights, np.full(len(weights), -1.0)]), np.column_stack([values, costs]))


def _max_product(left: FloatArray, right: FloatArray) -> FloatArray:
    """Row maxima of left @ right.T, a bounded block at a time."""
    rows = max(_CHUNK // max(len(right), 1), 1)
    blocks = [(left[start : start + rows] @ right.T).max(axis=1) for start in range(0, len(left), rows)]
    return np.concatenate(blocks) if blocks else np.zeros(0)
