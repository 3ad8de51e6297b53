"""Where to call the oracle next: only at weights where what is known leaves more to lose than the tolerance."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from trl_pafo.errors import PortfolioError
from trl_pafo.palm.core import FloatArray, OracleCall
from trl_pafo.palm.solver.bounds import UpperBound, best_values
from trl_pafo.palm.solver.certificate import Measure, corner_values
from trl_pafo.palm.solver.simplex import weight_grid

# Weights this near to each other, in the 1-norm, are the same question.
SAME_WEIGHTS = 1e-9
_BATCH = 1024


class OracleTooFarError(PortfolioError):
    """The tolerance is not kept at weights that the oracle has answered."""


@dataclass
class Known:
    """
    All that is known: the policies so far, in the order in which they became known, and what the oracle's answers say about the
    optimum.

    The oracle's policy earns at least 1 minus `oracle_factor` of the best; `"estimate"` takes the observed factor.
    """

    num_rewards: int
    beta: float
    oracle_factor: float | Literal["estimate"]
    calls: list[OracleCall] = field(default_factory=list)

    @property
    def values(self) -> FloatArray:
        """Values of the policies, of shape `(num_policies, num_rewards)`."""
        return np.array([call.result.values for call in self.calls]).reshape(-1, self.num_rewards)

    @property
    def costs(self) -> FloatArray:
        """beta KL of the policies."""
        return self.beta * np.array([call.result.kl for call in self.calls])

    def find(self, weights: FloatArray) -> int | None:
        """The policy that answered these weights, if they were asked."""
        for place, call in enumerate(self.calls):
            if call.asked and np.abs(call.weights - weights).sum() <= SAME_WEIGHTS:
                return place
        return None

    def answers(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Weights asked, what the answer earns there, and what the best known policy earns there."""
        asked = np.array([call.asked for call in self.calls], dtype=bool)
        weights = np.array([call.weights for call in self.calls]).reshape(-1, self.num_rewards)[asked]
        own = (weights * self.values[asked]).sum(axis=1) - self.costs[asked]
        return weights, own, np.maximum(best_values(weights, self.values, self.costs), own)

    def observed_factor(self) -> float:
        """The greatest share by which an answer was beaten at its own weights by another policy: at most the oracle's true factor."""
        _, own, best = self.answers()
        worse = best - own > 1e-9
        return float(((best - own)[worse] / np.maximum(best[worse], 1e-12)).max(initial=0.0))

    def upper_bound(self) -> UpperBound:
        """What the answers say about the optimum: V*(w_k) <= own_k / (1 - factor).

        No less than what the best known policy earns there, or 0 (as any policy earns without a KL term, and the reference
        policy with one).
        """
        weights, own, best = self.answers()
        factor = min(self.observed_factor(), 0.99) if self.oracle_factor == "estimate" else self.oracle_factor
        bounds = np.maximum(np.maximum(own / (1 - factor), best), 0.0)
        return UpperBound(weights, bounds, self.beta, factor=factor)


def simplex_corners(known: Known) -> Iterator[FloatArray]:
    """The weights that care for one reward alone: the first calls of any search."""
    for weights in np.eye(known.num_rewards):
        if known.find(weights) is None:
            yield weights


def corner_search(known: Known, measure: Measure, goal: float) -> Iterator[tuple[FloatArray, float]]:
    """Yield the weights of the worst certified gap, and the gap, until the gap of all policies known is at most `goal`.

    Every weight to consider is a corner weight of the cells of the policies known (optimistic linear support); there is
    no grid. The caller adds the answer to `known` before it asks for the next.

    Raises:
        OracleTooFarError: If the worst weights were asked before: the oracle's answers are too far from the best.
    """
    while True:
        weights, upper, lower = corner_values(known.values, known.costs, known.upper_bound())
        gaps = measure.gaps(upper, lower)
        worst = int(gaps.argmax())
        if gaps[worst] <= goal:
            return
        refuse_again(known, weights[worst], float(gaps[worst]), measure, goal)
        yield weights[worst], float(gaps[worst])


def grid_search(known: Known, epsilon: float, delta: float, grid: tuple[float, float]) -> Iterator[tuple[FloatArray, float]]:
    """Yield the point of the structured grid with the greatest violation, and it, until none is violated.

    ```
    violation(w) = (1 - epsilon) UB(w) - delta - LB(w)
    ```

    A call only lowers UB and raises LB, so a violation computed earlier is never too small: the points wait in a heap, and those on
    top are computed anew until one of them is the greatest (lazy, as the paper's search is; the details are ours). `epsilon` and
    `delta` are the tolerances on the grid, `grid` has those of [`weight_grid`]. Every single reward must have been asked.
    """
    points = weight_grid(known.num_rewards, *grid)

    def violation(weights: FloatArray, upper: FloatArray) -> FloatArray:
        return (1 - epsilon) * upper - delta - best_values(weights, known.values, known.costs)

    # From the calls for single rewards alone, UB is w.(V*(e_1), ..., V*(e_d)): no program is needed to start with.
    bound = known.upper_bound()
    distances = np.abs(bound.weights[:, None] - np.eye(known.num_rewards)).sum(axis=-1)
    start = violation(points, points @ bound.bounds[distances.argmin(axis=0)])
    heap = [(-value, place, 0) for place, value in enumerate(start) if value > 0]
    heapq.heapify(heap)
    while heap:
        negative, place, known_then = heap[0]
        if known_then == len(known.calls):
            refuse_again(known, points[place], -negative, Measure(False), 0.0)
            yield points[place], -negative
            continue
        top = [heapq.heappop(heap)[1] for _ in range(min(_BATCH, len(heap)))]
        for place, value in zip(top, violation(points[top], known.upper_bound().at(points[top])), strict=True):
            if value > 0:
                heapq.heappush(heap, (-value, place, len(known.calls)))


def refuse_again(known: Known, weights: FloatArray, gap: float, measure: Measure, goal: float) -> None:
    """Raise where the worst weights have been asked already: asking again would not help."""
    if known.find(weights) is None:
        return
    raise OracleTooFarError(
        f"The {measure.name} is still {gap:.4g} (asked: {goal:.4g}) at weights that the oracle has answered, "
        f"{np.array2string(weights, precision=4)}: its answers are not near enough to the best. Factor allowed for: "
        f"{known.upper_bound().factor:.4g}; seen: {known.observed_factor():.4g} (an answer beaten at its own weights by "
        "another policy). Use a tolerance above the factor, or a better oracle."
    )
