"""The pictures of a study: all methods and the reference's path, and the differences to the reference, with intervals over runs."""

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from trl_pafo.metrics.plotting import (
    COLORS,
    FONT,
    MARKERS,
    MUTED,
    PAPER,
    TEXT,
    add_axes,
    add_labels,
    add_legend,
    ends_of,
    new_figure,
)
from trl_pafo.metrics.verdict import is_known
from trl_pafo.report.record import series_of
from trl_pafo.study.config import REFERENCE
from trl_pafo.study.rows import ROLES, Row
from trl_pafo.study.summary import Summary, blocks_of, by_method, summarize
from trl_pafo.study.tables import role_titles, title_of, title_of_block

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIDES = ROLES[:2]
_PANEL = 3.4
"""Inches of a panel."""
_DASHES = (0, (4, 3))
_SPARE = 0.08
"""Share of an axis that stays free beyond what is drawn."""


def draw_front(rows: Sequence[Row]) -> "Figure":
    """Accuracy of the majority against that of the minority, a panel a data set and setting: every method, and the path as a line."""
    panels = _panels(rows)
    shown = {title_of(summary.method) for _, _, summaries in panels for summary in summaries if not summary.is_point}
    figure, places = _figure([_PANEL] * len(panels), names=len(shown) + 1)
    handles: dict[str, Any] = {}
    labels: dict[Axes, list[tuple[str, tuple[float, float], str]]] = {}
    for place, (title, titles, summaries) in zip(places, panels, strict=True):
        axes = add_axes(figure, f"accuracy, {titles['majority']}", f"accuracy, {titles['minority']}", place=place)
        axes.set_title(title, fontsize=FONT, color=TEXT, parse_math=False)
        path = [summary for summary in summaries if summary.is_point]
        if path:
            along = [[summary.accuracy[side]["value"] for summary in path] for side in _SIDES]
            (handles["its path"],) = axes.plot(
                *along, "-o", color=COLORS[series_of(REFERENCE)], linewidth=1, markersize=3.5, markerfacecolor=PAPER, zorder=2
            )
            labels[axes] = [
                (f"x{summary.method.partition('@')[2]}", at, MUTED)
                for summary, at in zip(path, zip(*along, strict=True), strict=True)
            ]
        for summary in summaries:
            if not summary.is_point:
                handles[title_of(summary.method)] = _draw_method(axes, summary)
        axes.margins(_SPARE)
        axes.locator_params(nbins=5)
    first = [title_of(REFERENCE), "its path"]
    names = [*(name for name in first if name in handles), *(name for name in handles if name not in first)]
    add_legend(figure, [handles[name] for name in names], names)
    for axes, of_path in labels.items():
        add_labels(axes, of_path, FONT - 2.5)
    return figure


def _draw_method(axes: "Axes", summary: Summary) -> Any:
    x, y = (summary.accuracy[side] for side in _SIDES)
    color, marker = _look(summary.method)
    for entry, bars in ((x, "xerr"), (y, "yerr")):
        low, high = ends_of(entry)
        reach: dict[str, Any] = {bars: [[entry["value"] - low], [high - entry["value"]]]}
        axes.errorbar(x["value"], y["value"], **reach, color=color, linestyle="none", linewidth=1, alpha=0.5, zorder=3)
    (drawn,) = axes.plot(x["value"], y["value"], marker, color=color, markersize=7, markeredgecolor=PAPER, zorder=4)
    return drawn


def draw_intervals(rows: Sequence[Row]) -> "Figure":
    """Difference of each method to the reference with its interval over runs: a panel a data set and setting, a line a method; of data with
    more settings than methods a panel a method, a line a setting."""
    panels = _interval_panels(rows)
    figure, places = _figure([0.9 + 0.36 * len(lines) for lines in panels.values()])
    handles: dict[str, Any] = {}
    for place, (title, lines) in zip(places, panels.items(), strict=True):
        axes = add_axes(figure, f"accuracy minus {title_of(REFERENCE)}'s", grid="x", place=place)
        axes.set_title(title, fontsize=FONT, color=TEXT, parse_math=False)
        for number, summary in enumerate(lines.values()):
            for side, shift, color, marker in zip(_SIDES, (-0.15, 0.15), (COLORS[0], COLORS[1]), MARKERS, strict=False):
                entry = summary.difference[side]
                low, high = ends_of(entry)
                axes.plot([low, high], [number + shift] * 2, color=color, linewidth=1.6, solid_capstyle="butt")
                (handles[side],) = axes.plot(entry["value"], number + shift, marker, color=color, markersize=5)
        axes.axvline(0, color=MUTED, linewidth=1, linestyle=_DASHES)
        axes.set_yticks(range(len(lines)), list(lines), parse_math=False)
        axes.set_ylim(len(lines) - 0.5, -0.5)
    add_legend(figure, list(handles.values()), list(handles))
    return figure


def _interval_panels(rows: Sequence[Row]) -> dict[str, dict[str, Summary]]:
    """By the title of a panel, what its lines are called and show."""
    panels: dict[str, dict[str, Summary]] = {}
    by_data: dict[str, list[list[Summary]]] = {}
    for _, _, summaries in _panels(rows):
        by_data.setdefault(summaries[0].data, []).append(_others(summaries))
    for data, settings in by_data.items():
        methods = by_method(settings)
        one_each = len(settings) <= len(methods)
        for (_, method), found in methods.items():
            if len(found) > 1 and not one_each:
                panels[f"{data}, {title_of(method)}"] = {summary.setting: summary for summary in found}
        for summary in chain(*settings):
            if one_each or len(methods[data, summary.method]) == 1:
                panels.setdefault(title_of_block(data, summary.setting), {})[title_of(summary.method)] = summary
    return panels


def _others(summaries: Sequence[Summary]) -> list[Summary]:
    """Methods beside the reference."""
    return [summary for summary in summaries if summary.method != REFERENCE and not summary.is_point]


def can_draw(rows: Sequence[Row]) -> bool:
    """Whether a data set has two groups to set against each other, and a method beside the reference."""
    return bool(_panels(rows))


def _panels(rows: Sequence[Row]) -> list[tuple[str, dict[str, str], list[Summary]]]:
    """By data set and setting: the title, those of the roles, and what was done in some run."""
    panels, blocks = [], blocks_of(rows)
    for place, summaries in summarize(rows).items():
        done = [summary for summary in summaries if is_known(summary.accuracy["minority"]["value"])]
        if _others(done):
            panels.append((title_of_block(*place), role_titles(blocks[place]), done))
    return panels


def _look(method: str) -> tuple[str, str]:
    number = series_of(method)
    return COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]


def _figure(heights: Sequence[float], names: int = 2) -> tuple["Figure", list[tuple[Any]]]:
    """A figure with room for so many names in its legend, and the places of its panels of these heights, at most two beside each other."""
    columns = min(len(heights), 2)
    of_lines = [max(heights[first : first + columns]) for first in range(0, len(heights), columns)]
    figure = new_figure(0.9 + _PANEL * columns, 0.4 + 0.1 * names + sum(of_lines))
    grid = figure.add_gridspec(len(of_lines), columns, height_ratios=of_lines)
    return figure, [(grid[divmod(number, columns)],) for number in range(len(heights))]
