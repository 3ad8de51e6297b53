"""PALM against uniform and random weights at equal size, on any oracle."""

from typing import Any

import numpy as np

from trl_pafo.errors import PortfolioError
from trl_pafo.palm.core import FloatArray, Oracle, OracleResult, checked_result
from trl_pafo.palm.portfolio import Portfolio
from trl_pafo.palm.solver.bounds import Reference
from trl_pafo.palm.solver.certificate import Measure, certify
from trl_pafo.palm.solver.prune import Pruner
from trl_pafo.palm.solver.simplex import random_weights, uniform_weights

METHODS = ("PALM", "uniform", "random")


def compare_sizes(
    portfolio: Portfolio, oracle: Oracle, max_size: int, *, reference: Reference | None = None, num_seeds: int = 10
) -> list[dict[str, Any]]:
    """The worst gap over all weights of as many members, chosen in three ways.

    `PALM`: of the policies that the build knows, the choice with the least certified gap. `uniform`: the oracle's answers to an
    even grid; where no even grid has this size, to so many points of the next larger one, drawn by seed. `random`: its answers
    to weights drawn evenly from the simplex.

    Args:
        portfolio ([`Portfolio`]):
            A finished build; its tolerances say which gap is compared.
        oracle (`Callable`):
            The oracle that it was built with.
        max_size (`int`):
            Sizes 1 to this.
        reference ([`Reference`], *optional*):
            What all are compared with; by default the portfolio's upper bound of the optimum.
        num_seeds (`int`, *optional*, defaults to `10`):
            Draws of the baselines.

    Returns:
        A `dict` for each method and size: `method`, `size`, `calls` (of the oracle), `gap` (the mean over the draws), `low` and
        `high` (least and greatest draw), `draws`.

    Raises:
        PortfolioError: If a number is below 1, or the oracle fails.
    """
    if max_size < 1 or num_seeds < 1:
        raise PortfolioError(f"max_size={max_size} and num_seeds={num_seeds} must be at least 1.")
    against = portfolio.upper_bound if reference is None else reference
    num_rewards = portfolio.values.shape[1]
    answered: dict[bytes, OracleResult] = {}

    def worst(weights: FloatArray) -> float:
        for row in weights:
            if row.tobytes() not in answered:
                answered[row.tobytes()] = checked_result(oracle(row.copy()), num_rewards, f"w = {row}", portfolio.beta)
        results = [answered[row.tobytes()] for row in weights]
        return _gap(portfolio, np.array([r.values for r in results]), np.array([r.kl for r in results]), against)

    rows = []
    values = np.array([call.result.values for call in portfolio.calls])
    kl = np.array([call.result.kl for call in portfolio.calls])
    pruner = Pruner(values, portfolio.beta * kl, portfolio.upper_bound, portfolio.measure)
    for size in range(1, max_size + 1):
        best = pruner.best(size).members
        rows.append(_row("PALM", size, portfolio.oracle_calls, [_gap(portfolio, values[best], kl[best], against)]))
        grid = uniform_weights(num_rewards, size)
        drawn = [grid]
        if len(grid) > size:
            drawn = [grid[np.random.default_rng(s).choice(len(grid), size, replace=False)] for s in range(num_seeds)]
        rows.append(_row("uniform", size, size, [worst(weights) for weights in drawn]))
        rows.append(_row("random", size, size, [worst(random_weights(num_rewards, size, s)) for s in range(num_seeds)]))
    return rows


def comparison_table(rows: list[dict[str, Any]], measure: Measure) -> str:
    """The rows of [`compare_sizes`] as a Markdown table: mean gap, and the range over the draws."""
    lines = [
        ["members", *(f"{method}: {measure.name}" for method in METHODS), "oracle calls: " + ", ".join(METHODS)],
        ["---:"] * (len(METHODS) + 2),
    ]
    for size in sorted({row["size"] for row in rows}):
        cells = [next(row for row in rows if row["size"] == size and row["method"] == method) for method in METHODS]
        gaps = [
            f"{cell['gap']:.4f}" + (f" [{cell['low']:.4f}, {cell['high']:.4f}]" if cell["draws"] > 1 else "") for cell in cells
        ]
        lines.append([str(size), *gaps, ", ".join(str(cell["calls"]) for cell in cells)])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _gap(portfolio: Portfolio, values: FloatArray, kl: FloatArray, reference: Reference) -> float:
    certificate = certify(values, reference, kl=kl, beta=portfolio.beta, delta=portfolio.delta)
    return certificate.gap(portfolio.measure)


def _row(method: str, size: int, calls: int, gaps: list[float]) -> dict[str, Any]:
    low, high = float(np.min(gaps)), float(np.max(gaps))
    return {
        "method": method,
        "size": size,
        "calls": calls,
        "gap": float(np.mean(gaps)),
        "low": low,
        "high": high,
        "draws": len(gaps),
    }
