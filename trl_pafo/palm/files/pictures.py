"""Pictures of a portfolio: the weight simplex with its cells, the gap over it, gap against size, usage."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from trl_pafo.data.labels import normalize_labels
from trl_pafo.errors import PortfolioError
from trl_pafo.metrics.plotting import COLORS, GROUP_COLORS, MARKERS, MUTED, PAPER, TEXT, add_axes, new_figure, short
from trl_pafo.palm.baselines import METHODS
from trl_pafo.palm.core import FloatArray
from trl_pafo.palm.portfolio import Portfolio
from trl_pafo.palm.solver.bounds import best_values
from trl_pafo.palm.solver.regions import WeightRegion
from trl_pafo.palm.solver.simplex import random_weights
from trl_pafo.palm.users.serving import Service

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (6.4, 4.6)
_DPI = 190  # 1,216 pixels wide
_FONT = 10
_HEIGHT = float(np.sqrt(3) / 2)
# Corners of the triangle: the first reward at the left, the second at the right, the third on top.
_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, _HEIGHT]])
# Black would hide what is drawn on a cell.
_MEMBER_COLORS = tuple(color for color in COLORS if color != "#000000")
_STEPS = 160
_SAMPLES = 20_000


def draw_cells(portfolio: Portfolio, weights: ArrayLike | None = None, groups: Sequence[str] | None = None) -> "Figure":
    """Which member serves which weights: a triangle for 3 rewards, for 2 what every member earns along the line.

    Users with these weights, of shape `(num_users, num_rewards)`, are points, their groups told apart by marker. More than 3
    rewards, or users that cannot be used, raise [`PortfolioError`].
    """
    num_rewards = portfolio.values.shape[1]
    if num_rewards > 3:
        raise PortfolioError(f"Cells can be drawn for 2 or 3 rewards, not for {num_rewards}; draw_gap works for any number.")
    users = np.zeros((0, num_rewards)) if weights is None else np.asarray(weights, dtype=np.float64)
    portfolio.choose_many(users)  # checks them
    figure = new_figure(*_SIZE, dpi=_DPI)
    axes = (_draw_lines if num_rewards == 2 else _draw_triangle)(figure, portfolio)
    bottom = axes.get_ylim()[0]
    places = users @ _CORNERS if num_rewards == 3 else np.column_stack([users[:, 1], np.full(len(users), bottom)])
    _draw_users(axes, places, groups)
    _legend(figure)
    _title(axes, f"{len(portfolio)} members and the weights that they serve", portfolio)
    return figure


def draw_gap(portfolio: Portfolio) -> "Figure":
    """Gap to the upper bound at each weight: a line for 2 rewards, a map for 3, for more the share of weights below each gap."""
    num_rewards = portfolio.values.shape[1]
    figure = new_figure(*_SIZE, dpi=_DPI)
    if num_rewards == 3:
        axes = _draw_gap_map(figure, portfolio)
    else:
        if num_rewards == 2:
            x = np.linspace(0, 1, 2001)
            y = _gaps(portfolio, np.column_stack([1 - x, x]))
            label = f"weight of {short(portfolio.reward_names[1])}"
        else:
            x = np.linspace(0, 1, _SAMPLES)
            y = np.sort(_gaps(portfolio, random_weights(num_rewards, _SAMPLES)))
            label = f"share of {_SAMPLES:,} weights drawn evenly from the simplex"
        axes = add_axes(figure, label, portfolio.measure.name)
        axes.plot(x, y, color=COLORS[0], linewidth=1.6)
        certified = f"certified over all weights: {portfolio.gap:.4f}"
        axes.axhline(portfolio.gap, color=COLORS[1], linestyle=(0, (5, 3)), linewidth=1.3, label=certified)
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
    _legend(figure)
    _title(axes, f"Gap to the {portfolio.upper_bound.name}", portfolio)
    return figure


def draw_sizes(rows: Sequence[dict[str, Any]], measure: str) -> "Figure":
    """Worst gap, by the name of its measure, against the number of members, with the range over draws; rows are from
    [`compare_sizes`].
    """
    figure = new_figure(*_SIZE, dpi=_DPI)
    axes = add_axes(figure, "members", f"worst {measure} over all weights")
    shown = [row for row in rows if np.isfinite(row["gap"])]
    for place, method in enumerate(METHODS):
        mine = [row for row in shown if row["method"] == method]
        sizes = [row["size"] for row in mine]
        color = COLORS[place]
        axes.fill_between(sizes, [r["low"] for r in mine], [r["high"] for r in mine], color=color, alpha=0.15, linewidth=0)
        axes.plot(sizes, [r["gap"] for r in mine], color=color, marker=MARKERS[place], markersize=5, linewidth=1.5, label=method)
    if min(row["low"] for row in shown) > 0:
        axes.set_yscale("log")
    axes.set_xticks(sorted({row["size"] for row in shown}))
    _legend(figure)
    _title(axes, f"Gap against size (bands: least to greatest of {max(row['draws'] for row in rows)} draws)")
    return figure


def draw_usage(service: Service) -> "Figure":
    """Share of the users that each member serves, by group where there are groups, with perplexity."""
    num_members = len(service.portfolio)
    groups = [] if service.groups is None else sorted(service.by_group(num_resamples=1), key=lambda group: -group.users)
    bars = [(short(g.name), g.usage, g.perplexity) for g in groups] or [("all users", service.usage, service.perplexity)]
    figure = new_figure(*_SIZE, dpi=_DPI)
    axes = add_axes(figure, "member", "share of the users")
    width = 0.8 / len(bars)
    for place, (name, usage, perplexity) in enumerate(bars):
        at = np.arange(num_members) + (place - (len(bars) - 1) / 2) * width
        label = f"{name} (perplexity {perplexity:.2f})"
        axes.bar(at, usage, width * 0.92, color=GROUP_COLORS[place % len(GROUP_COLORS)], label=label)
    axes.axhline(1 / num_members, color=MUTED, linestyle=(0, (5, 4)), linewidth=1.0, label="even use")
    axes.set_xlim(-0.6, num_members - 0.4)
    axes.set_xticks(range(num_members)[:: max(1, num_members // 20)])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    _title(axes, f"{len(service.members):,} users on {num_members} members: perplexity {service.perplexity:.2f}")
    _legend(figure)
    return figure


def _draw_lines(figure: "Figure", portfolio: Portfolio) -> "Axes":
    names = [short(name) for name in portfolio.reward_names]
    axes = add_axes(figure, f"weight of {names[1]} (the rest: {names[0]})", portfolio.objective)
    share = np.linspace(0, 1, 501)
    weights = np.column_stack([1 - share, share])
    chosen, earned = portfolio.choose_many(weights), weights @ portfolio.values.T - portfolio.beta * portfolio.kl
    for place in range(len(portfolio)):
        color = _MEMBER_COLORS[place % len(_MEMBER_COLORS)]
        axes.plot(share, earned[:, place], color=color, linewidth=0.8, alpha=0.5)
        axes.plot(share, np.where(chosen == place, earned[:, place], np.nan), color=color, linewidth=2.2, label=f"member {place}")
    upper = portfolio.upper_bound.at(weights)
    axes.plot(share, upper, color=TEXT, linestyle=(0, (2, 2)), linewidth=1.2, label="upper bound")
    best = float(earned.max(axis=1).min())
    axes.set_xlim(0, 1)
    axes.set_ylim(best - 0.25 * (float(upper.max()) - best + 1e-9), None)
    return axes


def _draw_triangle(figure: "Figure", portfolio: Portfolio) -> "Axes":
    from matplotlib.patches import Polygon

    axes = _triangle(figure, portfolio)
    cells = WeightRegion.simplex(3).cells(portfolio.values, portfolio.beta * portfolio.kl)
    for place, cell in enumerate(cells):
        if cell is None or len(cell.points) < 3:
            continue
        corners = cell.points @ _CORNERS
        from_middle = corners - corners.mean(axis=0)
        order = np.argsort(np.arctan2(from_middle[:, 1], from_middle[:, 0]))
        color = _MEMBER_COLORS[place % len(_MEMBER_COLORS)]
        axes.add_patch(Polygon(corners[order], facecolor=color, edgecolor=PAPER, alpha=0.5, linewidth=1.6))
        x, y = corners.mean(axis=0)
        axes.text(x, y, str(place), fontsize=_FONT, color=TEXT, ha="center", va="center", zorder=5)
    return axes


def _draw_gap_map(figure: "Figure", portfolio: Portfolio) -> "Axes":
    from matplotlib.tri import Triangulation

    axes = _triangle(figure, portfolio)
    i, j = np.array([(i, j) for i in range(_STEPS + 1) for j in range(_STEPS + 1 - i)]).T
    weights = np.column_stack([_STEPS - i - j, i, j]) / _STEPS
    triangles = Triangulation(*(weights @ _CORNERS).T)
    drawn = axes.tripcolor(triangles, _gaps(portfolio, weights), shading="gouraud", cmap="viridis", vmin=0, rasterized=True)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02)
    bar.set_label(portfolio.measure.name, fontsize=_FONT, color=TEXT)
    certificate = portfolio.certificate
    worst = certificate.relative_weights if portfolio.measure.relative else certificate.additive_weights
    label = f"certified worst: {portfolio.gap:.4f} at ({', '.join(f'{w:.2f}' for w in worst)})"
    at = worst @ _CORNERS
    axes.plot(*at, "o", color=COLORS[1], markeredgecolor=PAPER, markersize=8, label=label, clip_on=False, linestyle="none")
    return axes


def _triangle(figure: "Figure", portfolio: Portfolio) -> "Axes":
    """The simplex of three weights, without axes."""
    axes = figure.add_subplot()
    axes.set_aspect("equal")
    axes.set_axis_off()
    closed = np.vstack([_CORNERS, _CORNERS[:1]])
    axes.plot(closed[:, 0], closed[:, 1], color=MUTED, linewidth=1.0)
    for name, (x, y), below in zip(portfolio.reward_names, _CORNERS, (True, True, False), strict=True):
        at, side = (y - 0.02, "top") if below else (y + 0.02, "bottom")
        axes.text(x, at, f"{short(name)} alone", fontsize=_FONT, color=TEXT, ha="center", va=side, parse_math=False)
    axes.set_xlim(-0.12, 1.12)
    axes.set_ylim(-0.08, _HEIGHT + 0.08)
    return axes


def _draw_users(axes: "Axes", at: FloatArray, groups: Sequence[str] | None) -> None:
    names = np.array(["users"] * len(at) if groups is None else normalize_labels(groups, "group", "The users"))
    if len(names) != len(at):
        raise PortfolioError(f"There are {len(at)} users and {len(names)} groups: give one group per user.")
    for place, name in enumerate(dict.fromkeys(names)):
        mine = at[names == name]
        look: dict[str, Any] = {
            "markersize": 4,
            "color": TEXT,
            "markeredgecolor": PAPER,
            "markeredgewidth": 0.5,
            "clip_on": False,
        }
        axes.plot(*mine.T, MARKERS[place % len(MARKERS)], linestyle="none", label=short(str(name)), **look)


def _gaps(portfolio: Portfolio, weights: FloatArray) -> FloatArray:
    lower = best_values(weights, portfolio.values, portfolio.beta * portfolio.kl)
    return portfolio.measure.gaps(portfolio.upper_bound.at(weights), lower)


def _title(axes: "Axes", text: str, portfolio: Portfolio | None = None) -> None:
    if portfolio is not None:
        text += f"\nobjective {portfolio.objective}, certified {portfolio.measure.name} {portfolio.gap:.4f}"
    axes.set_title(text, fontsize=_FONT + 1, color=TEXT, wrap=True)


def _legend(figure: "Figure") -> None:
    if any(axes.get_legend_handles_labels()[1] for axes in figure.axes):
        figure.legend(loc="outside lower center", ncols=4, fontsize=_FONT - 1, frameon=False, labelcolor=TEXT)
