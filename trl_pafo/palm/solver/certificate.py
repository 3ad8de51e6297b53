"""How much a user can lose at most with the portfolio instead of the best policy, over all weights: exact, not sampled.

The loss is V - LB, LB the best of the members and V convex (the optimum, its upper bound, or the best of a pool). Within
the cell of weights where one member is the best, LB is linear; there V - LB is convex and V / LB quasi-convex, and both
are greatest in a corner of the cell. So the corners of the cells decide, and they are finitely many. (Not from the paper; a linear
program for each vertex of the upper bound's polytope, or each policy of the pool, gives the same numbers.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from trl_pafo.errors import PortfolioError
from trl_pafo.palm.core import FloatArray
from trl_pafo.palm.solver.bounds import Optimum, Pool, Reference, UpperBound, best_values
from trl_pafo.palm.solver.polytope import envelope_corners

RESOLUTION = 1e-8
"""A loss of no more than this, in units of the rewards, is rounding and counts as none."""


@dataclass(frozen=True)
class Measure:
    """
    The gap that is to be small: if `relative`, the least epsilon such that LB >= (1 - epsilon) V - delta; otherwise the least delta
    with epsilon = 0.
    """

    relative: bool
    delta: float = 0.0

    @classmethod
    def of(cls, epsilon: float, delta: float) -> tuple["Measure", float]:
        """The measure that two tolerances mean, and what it must not exceed."""
        return (cls(True, delta), epsilon) if epsilon > 0 else (cls(False), delta)

    @property
    def name(self) -> str:
        return "relative gap" if self.relative else "additive gap"

    def gaps(self, upper: FloatArray, lower: FloatArray) -> FloatArray:
        """The gap for each pair of numbers."""
        return _relative(upper, lower, self.delta) if self.relative else np.maximum(upper - lower, 0.0)


@dataclass(frozen=True)
class Certificate:
    """
    The worst case over the whole simplex.

    Parameters:
        relative_gap (`float`):
            Least epsilon such that J(w, best member) >= (1 - epsilon) V(w) - `delta` for every w. Above 1, members are worth
            less than nothing somewhere (the KL term can do that), and it says no more than that.
        relative_weights (array of shape `(num_rewards,)`):
            The weights at which it is reached.
        additive_gap (`float`):
            Least delta such that J(w, best member) >= V(w) - delta for every w, in units of the rewards.
        additive_weights (array of shape `(num_rewards,)`):
            The weights at which it is reached.
        delta (`float`):
            What the relative gap grants beside it.
        objective (`str`):
            What was evaluated: `"w.R"`, or with its KL term.
        reference (`str`):
            What V is.
        num_corners (`int`):
            How many corner weights were compared.
    """

    relative_gap: float
    relative_weights: FloatArray
    additive_gap: float
    additive_weights: FloatArray
    delta: float
    objective: str
    reference: str
    num_corners: int

    def __str__(self) -> str:
        grant = f" beyond delta = {self.delta:g}" if self.delta else ""
        return (
            f"relative gap {self.relative_gap:.4f}{grant} at w = {_weights(self.relative_weights)}; additive gap "
            f"{self.additive_gap:.4f} at w = {_weights(self.additive_weights)}; over all w ({self.num_corners} corner weights); "
            f"objective {self.objective}; against the {self.reference}"
        )

    def gap(self, measure: Measure) -> float:
        """The gap that `measure` means."""
        return self.relative_gap if measure.relative else self.additive_gap

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in vars(self).items()}


def certify(
    values: ArrayLike,
    reference: ArrayLike | Reference | Callable[[FloatArray], ArrayLike],
    *,
    kl: ArrayLike | None = None,
    reference_kl: ArrayLike | None = None,
    beta: float = 0.0,
    delta: float = 0.0,
) -> Certificate:
    """The worst gap of a set of policies over all weights of the simplex, relative and additive.

    Args:
        values (array of shape `(num_members, num_rewards)`):
            Values of the members.
        reference (array of shape `(num_policies, num_rewards)`, [`UpperBound`], or `Callable`):
            What they are compared with: the values of a pool of policies; the upper bound of the true optimum
            (`Portfolio.upper_bound`); or the true optimum V* itself, a convex function that takes weights of shape
            `(num_weights, num_rewards)`.
        kl (array of shape `(num_members,)`, *optional*):
            KL of the members in nats; needed where `beta > 0`.
        reference_kl (array of shape `(num_policies,)`, *optional*):
            KL of the pool; needed where `beta > 0`.
        beta (`float`, *optional*, defaults to `0.0`):
            Weight of the KL term in the objective.
        delta (`float`, *optional*, defaults to `0.0`):
            Additive tolerance that is granted beside the relative gap, in units of the rewards.

    Returns:
        [`Certificate`].

    Raises:
        PortfolioError: If shapes do not fit, a value is NaN, or a KL is missing. With a pool and `beta = 0`, negative values
            have no relative gap: it is infinite where the pool is worth nothing and the members less.
    """
    members = _matrix(values, "values")
    costs = _costs(kl, beta, len(members), "kl")
    if isinstance(reference, UpperBound | Pool | Optimum):
        against: Reference = reference
        if isinstance(reference, UpperBound) and reference.beta != beta:
            raise PortfolioError(
                f"The upper bound was made for beta={reference.beta:g}, the members are judged at beta={beta:g}."
            )
    elif callable(reference):
        against = Optimum(reference)
    else:
        pool = _matrix(reference, "reference")  # type: ignore[arg-type]
        if pool.shape[1] != members.shape[1]:
            raise PortfolioError(f"`values` have {members.shape[1]} rewards, `reference` has {pool.shape[1]}.")
        against = Pool(pool, _costs(reference_kl, beta, len(pool), "reference_kl"))
    weights, upper, lower = corner_values(members, costs, against)
    relative, additive = _relative(upper, lower, delta), np.maximum(upper - lower, 0.0)
    return Certificate(
        relative_gap=float(relative.max()),
        relative_weights=weights[relative.argmax()],
        additive_gap=float(additive.max()),
        additive_weights=weights[additive.argmax()],
        delta=delta,
        objective=objective_name(beta),
        reference=against.name,
        num_corners=len(weights),
    )


def corner_values(values: FloatArray, costs: FloatArray, reference: Reference) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Corner weights of the members' cells, and there the reference and the best member (never too high)."""
    corners = envelope_corners(values, costs)
    return corners.points, reference.at(corners.points), best_values(corners.points, values, costs) - corners.move


def objective_name(beta: float) -> str:
    """What is maximized, in words."""
    return "w.R" if beta == 0 else f"w.R - {beta:g} KL"


def _relative(upper: FloatArray, lower: FloatArray, delta: float) -> FloatArray:
    loss = upper - lower - delta
    with np.errstate(divide="ignore", invalid="ignore"):
        # Where nothing can be earned at all, losing anything is beyond every relative gap.
        return np.where(loss <= RESOLUTION, 0.0, np.where(upper > 0, loss / upper, np.inf))


def _matrix(values: ArrayLike, name: str) -> FloatArray:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or len(matrix) == 0 or matrix.shape[1] < 2:
        raise PortfolioError(f"`{name}` must have shape (num_policies, num_rewards) with 2 rewards or more, got {matrix.shape}.")
    if not np.isfinite(matrix).all():
        raise PortfolioError(f"`{name}` holds NaN or infinity: find out which policy and reward give it.")
    return matrix


def _costs(kl: ArrayLike | None, beta: float, num_policies: int, name: str) -> FloatArray:
    if beta < 0:
        raise PortfolioError(f"beta must not be negative, got {beta}.")
    if beta == 0:
        return np.zeros(num_policies)
    if kl is None:
        raise PortfolioError(f"With beta={beta:g} the objective is {objective_name(beta)}: pass `{name}`, the KL of each policy.")
    vector = np.asarray(kl, dtype=np.float64)
    if vector.shape != (num_policies,) or not np.isfinite(vector).all():
        raise PortfolioError(
            f"`{name}` must hold one finite KL for each of the {num_policies} policies, got shape {vector.shape}."
        )
    return beta * vector


def _weights(weights: FloatArray) -> str:
    return "(" + ", ".join(f"{weight:.3f}" for weight in weights) + ")"
