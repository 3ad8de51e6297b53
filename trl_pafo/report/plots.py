"""Pictures of results. No pyplot: figures are objects, so that nothing global changes and threads do not meet."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_pafo.errors import ConfigError, DataError
from trl_pafo.metrics.accuracy import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by colour-blind readers, without yellow (too pale on white). Markers differ as
# well, for print in grey; 7 colours and 8 markers, so that no two of the first 56 methods look the same.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_SIZE_INCHES = (8.0, 6.6)
_DPI = 150  # 1,200 pixels wide
_SMALLEST_SPAN = 0.15
_TEXT = "#333333"


def plot_majority_minority(
    points: list[dict[str, Any]], path: str | os.PathLike[str], *, reference: str | None, title: str | None = None
) -> None:
    """Accuracy on the majority against accuracy on the minority, one point a method, as a PNG 1,200 pixels wide.

    On the dashed diagonal both groups are served alike. In the shaded field, up and to the right of the reference,
    neither accuracy is lower than the reference's: as a point, that is; whether it is shown says
    [`~trl_pafo.metrics.compare`].

    Args:
        points (`list[dict]`):
            One a method: `{"name": str, "majority": {"value", "low", "high"}, "minority": {"value", "low", "high"}}`,
            as accuracies in [0, 1].
        path (`str` or `os.PathLike`):
            The file. It is written aside and renamed, so that no reader ever sees half of it.
        reference (`str`, *optional*):
            Name of the method whose Pareto region is shaded; `None` for no region.
        title (`str`, *optional*):
            Title above the plot.

    Raises:
        DataError: If there is no point, a name appears twice, or a number is missing or outside [0, 1].
        ConfigError: If `reference` is none of the methods.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    _check(points, reference)
    figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_frame(axes, points, title)
    caption = "Bars: intervals over users. Dashed: equal accuracy. Each axis has its own scale."
    for point in points:
        if point["name"] == reference:
            corner = (point["majority"]["value"], point["minority"]["value"])
            axes.fill_between([corner[0], 1], corner[1], 1, color="#009E73", alpha=0.10, linewidth=0, zorder=0)
            caption += f"\nShaded: neither group below {reference}."
    # Later points lie above earlier ones: what would be hidden is drawn larger, and shows as a rim.
    above = [sum(_apart(axes, point, later) < 0.01 for later in points[i:]) for i, point in enumerate(points, start=1)]
    sizes = [9 + 5 * min(number, 3) for number in above]
    for i, point in enumerate(points):
        _draw_point(axes, point, _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)], sizes[i])
    figure.supxlabel(caption, fontsize=9, color="#666666", parse_math=False)
    figure.draw_without_rendering()  # Settles the layout, without which no label has a place.
    _place_labels(axes, points, sizes)

    path = Path(path)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        canvas.print_png(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _check(points: list[dict[str, Any]], reference: str | None) -> None:
    if not points:
        raise DataError("There is no method to plot; give at least one point.")
    names = [point["name"] for point in points]
    if len(set(names)) < len(names):
        raise DataError(f"Two methods have the same name among {names}; give each its own.")
    for point in points:
        for side in ("majority", "minority"):
            numbers = [point.get(side, {}).get(key, math.nan) for key in ("low", "value", "high")]
            if not 0 <= numbers[0] <= numbers[1] <= numbers[2] <= 1:
                raise DataError(
                    f"The {side} accuracy of {point['name']!r} needs 0 <= low <= value <= high <= 1, got {numbers}: "
                    "take it from `fairness_summary`."
                )
    if reference is not None and reference not in names:
        raise ConfigError(f"`reference` must be one of the plotted methods {names} or None, got {reference!r}.")


def _limits(accuracies: list[dict[str, float]]) -> tuple[float, float]:
    """Ends of an axis around all intervals, wide enough that noise does not look like a difference."""
    lowest, highest = min(a["low"] for a in accuracies), max(a["high"] for a in accuracies)
    span = max(highest - lowest, _SMALLEST_SPAN)
    middle = (highest + lowest) / 2
    low, high = middle - 0.6 * span, middle + 0.6 * span
    over = max(high - 1 - 0.03 * span, 0.0)
    return low - over, high - over


def _draw_frame(axes: "Axes", points: list[dict[str, Any]], title: str | None) -> None:
    # Each axis has its own scale: majorities lie close together, and whether they lose is half the question.
    axes.set_xlim(_limits([p["majority"] for p in points]))
    axes.set_ylim(_limits([p["minority"] for p in points]))
    axes.set_xlabel("Accuracy, majority", fontsize=12, color=_TEXT)
    axes.set_ylabel("Accuracy, minority", fontsize=12, color=_TEXT)
    if title is not None:
        axes.set_title(title, fontsize=13, color=_TEXT, parse_math=False)
    axes.grid(color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=10, colors=_TEXT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.plot([0, 1], [0, 1], linestyle=(0, (5, 4)), color="#888888", linewidth=1.2, zorder=1)


def _apart(axes: "Axes", a: dict[str, Any], b: dict[str, Any]) -> float:
    """Distance of two points as a share of the plot's size."""
    sides = (("majority", axes.get_xlim()), ("minority", axes.get_ylim()))
    return math.hypot(*((a[side]["value"] - b[side]["value"]) / (high - low) for side, (low, high) in sides))


def _draw_point(axes: "Axes", point: dict[str, Any], colour: str, marker: str, size: int) -> None:
    x, y = point["majority"], point["minority"]
    axes.errorbar(
        x["value"],
        y["value"],
        xerr=[[x["value"] - x["low"]], [x["high"] - x["value"]]],
        yerr=[[y["value"] - y["low"]], [y["high"] - y["value"]]],
        color=colour,
        marker=marker,
        markersize=size,
        markeredgecolor="white",
        markeredgewidth=0.8,
        linewidth=1.3,
        capsize=3,
        zorder=3,
    )


def _place_labels(axes: "Axes", points: list[dict[str, Any]], sizes: list[int]) -> None:
    """Write each name at its point, at the nearest place that hides neither a point, a bar nor another name."""
    from matplotlib.path import Path as Line
    from matplotlib.transforms import Bbox

    pixels = _DPI / 72  # A point of type in pixels. Boxes are left, bottom, right, top in pixels.
    to_pixels = axes.transData.transform
    diagonal = Line(to_pixels([(0, 0), (1, 1)]))
    frame = np.array([axes.bbox.padded(-3 * pixels).extents])
    taken = []
    for point, marker_size in zip(points, sizes, strict=True):
        x, y = point["majority"], point["minority"]
        centre = to_pixels((x["value"], y["value"]))
        (left, bottom), (right, top) = to_pixels([(x["low"], y["low"]), (x["high"], y["high"])])
        bars = [(left, centre[1], right, centre[1]), (centre[0], bottom, centre[0], top)]
        taken += [_padded(bar, 4 * pixels) for bar in bars]
        taken.append(_padded([*centre, *centre], (marker_size / 2 + 2) * pixels))

    for point in points:
        at = (point["majority"]["value"], point["minority"]["value"])
        label = axes.annotate(
            point["name"],
            at,
            xytext=(0, 0),
            textcoords="offset points",
            horizontalalignment="left",
            verticalalignment="bottom",
            fontsize=11,
            color=_TEXT,
            zorder=5,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.9, "shrinkB": 6},
        )
        label.set_in_layout(False)
        extent = label.get_window_extent()
        centre = to_pixels(at)
        distances, boxes = _places(centre, extent.width, extent.height, pixels)
        area = extent.width * extent.height
        hidden = (area - _shared_areas(boxes, frame) + _shared_areas(boxes, np.array(taken))) / area
        crossed = np.array([diagonal.intersects_bbox(Bbox.from_extents(*box), filled=False) for box in boxes])
        best = np.argmin(distances + 1000 * hidden + 25 * crossed)
        taken.append(boxes[best])
        label.set_position(tuple((boxes[best, :2] - centre) / pixels))
        # A name that had to move away is tied to its point; next to it, the line would only be clutter.
        assert label.arrow_patch is not None
        label.arrow_patch.set_visible(bool(distances[best] > 14))


def _places(centre: FloatArray, width: float, height: float, pixels: float) -> tuple[FloatArray, FloatArray]:
    """Distances, in points of type, and boxes of a text around a point; right and left come before above and below."""
    distances = np.repeat([9.0, 13.0, 20.0, 30.0, 42.0, 56.0, 72.0, 90.0, 110.0], 16)
    angles = np.tile([0, 8, 4, 12, 2, 14, 6, 10, 1, 15, 7, 9, 3, 13, 5, 11], 9) * np.pi / 8
    left = centre[0] + np.cos(angles) * (distances * pixels + width / 2) - width / 2
    bottom = centre[1] + np.sin(angles) * (distances * pixels + height / 2) - height / 2
    return distances, np.column_stack([left, bottom, left + width, bottom + height])


def _padded(box: Sequence[float], by: float) -> FloatArray:
    return np.array(box) + np.array([-by, -by, by, by])


def _shared_areas(boxes: FloatArray, others: FloatArray) -> FloatArray:
    """Area that each of `boxes` shares with `others`, summed."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.clip(high - low, 0, None).prod(axis=-1).sum(axis=1)
