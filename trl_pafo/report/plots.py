"""The picture of majority against minority accuracy."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_pafo.errors import ConfigError, DataError
from trl_pafo.metrics.accuracy import FloatArray
from trl_pafo.metrics.verdict import is_known
from trl_pafo.plotting import COLORS, GRID, MARKERS, MUTED, PAPER, TEXT, ends_of, new_figure, short, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE_INCHES = (8.0, 6.6)
_DPI = 150  # 1,200 pixels wide
_SMALLEST_SPAN = 0.15
_SIDES = ("majority", "minority")


def plot_majority_minority(
    points: list[dict[str, Any]],
    path: str | os.PathLike[str],
    *,
    reference: str | None,
    title: str | None = None,
    names: tuple[str, str] = ("majority", "minority"),
) -> None:
    """Write [`draw_majority_minority`] as a PNG 1,200 pixels wide.

    Args:
        points (`list[dict]`):
            One a method, see there.
        path (`str` or `os.PathLike`):
            The file. It is written aside and renamed, so that no reader ever sees half of it.
        reference (`str`, *optional*):
            Name of the method whose Pareto region is shaded; `None` for no region.
        title (`str`, *optional*):
            Title above the plot.
        names (`tuple[str, str]`, *optional*):
            Names of the two groups.

    Raises:
        DataError: If there is no point, a name appears twice, or an accuracy is missing or outside [0, 1].
        ConfigError: If `reference` is none of the methods.
    """
    write_png(draw_majority_minority(points, reference=reference, title=title, names=names), path)


def draw_majority_minority(
    points: list[dict[str, Any]],
    *,
    reference: str | None,
    title: str | None = None,
    names: tuple[str, str] = ("majority", "minority"),
    size: tuple[float, float] = _SIZE_INCHES,
    dpi: float = _DPI,
    arrows: Sequence[tuple[str, str]] = (),
    legend: Mapping[str, int] | None = None,
) -> "Figure":
    """Accuracy on the majority against accuracy on the minority, one point a method.

    On the dashed diagonal both groups are served alike. In the shaded field, up and to the right of the reference,
    neither accuracy is lower than the reference's: as a point, that is; whether it is shown says
    [`~trl_pafo.metrics.compare`].

    Args:
        points (`list[dict]`):
            One a method: `{"name": str, "majority": {"value", "low", "high"}, "minority": {"value", "low", "high"}}`,
            as accuracies in [0, 1]; an interval that is not known (NaN or `None`) is not drawn. Optional: `label`, the text at the point (its name), and `series`, the number of its
            color and marker (its place).
        reference (`str`, *optional*):
            Name of the method whose Pareto region is shaded; `None` for no region.
        title (`str`, *optional*):
            Title above the plot.
        names (`tuple[str, str]`, *optional*):
            Names of the two groups, for the axes.
        size (`tuple[float, float]`, *optional*, defaults to `(8.0, 6.6)`):
            Width and height in inches. Below 6 inches the type is smaller, for a column of a page.
        dpi (`float`, *optional*, defaults to `150`):
            Pixels an inch.
        arrows (`Sequence[tuple[str, str]]`, *optional*):
            Names of points to join, from the first to the second.
        legend (`Mapping[str, int]`, *optional*):
            Texts below the plot and the `series` that they explain.

    Raises:
        DataError: If there is no point, a name appears twice, or a number is missing or outside [0, 1].
        ConfigError: If `reference` is none of the methods.
    """
    _check(points, reference)
    font = 11 if size[0] >= 6 else 9
    figure = new_figure(*size, dpi=dpi)
    axes = figure.add_subplot()
    _draw_frame(axes, points, title, font, names)
    sentences = ["Bars: intervals over users.", "Dashed: equal accuracy.", "Each axis has its own scale."]
    if not all(is_known(point[side]["low"]) for point in points for side in _SIDES):
        sentences.append("No bar: too few users for an interval.")
    at = {point["name"]: (point["majority"]["value"], point["minority"]["value"]) for point in points}
    if reference is not None:
        x, y = at[reference]
        axes.fill_between([x, 1], y, 1, color=COLORS[2], alpha=0.10, linewidth=0, zorder=0)
        sentences.append(f"Shaded: neither group below {reference}.")
    for start, end in arrows:
        style = {"arrowstyle": "->", "color": MUTED, "linewidth": 0.9, "shrinkA": 5, "shrinkB": 5}
        axes.annotate("", at[end], at[start], arrowprops=style, zorder=2).set_in_layout(False)
    # Later points lie above earlier ones: what would be hidden is drawn larger, and shows as a rim.
    above = [sum(_apart(axes, point, later) < 0.01 for later in points[i:]) for i, point in enumerate(points, start=1)]
    sizes = [9 * font / 11 + 5 * min(number, 3) for number in above]
    for i, point in enumerate(points):
        series = point.get("series", i)
        _draw_point(axes, point, COLORS[series % len(COLORS)], MARKERS[series % len(MARKERS)], sizes[i])
    for text, series in (legend or {}).items():
        color, marker = COLORS[series % len(COLORS)], MARKERS[series % len(MARKERS)]
        axes.plot([], [], linestyle="none", color=color, marker=marker, markersize=6, label=text)
    if legend:
        figure.legend(loc="outside upper center", ncols=2, fontsize=font, frameon=False, labelcolor=TEXT)
    if size[0] >= 6:  # a page has its own captions
        caption = " ".join(sentences[:3]) + "".join(f"\n{sentence}" for sentence in sentences[3:])
        figure.supxlabel(caption, fontsize=9, color=MUTED, parse_math=False)
    figure.draw_without_rendering()  # Settles the layout, without which no label has a place.
    _place_labels(axes, points, sizes, font)
    return figure


def _check(points: list[dict[str, Any]], reference: str | None) -> None:
    if not points:
        raise DataError("There is no method to plot; give at least one point.")
    names = [point["name"] for point in points]
    if len(set(names)) < len(names):
        raise DataError(f"Two methods have the same name among {names}; give each its own.")
    for point in points:
        for side in _SIDES:
            accuracy = {key: math.nan for key in ("value", "low", "high")} | point.get(side, {})
            (low, high), value = ends_of(accuracy), accuracy["value"]
            numbers = [low, value, high]
            if not ({"low", "high"} <= set(point.get(side, {})) and is_known(value) and 0 <= low <= value <= high <= 1):
                raise DataError(
                    f"The {side} accuracy of {point['name']!r} needs 0 <= low <= value <= high <= 1, got {numbers}: "
                    "take it from `fairness_summary`."
                )
    if reference is not None and reference not in names:
        raise ConfigError(f"`reference` must be one of the plotted methods {names} or None, got {reference!r}.")


def _limits(accuracies: list[dict[str, float]]) -> tuple[float, float]:
    """Ends of an axis around all intervals, wide enough that noise does not look like a difference."""
    ends = [ends_of(accuracy) for accuracy in accuracies]
    lowest, highest = min(low for low, _ in ends), max(high for _, high in ends)
    span = max(highest - lowest, _SMALLEST_SPAN)
    middle = (highest + lowest) / 2
    low, high = middle - 0.6 * span, middle + 0.6 * span
    over = max(high - 1 - 0.03 * span, 0.0)
    return low - over, high - over


def _draw_frame(axes: "Axes", points: list[dict[str, Any]], title: str | None, font: float, names: tuple[str, str]) -> None:
    # Each axis has its own scale: majorities lie close together, and whether they lose is half the question.
    axes.set_xlim(_limits([p["majority"] for p in points]))
    axes.set_ylim(_limits([p["minority"] for p in points]))
    axes.set_xlabel(f"Accuracy, {short(names[0], 28)}", fontsize=font + 1, color=TEXT, parse_math=False)
    axes.set_ylabel(f"Accuracy, {short(names[1], 28)}", fontsize=font + 1, color=TEXT, parse_math=False)
    if title is not None:
        axes.set_title(title, fontsize=font + 2, color=TEXT, parse_math=False)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=font - 1, colors=TEXT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.plot([0, 1], [0, 1], linestyle=(0, (5, 4)), color=MUTED, linewidth=1.2, zorder=1)


def _apart(axes: "Axes", a: dict[str, Any], b: dict[str, Any]) -> float:
    """Distance of two points as a share of the plot's size."""
    sides = (("majority", axes.get_xlim()), ("minority", axes.get_ylim()))
    return math.hypot(*((a[side]["value"] - b[side]["value"]) / (high - low) for side, (low, high) in sides))


def _draw_point(axes: "Axes", point: dict[str, Any], color: str, marker: str, size: float) -> None:
    x, y = (point[side]["value"] for side in _SIDES)
    across, up = ((ends_of(point[side]) if is_known(point[side]["low"]) else None) for side in _SIDES)
    axes.errorbar(
        x,
        y,
        xerr=None if across is None else [[x - across[0]], [across[1] - x]],
        yerr=None if up is None else [[y - up[0]], [up[1] - y]],
        color=color,
        marker=marker,
        markersize=size,
        markeredgecolor=PAPER,
        markeredgewidth=0.8,
        linewidth=1.3,
        capsize=3,
        zorder=3,
    )


def _place_labels(axes: "Axes", points: list[dict[str, Any]], sizes: list[float], font: float) -> None:
    """Write each name at its point, at the nearest place that hides neither a point, a bar nor another name."""
    from matplotlib.path import Path as Line
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    pixels = figure.dpi / 72  # A point of type in pixels. Boxes are left, bottom, right, top in pixels.
    to_pixels = axes.transData.transform
    diagonal = Line(to_pixels([(0, 0), (1, 1)]))
    frame = np.array([axes.bbox.padded(-3 * pixels).extents])
    taken = []
    for point, marker_size in zip(points, sizes, strict=True):
        x, y = point["majority"], point["minority"]
        center = to_pixels((x["value"], y["value"]))
        (left, bottom), (right, top) = to_pixels(list(zip(ends_of(x), ends_of(y), strict=True)))
        bars = [(left, center[1], right, center[1]), (center[0], bottom, center[0], top)]
        taken += [_padded(bar, 4 * pixels) for bar in bars]
        taken.append(_padded([*center, *center], (marker_size / 2 + 2) * pixels))

    for point in points:
        at = (point["majority"]["value"], point["minority"]["value"])
        label = axes.annotate(
            point.get("label", point["name"]),
            at,
            xytext=(0, 0),
            textcoords="offset points",
            horizontalalignment="left",
            verticalalignment="bottom",
            fontsize=font,
            color=TEXT,
            zorder=5,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.9, "shrinkB": 6},
        )
        label.set_in_layout(False)
        extent = label.get_window_extent()
        center = to_pixels(at)
        distances, boxes = _places(center, extent.width, extent.height, pixels)
        area = extent.width * extent.height
        hidden = (area - _shared_areas(boxes, frame) + _shared_areas(boxes, np.array(taken))) / area
        crossed = np.array([diagonal.intersects_bbox(Bbox.from_extents(*box), filled=False) for box in boxes])
        best = np.argmin(distances + 1000 * hidden + 25 * crossed)
        taken.append(boxes[best])
        label.set_position(tuple((boxes[best, :2] - center) / pixels))
        # A name that had to move away is tied to its point; next to it, the line would only be clutter.
        assert label.arrow_patch is not None
        label.arrow_patch.set_visible(bool(distances[best] > 14))


def _places(center: FloatArray, width: float, height: float, pixels: float) -> tuple[FloatArray, FloatArray]:
    """Distances, in points of type, and boxes of a text around a point; right and left come before above and below."""
    distances = np.repeat([9.0, 13.0, 20.0, 30.0, 42.0, 56.0, 72.0, 90.0, 110.0], 16)
    angles = np.tile([0, 8, 4, 12, 2, 14, 6, 10, 1, 15, 7, 9, 3, 13, 5, 11], 9) * np.pi / 8
    left = center[0] + np.cos(angles) * (distances * pixels + width / 2) - width / 2
    bottom = center[1] + np.sin(angles) * (distances * pixels + height / 2) - height / 2
    return distances, np.column_stack([left, bottom, left + width, bottom + height])


def _padded(box: Sequence[float], by: float) -> FloatArray:
    return np.array(box) + np.array([-by, -by, by, by])


def _shared_areas(boxes: FloatArray, others: FloatArray) -> FloatArray:
    """Area that each of `boxes` shares with `others`, summed."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.clip(high - low, 0, None).prod(axis=-1).sum(axis=1)
