"""The pictures of a report: each takes numbers, and returns a figure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_pafo.metrics import user_accuracy
from trl_pafo.metrics.accuracy import FloatArray
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
    short,
)
from trl_pafo.metrics.verdict import format_number, is_known

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SMALLEST_SPAN = 0.15
_DASHES = (0, (4, 3))

Interval = Mapping[str, float]


def draw_majority_minority(
    points: Sequence[Mapping[str, Any]],
    *,
    reference: str | None = None,
    names: tuple[str, str] = ("majority", "minority"),
    arrows: Sequence[tuple[int, int]] = (),
    path: Sequence[Mapping[str, Any]] = (),
) -> "Figure":
    """Accuracy on the majority against accuracy on the minority, one point a method.

    In the shaded field, up and to the right of the reference, neither accuracy is lower than the reference's: as a point, that is;
    whether it is shown says [`~trl_pafo.metrics.compare`]. Each axis has its own scale: majorities lie close together, and whether
    they lose is half the question.

    A point has a `name`, for the legend, `majority` and `minority`, each `{"value", "low", "high"}`, `series`, the number of its
    color and marker, and optional `label`, a short text. The reference is the name of one; without it no field is shaded. `arrows`
    are numbers of points to join, from the first to the second, `path` places on a line in the reference's color, with their
    `label` and both accuracies.
    """
    figure = new_figure(height=4.2)
    axes = add_axes(figure, f"accuracy, {short(names[0], 28)}", f"accuracy, {short(names[1], 28)}")
    for role, set_limits in (("majority", axes.set_xlim), ("minority", axes.set_ylim)):
        on_path = [{"value": point[role], "low": None, "high": None} for point in path]
        set_limits(_limits([*(point[role] for point in points), *on_path]))
    legend: dict[str, Any] = {}
    at = [(point["majority"]["value"], point["minority"]["value"]) for point in points]
    # Later methods lie above earlier ones, and are smaller: of what would be hidden, a rim shows.
    sizes = {name: max(10 - i, 7) for i, name in enumerate(dict.fromkeys(point["name"] for point in points))}
    for (x, y), point in zip(at, points, strict=True):
        color, marker = _look(point["series"])
        bars: dict[str, Any] = {
            "xerr": _reach(point["majority"]),
            "yerr": _reach(point["minority"]),
            "linewidth": 1.3,
            "capsize": 3,
        }
        axes.errorbar(x, y, color=color, linestyle="none", zorder=3, **bars)
        (legend[point["name"]],) = axes.plot(
            x, y, marker, color=color, markersize=sizes[point["name"]], markeredgecolor=PAPER, zorder=4
        )
    along = [(point["majority"], point["minority"]) for point in path]
    if len(path) > 1:
        look: dict[str, Any] = {"linewidth": 1, "markersize": 3.5, "markerfacecolor": PAPER, "zorder": 3.5}
        (legend["x times the student's steps"],) = axes.plot(*zip(*along, strict=True), "-o", color=COLORS[1], **look)
    for start, end in arrows:
        style = {"arrowstyle": "->", "color": MUTED, "linewidth": 0.9, "shrinkA": 5, "shrinkB": 5}
        axes.annotate("", at[end], at[start], arrowprops=style, zorder=2)
    (legend["both groups served alike"],) = axes.plot([0, 1], [0, 1], linestyle=_DASHES, color=MUTED, linewidth=1, zorder=1)
    if reference is not None:
        x, y = next(place for place, point in zip(at, points, strict=True) if point["name"] == reference)
        shade = axes.fill_between([x, 1], y, 1, color=COLORS[2], alpha=0.12, linewidth=0, zorder=0)
        legend[f"neither below {short(reference, 24)}"] = shade
    add_legend(figure, list(legend.values()), list(legend))
    labeled = [(point.get("label", ""), place, TEXT) for point, place in zip(points, at, strict=True)]
    labeled += [(point["label"], place, COLORS[1]) for point, place in zip(path, along, strict=True) if len(path) > 1]
    add_labels(axes, [entry for entry in labeled if entry[0]])
    return figure


def _limits(accuracies: Sequence[Interval]) -> tuple[float, float]:
    """Ends of an axis around all intervals, wide enough that noise does not look like a difference."""
    ends = [end for accuracy in accuracies for end in ends_of(accuracy)]
    middle, half = (min(ends) + max(ends)) / 2, 0.6 * max(max(ends) - min(ends), _SMALLEST_SPAN)
    over = max(middle + 0.95 * half - 1, 0.0)
    return middle - half - over, middle + half - over


def _look(series: int) -> tuple[str, str]:
    """Color and marker of a method."""
    return COLORS[series % len(COLORS)], MARKERS[series % len(MARKERS)]


def _reach(entry: Interval) -> list[list[float]] | None:
    """How far the interval reaches from the value, as matplotlib takes it; `None` where it is not known."""
    low, high = ends_of(entry)
    return [[entry["value"] - low], [high - entry["value"]]] if is_known(entry["low"]) else None


def draw_differences(differences: Mapping[str, Mapping[str, Interval]], series: Mapping[str, int], reference: str) -> "Figure":
    """Accuracy of each method minus that of the reference, group by group, with its interval.

    `differences` has for each group and method `{"value", "low", "high"}`, `series` for each method the number of its color and
    marker, in the order from top to bottom.
    """
    figure = new_figure(height=1.0 + 0.2 * len(differences) * (len(series) + 1))
    axes = add_axes(figure, f"accuracy minus {reference}'s", grid="x")
    handles: dict[str, Any] = {}
    for place, of_method in enumerate(differences.values()):
        for i, (method, number) in enumerate(series.items()):
            entry, at = of_method[method], place + 0.8 * ((i + 0.5) / len(series) - 0.5)
            color, marker = _look(number)
            axes.errorbar(entry["value"], at, xerr=_reach(entry), color=color, linestyle="none", linewidth=1.6)
            (handles[method],) = axes.plot(entry["value"], at, marker, color=color, markersize=6)
            text = format_number(entry["value"], signed=True)
            offset: dict[str, Any] = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(text, (ends_of(entry)[1], at), fontsize=FONT - 1, color=TEXT, **offset)
    axes.axvline(0, color=MUTED, linewidth=1, linestyle=_DASHES)
    low, high = axes.get_xlim()
    axes.locator_params(axis="x", nbins=6)  # more of them run into each other where intervals are wide
    axes.set_xticks([tick for tick in axes.get_xticks() if low <= tick <= min(high, 1)])
    axes.set_xlim(low, high + 0.14 * (high - low))  # room for the numbers
    axes.set_ylim(len(differences) - 0.45, -0.55)
    axes.set_yticks(range(len(differences)), [short(group) for group in differences], parse_math=False)
    add_legend(figure, list(handles.values()), list(handles))
    return figure


def draw_user_support(correct: FloatArray, user: Sequence[str], support: FloatArray, series: int) -> "Figure":
    """User accuracy against support: a disc for the users of equal numbers, its area their number.

    Each pair has its correctness, whose it is, and the support rate of that user, in [0, 1].
    """
    users, accuracy, _ = user_accuracy(correct, user)
    of_user = dict(zip(user, support, strict=True))
    places = np.column_stack([np.round([of_user[name] for name in users], 3), accuracy])
    cells, counts = np.unique(places, axis=0, return_counts=True)
    figure = new_figure(height=3.0)
    axes = add_axes(figure, "support rate of the user's preferences", "user accuracy")
    sizes = 10 + 700 * counts / len(users)
    axes.scatter(cells[:, 0], cells[:, 1], s=sizes, color=COLORS[series % len(COLORS)], alpha=0.4, linewidth=0)
    axes.set_xlim(-0.04, 1.04)
    axes.set_ylim(-0.08, 1.1)
    axes.set_yticks(np.linspace(0, 1, 6))
    return figure
