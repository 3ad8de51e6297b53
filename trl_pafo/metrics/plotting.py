"""How pictures look, and the two forms they leave in: PNG for a folder, SVG for a page.

No pyplot: figures are objects, so that nothing global changes.
"""

import io
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.sax.saxutils import quoteattr

import numpy as np

from trl_pafo.metrics.accuracy import FloatArray
from trl_pafo.metrics.verdict import is_known
from trl_pafo.storage.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors, told apart by color-blind readers, without yellow (too pale on white). Markers differ as
# well, for print in gray; 7 colors and 8 markers, so that no two of the first 56 methods look the same.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
# Groups are no methods: other colors first.
GROUP_COLORS = ("#56B4E9", "#E69F00", "#CC79A7", "#009E73", "#0072B2", "#D55E00", "#000000")
TEXT, MUTED, GRID, PAPER = "#333333", "#666666", "#E5E5E5", "#FFFFFF"

# Narrow, so that 9 points of type stay 9 points on a telephone.
WIDTH_INCHES = 4.3
PNG_DPI = 280  # 1,204 pixels wide
FONT = 9

_SIDES = np.array([(1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1)])
_LABEL_GAPS = (4.5, 12.0)
"""Points between the middle of a marker and the box of its label, the nearest first."""
_FAR_ENOUGH = 4.0
"""Points beyond which a label is read as well on any side."""
_MOST_POINTS = 1000  # along one line, of which little may be in the picture


def new_figure(width: float = WIDTH_INCHES, height: float = 3.4, dpi: float = PNG_DPI) -> "Figure":
    """An empty figure on white, which lays itself out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def add_axes(
    figure: "Figure", x: str = "", y: str = "", grid: Literal["x", "both"] = "both", place: tuple[Any, ...] = (1, 1, 1)
) -> "Axes":
    """Axes in the style of all pictures, with names for both directions; `place` as `add_subplot` takes it."""
    axes = figure.add_subplot(*place)
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.tick_params(labelsize=FONT - 0.5, colors=TEXT, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(MUTED)
    axes.set_xlabel(x, fontsize=FONT, color=TEXT, parse_math=False)
    axes.set_ylabel(y, fontsize=FONT, color=TEXT, parse_math=False)
    return axes


def add_legend(figure: "Figure", handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend above the plot, where it hides nothing; names in it are not read as formulas."""
    look: dict[str, Any] = {"fontsize": FONT, "frameon": False, "labelcolor": TEXT, "handlelength": 1.6, "columnspacing": 1.2}
    legend = figure.legend(handles, labels, loc="outside upper center", ncols=2, **look)
    for text in legend.get_texts():
        text.set_parse_math(False)


def add_labels(axes: "Axes", labels: Sequence[tuple[str, tuple[float, float], str]], size: float = FONT) -> None:
    """Put each label (a text, its place and its color) beside its place, on the side where it is farthest from lines and markers, from
    other labels and from the edges.

    To be called last: the distances are those of the figure as it then is.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # lays it out
    points = figure.dpi / 72
    drawn, edges = _drawn(axes) / points, axes.bbox.get_points() / points
    centers, halves = np.empty((0, 2)), np.empty((0, 2))
    for text, xy, color in labels:
        place, half = axes.transData.transform(xy) / points, size * np.array([0.3 * len(text), 0.45])
        tried = np.concatenate([place + _SIDES * (half + gap) for gap in _LABEL_GAPS])
        others = drawn[np.linalg.norm(drawn - place, axis=1) > 1]  # from its own marker all sides are equally far
        free = np.minimum(
            _distances(tried, half, np.vstack([others, centers]), np.vstack([0 * others, halves])).min(axis=1, initial=math.inf),
            np.minimum(tried - half - edges[0], edges[1] - tried - half).min(axis=1),
        )
        chosen = np.argmax(np.minimum(free, _FAR_ENOUGH))
        centers, halves = np.vstack([centers, tried[chosen]]), np.vstack([halves, half])
        look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": size, "color": color, "zorder": 5}
        axes.annotate(text, xy, tried[chosen] - place, textcoords="offset points", **look)


def _drawn(axes: "Axes") -> FloatArray:
    """Pixels along all lines and arrows within the axes, close enough that no label fits between two."""
    from matplotlib.collections import LineCollection
    from matplotlib.text import Annotation

    lines = [line.get_transform().transform(line.get_xydata()) for line in axes.lines]
    for collection in axes.collections:
        if isinstance(collection, LineCollection):
            lines += [collection.get_transform().transform(segment) for segment in collection.get_segments()]
    notes = [text for text in axes.texts if isinstance(text, Annotation) and text.arrow_patch]
    lines += [axes.transData.transform([note.xy, note.xyann]) for note in notes]
    found = [*lines]
    for start, end in (ends for line in lines for ends in pairwise(line)):
        number = min(int(np.linalg.norm(end - start)) // 4, _MOST_POINTS)
        share = np.linspace(0, 1, 2 + number)[:, None]
        found.append(start + share * (end - start))
    points = np.concatenate(found) if found else np.empty((0, 2))
    low, high = axes.bbox.get_points()
    return points[((points >= low) & (points <= high)).all(axis=1)]


def _distances(centers: FloatArray, half: FloatArray, others: FloatArray, halves: FloatArray) -> FloatArray:
    """From each box to each other, given by their centers and halves of their sides."""
    return np.linalg.norm(np.maximum(np.abs(centers[:, None] - others) - half - halves, 0), axis=2)


def write_png(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a picture; an older one there is replaced at once."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with replacing(Path(path)) as temporary, warnings.catch_warnings():
        # A name in a script that the font lacks: boxes in the PNG, and right in the page.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        FigureCanvasAgg(figure).print_png(temporary)


def as_svg(figure: "Figure", name: str, description: str) -> str:
    """The figure as an `<svg>` element. Text stays text: it can be selected, and the browser finds glyphs that matplotlib's font
    lacks.

    The name, of letters, digits, `-` and `_`, makes the ids in it its own, so that several pictures fit into one page. The
    description is what a screen reader says.
    """
    import matplotlib

    buffer = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata=metadata)
    svg = buffer.getvalue()
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.S)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {view[0]} role="img"'
    svg = re.sub(r"<svg[^>]*>", lambda _: f"{head} aria-label={quoteattr(description)}>", svg, count=1)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return re.sub(r"\n\s*", "\n", svg).strip()


def short(name: str, length: int = 18) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"


def ends_of(entry: Mapping[str, float | None]) -> tuple[float, float]:
    """Ends of what is drawn of `{"value", "low", "high"}`: the value itself where the interval is not known."""
    low, high = (entry[end] if is_known(entry[end]) else entry["value"] for end in ("low", "high"))
    return (math.nan if low is None else low), (math.nan if high is None else high)
