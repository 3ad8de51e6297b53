"""Oracle calls, size and worst case of PALM against uniform and random weights: the figures of `docs/portfolio.md`.

python benchmarks/portfolio_calls.py [--seeds 10] [--picture docs/images/portfolio_calls.png]

Every optimum here is known in closed form, so gaps are true ones, over the whole simplex, unless they are called
certified. An oracle call costs nothing here; with GRPO it is a training run.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trl_pafo.palm import (
    OracleResult,
    Portfolio,
    UpperBound,
    build_portfolio,
    certify,
    grid_size,
    random_weights,
    uniform_weights,
)


@dataclass(frozen=True)
class Front:
    """The part of an ellipsoid with no negative values: V*(w) = |axes * w|, reached at axes^2 w / V*(w)."""

    axes: np.ndarray

    def values(self, weights: np.ndarray) -> np.ndarray:
        return self.axes**2 * weights / self.optimum(weights)[..., None]

    def optimum(self, weights: np.ndarray) -> np.ndarray:
        return np.linalg.norm(self.axes * weights, axis=-1)

    def __call__(self, weights: np.ndarray) -> OracleResult:
        return OracleResult(self.values(weights))

    def gap(self, weights: np.ndarray) -> float:
        """True relative gap of the policies that are the best for these weights."""
        return certify(self.values(weights), self.optimum).relative_gap


def ellipsoid(num_rewards: int, seed: int) -> Front:
    """Rewards whose best values differ by up to a factor of 5."""
    return Front(np.random.default_rng(seed).uniform(0.2, 1.0, num_rewards))


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def sphere_table() -> str:
    """Calls on the quarter sphere, for the tolerances of the documentation."""
    cases: list[tuple[int, float, float, dict]] = [
        (2, 0.015, 0.0, {}),
        (3, 0.05, 0.0, {}),
        (3, 0.05, 0.0, {"pruning_share": 0.3}),
        (3, 0.05, 0.0, {"pruning_share": 0.5}),
        (4, 0.1, 0.0, {}),
        (5, 0.1, 0.0, {}),
        (2, 0.05, 0.05, {}),
        (2, 0.05, 0.05, {"search": "grid"}),
        (3, 0.05, 0.05, {}),
        (3, 0.05, 0.05, {"search": "grid"}),
    ]
    rows = []
    for num_rewards, epsilon, delta, options in cases:
        front = Front(np.ones(num_rewards))
        start = time.perf_counter()
        portfolio = build_portfolio(front, num_rewards, epsilon, delta, progress=False, **options)
        seconds = time.perf_counter() - start
        grid = f"{grid_size(num_rewards, epsilon, delta):,}" if delta else "-"
        share = options.get("pruning_share")
        kind = options.get("search", "corners") + (f", {share:.0%} for pruning" if share else "")
        true = certify(portfolio.values, front.optimum, delta=delta).relative_gap
        rows.append(
            [
                str(num_rewards),
                f"{epsilon:g}",
                f"{delta:g}",
                kind,
                grid,
                str(portfolio.oracle_calls),
                f"{len(portfolio)}{'' if portfolio.smallest else ' (greedy)'}",
                f"{portfolio.gap:.4f}",
                f"{true:.4f}",
                f"{seconds:.1f}",
            ]
        )
    head = ["rewards", "epsilon", "delta", "search", "grid points", "calls", "members", "certified gap", "true gap", "s"]
    return table(head, rows)


def calls_needed(front: Front, draw_weights: Callable[[int], np.ndarray], goal: float, most: int = 1500) -> str:
    """The least number of weights whose best policies keep `goal`; in steps of a tenth beyond 50."""
    size = 2
    while size <= most:
        weights = draw_weights(size)
        if front.gap(weights) <= goal:
            return str(len(weights))
        size = max(size, len(weights)) + (max(1, size // 10) if size >= 50 else 1)
    return f"> {most}"


def baseline_table(num_seeds: int) -> str:
    """PALM, uniform and random weights on ellipsoids, the mean over seeds (and the worst)."""
    rows = []
    for num_rewards, epsilon in [(2, 0.02), (3, 0.05), (4, 0.1)]:
        sizes, calls, palm, even, drawn, need_even, need_drawn = [], [], [], [], [], [], []
        for seed in range(num_seeds):
            front = ellipsoid(num_rewards, seed)
            portfolio = build_portfolio(front, num_rewards, epsilon, progress=False)
            size = len(portfolio)
            sizes.append(size)
            calls.append(portfolio.oracle_calls)
            palm.append(certify(portfolio.values, front.optimum).relative_gap)
            even.append(front.gap(uniform_weights(num_rewards, size)))
            drawn.append(front.gap(random_weights(num_rewards, size, seed)))
            need_even.append(calls_needed(front, lambda n, d=num_rewards: uniform_weights(d, n), epsilon))
            need_drawn.append(calls_needed(front, lambda n, d=num_rewards, s=seed: random_weights(d, n, s), epsilon))
        rows.append(
            [
                f"{num_rewards}, {epsilon:g}",
                f"{np.mean(sizes):.1f}",
                f"{np.mean(calls):.1f}",
                *(f"{np.mean(gaps):.3f} ({np.max(gaps):.3f})" for gaps in (palm, even, drawn)),
                median(need_even),
                median(need_drawn),
            ]
        )
    head = [
        "rewards, epsilon",
        "members",
        "calls",
        "gap: PALM",
        "gap: uniform",
        "gap: random",
        "calls to keep epsilon: uniform",
        "random",
    ]
    return table(head, rows)


def median(counts: list[str]) -> str:
    """The middle of counts of which some are only known to be greater."""
    return sorted(counts, key=lambda count: (count.startswith(">"), int(count.split()[-1])))[len(counts) // 2]


def curves(num_seeds: int, num_rewards: int = 3, epsilon: float = 0.03, most: int = 21) -> dict[str, np.ndarray]:
    """Gap for each size and for each number of calls, of shape `(num_seeds, most)`; nothing below `num_rewards` calls."""
    names = ("PALM", "PALM, certified", "uniform weights", "random weights", "calls", "calls, certified")
    found = {name: np.full((num_seeds, most), np.nan) for name in names}
    for seed in range(num_seeds):
        front = ellipsoid(num_rewards, seed)
        portfolio = build_portfolio(front, num_rewards, epsilon, progress=False)
        known = [(call.weights, call.result) for call in portfolio.calls]
        weights = np.array([call.weights for call in portfolio.calls])
        for size in range(1, most + 1):
            best: Portfolio = build_portfolio(
                front, num_rewards, epsilon, warm_start=known, num_members=size, max_calls=0, progress=False
            )
            found["PALM"][seed, size - 1] = certify(best.values, front.optimum).relative_gap
            found["PALM, certified"][seed, size - 1] = best.gap
            if len(uniform_weights(num_rewards, size)) == size:
                found["uniform weights"][seed, size - 1] = front.gap(uniform_weights(num_rewards, size))
            found["random weights"][seed, size - 1] = front.gap(random_weights(num_rewards, size, seed))
            if num_rewards <= size <= len(weights):
                bound = UpperBound(weights[:size], front.optimum(weights[:size]))
                found["calls"][seed, size - 1] = front.gap(weights[:size])
                found["calls, certified"][seed, size - 1] = certify(front.values(weights[:size]), bound).relative_gap
    return found


def draw(found: dict[str, np.ndarray], path: Path) -> None:
    """The two panels: gap against size, and gap against calls."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (by_size, by_calls) = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    styles = {
        "PALM": ("tab:blue", "-", "o"),
        "PALM, certified": ("tab:blue", "--", None),
        "uniform weights": ("tab:orange", "-", "s"),
        "random weights": ("tab:gray", "-", "^"),
    }

    def line(panel: Any, gaps: np.ndarray, name: str) -> None:
        color, style, marker = styles[name]
        sizes = np.flatnonzero(~np.isnan(gaps).all(axis=0))
        middle = np.nanmean(gaps[:, sizes], axis=0)
        panel.plot(sizes + 1, middle, style, color=color, marker=marker, markersize=4, label=name)
        if style == "-":
            low, high = np.nanmin(gaps[:, sizes], axis=0), np.nanmax(gaps[:, sizes], axis=0)
            panel.fill_between(sizes + 1, low, high, color=color, alpha=0.15, linewidth=0)

    for name in ("random weights", "uniform weights", "PALM", "PALM, certified"):
        line(by_size, found[name], name)
    line(by_calls, found["random weights"], "random weights")
    line(by_calls, found["uniform weights"], "uniform weights")
    line(by_calls, found["calls"], "PALM")
    line(by_calls, found["calls, certified"], "PALM, certified")
    by_size.set(xlabel="members, best choice of so many", ylabel="worst relative gap over all weights", title="Size")
    by_calls.set(xlabel="oracle calls, all policies kept", title="Calls")
    for panel in (by_size, by_calls):
        panel.set(yscale="log", xticks=range(2, 22, 2), ylim=(0.02, 1.1))
        panel.set_yticks([0.02, 0.05, 0.1, 0.2, 0.5, 1], ["2 %", "5 %", "10 %", "20 %", "50 %", "100 %"])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    by_calls.legend(frameon=False)
    figure.suptitle(f"Ellipsoid fronts with 3 rewards: mean and range over {len(found['PALM'])}", fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="fronts, and draws of random weights (default: 10)")
    parser.add_argument("--picture", type=Path, default=Path("docs/images/portfolio_calls.png"), help="where to draw")
    options = parser.parse_args()
    print("On the quarter sphere:\n", flush=True)
    print(sphere_table(), flush=True)
    print(f"\nOn {options.seeds} ellipsoids, mean (and worst) over them:\n", flush=True)
    print(baseline_table(options.seeds), flush=True)
    draw(curves(options.seeds), options.picture)
    print(f"\n{options.picture}")


if __name__ == "__main__":
    main()
