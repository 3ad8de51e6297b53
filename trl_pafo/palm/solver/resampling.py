"""Noise of estimation: values are means over prompts, so the gap is known up to which prompts were drawn."""

import math

import numpy as np

from trl_pafo.errors import PortfolioError
from trl_pafo.metrics.intervals import fewest_users
from trl_pafo.palm.core import FloatArray, OracleCall
from trl_pafo.palm.solver.bounds import UpperBound
from trl_pafo.palm.solver.certificate import Measure, corner_values
from trl_pafo.palm.solver.search import upper_bound


def gap_interval(
    calls: list[OracleCall],
    members: list[int],
    bound: UpperBound,
    measure: Measure,
    *,
    num_resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the certified gap over resamples of the prompts (ours); NaN, unknown, of fewer than 6 (at 95 %).

    The same prompts are drawn for all policies, since they answered the same ones: what makes a prompt hard for all of them
    then cancels in the gap. Values and upper bound are both computed anew.

    Args:
        calls (`list[OracleCall]`):
            All known policies, with their values prompt by prompt.
        members (`list[int]`):
            Places of the members.
        bound ([`UpperBound`]):
            The upper bound of the whole sample, for its beta, range and factor.
        measure ([`Measure`]):
            The gap that counts.
        num_resamples (`int`, *optional*, defaults to `200`):
            Number of resamples.
        level (`float`, *optional*, defaults to `0.95`):
            Share of the resamples inside the interval.
        seed (`int`, *optional*, defaults to `0`):
            Seed.

    Raises:
        PortfolioError: If values prompt by prompt are missing or do not fit together.
    """
    if num_resamples < 1 or not 0 < level < 1:
        raise PortfolioError(f"num_resamples={num_resamples} must be positive and level={level} lie in (0, 1).")
    table = _prompt_table(calls, bound.beta)
    if table.shape[1] < fewest_users(level):  # a resample of one prompt is always that prompt
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    gaps = np.empty(num_resamples)
    for resample in range(num_resamples):
        counts = rng.multinomial(table.shape[1], np.full(table.shape[1], 1 / table.shape[1]))
        means = np.einsum("p,kpr->kr", counts / table.shape[1], table)
        values, costs = means[:, :-1], bound.beta * means[:, -1]
        reference = upper_bound(calls, values, costs, bound.beta, bound.reward_range, bound.factor)
        _, upper, lower = corner_values(values[members], costs[members], reference)
        gaps[resample] = measure.gaps(upper, lower).max()
    low, high = np.quantile(gaps, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _prompt_table(calls: list[OracleCall], beta: float) -> FloatArray:
    """Values and KL of each policy on each prompt, of shape `(num_policies, num_prompts, num_rewards + 1)`."""
    rows = []
    for place, call in enumerate(calls):
        values, kl = call.result.prompt_values, call.result.prompt_kl
        if values is None or (beta > 0 and kl is None):
            wanted = "prompt_values" if values is None else "prompt_kl"
            raise PortfolioError(
                f"Policy {place} has no `{wanted}`: let the oracle return it, prompt by prompt, for an interval."
            )
        matrix = np.asarray(values, dtype=np.float64)
        rows.append(np.column_stack([matrix, np.zeros(len(matrix)) if kl is None else np.asarray(kl, dtype=np.float64)]))
    if len({len(row) for row in rows}) > 1:
        raise PortfolioError("All policies must be evaluated on the same prompts; their numbers of prompts differ.")
    return np.stack(rows)
