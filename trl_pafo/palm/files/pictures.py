"""Pictures of a portfolio: the weight simplex with its cells, the gap over it, gap against size, usage."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from trl_pafo.data.labels import normalize_labels
from trl_pafo.errors import PortfolioError
from trl_pafo.palm.baselines import METHODS
from trl_pafo.palm.core import FloatArray
from trl_pafo.palm.portfolio import Portfolio
from trl_pafo.palm.solver.bounds import Reference, best_values
from trl_pafo.palm.solver.regions import WeightRegion
from trl_pafo.palm.solver.simplex import random_weights
from trl_pafo.palm.users.serving import Service
from trl_pafo.plotting import COLORS, GRID, GROUP_COLORS, MARKERS, MUTED, PAPER, TEXT, new_figure, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (6.4, 4.6)
_DPI = 190  # 1,216 pixels wide
_FONT = 10
_HEIGHT = float(np.sqrt(3) / 2)
# Corners of the triangle: the first reward at the left, the second at the right, the third on top.
_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, _HEIGHT]])
# Members have no markers, and black would hide what is drawn on a cell.
_CELL_COLORS = tuple(color for color in COLORS if color != "#000000")
_STEPS = 160
_SAMPLES = 20_000


def draw_cells(portfolio: Portfolio, weights: ArrayLike | None = None, groups: Sequence[str] | None = None) -> "Figure":
    """Which member serves which weights: a triangle for 3 rewards, for 2 what every member earns along the line.

    Args:
        portfolio ([`Portfolio`]):
            With 2 or 3 rewards.
        weights (array of shape `(num_users, num_rewards)`, *optional*):
            Users, drawn as points.
        groups (`Sequence[str]`, *optional*):
            Their groups, told apart by color and marker.

    Raises:
        PortfolioError: If there are more than 3 rewards.
    """
    num_rewards = _few_rewards(portfolio)
    users = None if weights is None else np.asarray(weights, dtype=np.float64)
    if users is not None:
        portfolio.choose_many(users)  # checks them
    figure = new_figure(*_SIZE, dpi=_DPI)
    axes = figure.add_subplot()
    cells = WeightRegion.simplex(num_rewards).cells(portfolio.values, portfolio.beta * portfolio.kl)
    colors = _colors(cells, num_rewards)
    if num_rewards == 2:
        _draw_lines(axes, portfolio, cells, colors, users, groups)
    else:
        _draw_triangle(axes, portfolio, cells, colors, marks=users is None)
        if users is not None:
            _draw_users(axes, users @ _CORNERS, groups)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=4, fontsize=_FONT - 1, frameon=False, labelcolor=TEXT)
    axes.set_title(_title(f"{len(portfolio)} members and the weights that they serve", portfolio), fontsize=_FONT + 1, color=TEXT)
    return figure


def draw_gap(portfolio: Portfolio, reference: Reference | None = None) -> "Figure":
    """How much is missed at each weight: a line for 2 rewards, a map for 3, for more the share of weights below each gap.

    Args:
        portfolio ([`Portfolio`]):
            The portfolio.
        reference ([`Reference`], *optional*):
            What it is held against; by default its upper bound of the optimum, so that the certified gap is the greatest.
    """
    against = portfolio.upper_bound if reference is None else reference
    num_rewards = portfolio.values.shape[1]
    figure = new_figure(*_SIZE, dpi=_DPI)
    axes = figure.add_subplot()
    worst = portfolio.certificate.relative_weights if portfolio.measure.relative else portfolio.certificate.additive_weights
    own = reference is None
    if num_rewards == 3:
        _draw_gap_map(figure, axes, portfolio, against, worst if own else None)
    else:
        if num_rewards == 2:
            share = np.linspace(0, 1, 2001)
            x, y = share, _gaps(portfolio, np.column_stack([1 - share, share]), against)
            axes.set_xlabel(f"weight of {short(portfolio.reward_names[1])}", fontsize=_FONT, color=TEXT)
            axes.fill_between(x, y, color=COLORS[0], alpha=0.15, linewidth=0)
        else:
            y = np.sort(_gaps(portfolio, random_weights(num_rewards, _SAMPLES), against))
            x = np.linspace(0, 1, _SAMPLES)
            axes.set_xlabel(f"share of {_SAMPLES:,} weights drawn evenly from the simplex", fontsize=_FONT, color=TEXT)
        axes.plot(x, y, color=COLORS[0], linewidth=1.6)
        axes.set_ylabel(portfolio.measure.name, fontsize=_FONT, color=TEXT)
        if own:
            axes.axhline(portfolio.gap, color=COLORS[1], linestyle=(0, (5, 3)), linewidth=1.3)
            text = f"certified over all weights: {portfolio.gap:.4f}"
            axes.text(0.01, portfolio.gap, text, fontsize=_FONT - 1, color=COLORS[1], va="bottom")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, max(float(y.max()), portfolio.gap if own else 0.0) * 1.15 + 1e-9)
        _frame(axes)
    axes.set_title(_title(f"Gap to the {against.name}", portfolio), fontsize=_FONT + 1, color=TEXT, wrap=True)
    return figure


def draw_sizes(rows: Sequence[dict[str, Any]], measure: str) -> "Figure":
    """Worst gap against the number of members, with the range over draws.

    Args:
        rows (`Sequence[dict]`):
            From [`compare_sizes`].
        measure (`str`):
            Name of the gap.
    """
    figure = new_figure(*_SIZE, dpi=_DPI)
    axes = figure.add_subplot()
    shown = [row for row in rows if np.isfinite(row["gap"])]
    for place, method in enumerate(METHODS):
        mine = [row for row in shown if row["method"] == method]
        sizes = [row["size"] for row in mine]
        color = COLORS[place]
        axes.fill_between(sizes, [r["low"] for r in mine], [r["high"] for r in mine], color=color, alpha=0.15, linewidth=0)
        axes.plot(sizes, [r["gap"] for r in mine], color=color, marker=MARKERS[place], markersize=5, linewidth=1.5, label=method)
    positive = [row["low"] for row in shown if row["low"] > 0]
    if positive and max(row["high"] for row in shown) > 8 * min(positive):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
        axes.tick_params(which="minor", labelsize=_FONT - 1, colors=TEXT)
    else:
        axes.set_ylim(bottom=0)
    axes.set_xticks(sorted({row["size"] for row in shown}))
    axes.set_xlabel("members", fontsize=_FONT, color=TEXT)
    axes.set_ylabel(f"worst {measure} over all weights", fontsize=_FONT, color=TEXT)
    draws = max(row["draws"] for row in rows)
    axes.set_title(f"Gap against size (bands: least to greatest of {draws} draws)", fontsize=_FONT + 1, color=TEXT)
    axes.legend(loc="upper right", fontsize=_FONT, frameon=False, labelcolor=TEXT)
    _frame(axes)
    return figure


def draw_usage(service: Service) -> "Figure":
    """Share of the users that each member serves, by group where there are groups, with entropy and perplexity."""
    num_members = len(service.portfolio)
    groups = [] if service.groups is None else sorted(service.by_group(num_resamples=1), key=lambda group: -group.users)
    bars = [(short(g.name), g.usage, g.perplexity) for g in groups] or [("all users", service.usage, service.perplexity)]
    figure = new_figure(*_SIZE, dpi=_DPI)
    axes = figure.add_subplot()
    width = 0.8 / len(bars)
    for place, (name, usage, perplexity) in enumerate(bars):
        at = np.arange(num_members) + (place - (len(bars) - 1) / 2) * width
        label = f"{name} (perplexity {perplexity:.2f})"
        axes.bar(at, usage, width * 0.92, color=GROUP_COLORS[place % len(GROUP_COLORS)], label=label)
    axes.axhline(1 / num_members, color=MUTED, linestyle=(0, (5, 4)), linewidth=1.0)
    axes.text(num_members - 0.42, 1 / num_members, " even use", fontsize=_FONT - 1, color=MUTED, va="center")
    axes.set_xlim(-0.6, num_members - 0.4)
    axes.set_xticks(range(num_members)[:: max(1, num_members // 20)])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("member", fontsize=_FONT, color=TEXT)
    axes.set_ylabel("share of the users", fontsize=_FONT, color=TEXT)
    title = (
        f"{len(service.members):,} users on {num_members} members: entropy {service.entropy:.2f} nats, "
        f"perplexity {service.perplexity:.2f}"
    )
    axes.set_title(title, fontsize=_FONT + 1, color=TEXT)
    figure.legend(loc="outside lower center", ncols=2, fontsize=_FONT - 1, frameon=False, labelcolor=TEXT)
    _frame(axes)
    return figure


def _draw_lines(
    axes: "Axes",
    portfolio: Portfolio,
    cells: "list[WeightRegion | None]",
    colors: list[str],
    users: FloatArray | None,
    groups: Sequence[str] | None,
) -> None:
    share = np.linspace(0, 1, 501)
    weights = np.column_stack([1 - share, share])
    earned = weights @ portfolio.values.T - portfolio.beta * portfolio.kl
    for place in range(len(portfolio)):
        axes.plot(share, earned[:, place], color=colors[place], linewidth=0.8, alpha=0.45)
    best = best_values(weights, portfolio.values, portfolio.beta * portfolio.kl)
    axes.plot(share, portfolio.upper_bound.at(weights), color=TEXT, linestyle=(0, (2, 2)), linewidth=1.2, label="upper bound")
    bottom = float(best.min()) - 0.25 * (float(portfolio.upper_bound.at(weights).max()) - float(best.min()) + 1e-9)
    for place, cell in enumerate(cells):
        if cell is None or np.ptp(cell.points[:, 1]) == 0:
            continue
        left, right = cell.points[:, 1].min(), cell.points[:, 1].max()
        inside = np.linspace(left, right, 50)
        height = np.column_stack([1 - inside, inside]) @ portfolio.values[place] - portfolio.beta * portfolio.kl[place]
        axes.fill_between(inside, bottom, height, color=colors[place], alpha=0.22, linewidth=0)
        axes.plot(inside, height, color=colors[place], linewidth=2.2)
        if right - left > 0.02:
            middle = float(height[25] + bottom) / 2
            _number(axes, ((left + right) / 2, middle), place, _FONT)
    if users is not None:
        at = np.column_stack([users[:, 1], np.full(len(users), bottom)])
        at[:, 1] += 0.05 * (float(best.max()) - bottom)
        _draw_users(axes, at, groups)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom, None)
    axes.set_xlabel(f"weight of {short(portfolio.reward_names[1])} (the rest: {short(portfolio.reward_names[0])})", color=TEXT)
    axes.set_ylabel(portfolio.objective, fontsize=_FONT, color=TEXT)
    _frame(axes)


def _draw_triangle(
    axes: "Axes", portfolio: Portfolio, cells: "list[WeightRegion | None]", colors: list[str], marks: bool
) -> None:
    from matplotlib.patches import Polygon

    for place, cell in enumerate(cells):
        if cell is None or len(cell.points) < 3:
            continue
        corners = cell.points @ _CORNERS
        middle = corners.mean(axis=0)
        order = np.argsort(np.arctan2(corners[:, 1] - middle[1], corners[:, 0] - middle[0]))
        # Few colors, many members: neighbors are told apart by the white edges and the numbers.
        axes.add_patch(Polygon(corners[order], facecolor=colors[place], alpha=0.42, linewidth=0))
        axes.add_patch(Polygon(corners[order], fill=False, edgecolor=PAPER, linewidth=1.6))
        size = float(np.ptp(corners, axis=0).min())
        if size > 0.035:
            # Beside the mark of the weights asked, which often are in the middle of the cell.
            near = marks and float(np.linalg.norm(portfolio.weights[place] @ _CORNERS - middle)) < 0.04
            _number(axes, middle, place, _FONT if size > 0.08 else _FONT - 3, 8 if near else 0)
    known = ~np.isnan(portfolio.weights).any(axis=1)
    if marks and known.any():
        own = portfolio.weights[known] @ _CORNERS
        label = "weights asked of the oracle"
        axes.plot(own[:, 0], own[:, 1], "x", color=TEXT, markersize=4, markeredgewidth=1.0, label=label, clip_on=False)
    _triangle_frame(axes, portfolio)


def _draw_gap_map(figure: "Figure", axes: "Axes", portfolio: Portfolio, reference: Reference, worst: FloatArray | None) -> None:
    from matplotlib.tri import Triangulation

    i, j = np.array([(i, j) for i in range(_STEPS + 1) for j in range(_STEPS + 1 - i)]).T
    weights = np.column_stack([_STEPS - i - j, i, j]) / _STEPS
    points = weights @ _CORNERS
    gaps = _gaps(portfolio, weights, reference)
    drawn = axes.tripcolor(Triangulation(*points.T), gaps, shading="gouraud", cmap="viridis", vmin=0, rasterized=True)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02)
    bar.set_label(portfolio.measure.name, fontsize=_FONT, color=TEXT)
    bar.ax.tick_params(labelsize=_FONT - 1, colors=TEXT)
    bar.outline.set_visible(False)  # type: ignore[operator]
    if worst is not None:
        at = worst @ _CORNERS
        label = f"certified worst: {portfolio.gap:.4f} at ({', '.join(f'{w:.2f}' for w in worst)})"
        axes.plot(*at, "o", color=COLORS[1], markeredgecolor=PAPER, markersize=8, label=label, clip_on=False, linestyle="none")
        figure.legend(loc="outside lower center", fontsize=_FONT - 1, frameon=False, labelcolor=TEXT)
    _triangle_frame(axes, portfolio)


def _triangle_frame(axes: "Axes", portfolio: Portfolio) -> None:
    axes.set_aspect("equal")
    axes.set_axis_off()
    closed = np.vstack([_CORNERS, _CORNERS[:1]])
    axes.plot(closed[:, 0], closed[:, 1], color=MUTED, linewidth=1.0)
    places = [("center", "top", (0, -6)), ("center", "top", (0, -6)), ("center", "bottom", (0, 5))]
    for name, corner, (horizontal, vertical, shift) in zip(portfolio.reward_names, _CORNERS, places, strict=True):
        axes.annotate(
            f"{short(name)} alone",
            corner,
            shift,
            textcoords="offset points",
            fontsize=_FONT,
            color=TEXT,
            ha=horizontal,
            va=vertical,
            parse_math=False,
        )
    axes.set_xlim(-0.12, 1.12)
    axes.set_ylim(-0.08, _HEIGHT + 0.08)


def _number(axes: "Axes", at: Any, place: int, size: float, shift: float = 0.0) -> None:
    """The number of a member, on a white rim, so that it is read among users too."""
    from matplotlib.patheffects import withStroke

    text = axes.annotate(
        str(place), at, (0, shift), textcoords="offset points", fontsize=size, color=TEXT, ha="center", va="center", zorder=5
    )
    text.set_path_effects([withStroke(linewidth=2.5, foreground=PAPER)])


def _draw_users(axes: "Axes", at: FloatArray, groups: Sequence[str] | None) -> None:
    names = np.array(["users"] * len(at) if groups is None else normalize_labels(groups, "group", "The users"))
    if len(names) != len(at):
        raise PortfolioError(f"There are {len(at)} users and {len(names)} groups: give one group a user.")
    for place, name in enumerate(dict.fromkeys(names)):
        mine = at[names == name]
        color, marker = (TEXT, "o") if groups is None else (GROUP_COLORS[(place + 4) % 7], MARKERS[place % len(MARKERS)])
        axes.plot(
            mine[:, 0],
            mine[:, 1],
            linestyle="none",
            marker=marker,
            markersize=4,
            color=color,
            markeredgecolor=PAPER,
            markeredgewidth=0.5,
            label=short(str(name)),
            clip_on=False,
        )


def _gaps(portfolio: Portfolio, weights: FloatArray, reference: Reference) -> FloatArray:
    lower = best_values(weights, portfolio.values, portfolio.beta * portfolio.kl)
    return portfolio.measure.gaps(reference.at(weights), lower)


def _few_rewards(portfolio: Portfolio) -> int:
    num_rewards = portfolio.values.shape[1]
    if num_rewards > 3:
        raise PortfolioError(f"Cells can be drawn for 2 or 3 rewards, not for {num_rewards}; draw_gap works for any number.")
    return num_rewards


def _colors(cells: "list[WeightRegion | None]", num_rewards: int) -> list[str]:
    """A color for each cell; cells that share an edge have different ones as long as there are enough."""
    corners = [set() if cell is None else {tuple(point) for point in cell.points.round(8).tolist()} for cell in cells]
    chosen: list[int] = []
    for place, mine in enumerate(corners):
        near = {chosen[other] for other in range(place) if len(mine & corners[other]) >= num_rewards - 1}
        free = [color for color in range(len(_CELL_COLORS)) if color not in near] or [place % len(_CELL_COLORS)]
        # The least used of them, so that a color does not come back before it must.
        chosen.append(min(free, key=lambda color: (chosen.count(color), color)))
    return [_CELL_COLORS[color] for color in chosen]


def _title(text: str, portfolio: Portfolio) -> str:
    return f"{text}\nobjective {portfolio.objective}, certified {portfolio.measure.name} {portfolio.gap:.4f}"


def _frame(axes: "Axes") -> None:
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=_FONT - 1, colors=TEXT)
    axes.spines[["top", "right"]].set_visible(False)
