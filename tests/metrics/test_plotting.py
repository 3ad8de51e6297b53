import re
import sys
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from trl_pafo.metrics.plotting import COLORS, PAPER, TEXT, add_axes, add_labels, add_legend, as_svg, new_figure, short, write_png

EVIL = "<script>alert('x')</script> & -- cost $a$"


@pytest.fixture
def figure():
    figure = new_figure(height=3)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=COLORS[1], marker="o", markeredgecolor=PAPER)
    axes.fill_between([0, 1], 1, color=COLORS[0], alpha=0.2)
    axes.set_title(EVIL, color=TEXT, parse_math=False)
    return figure


def test_text_stays_text_and_is_escaped_and_brings_no_style_of_its_own(figure):
    before = matplotlib.rcParams.copy()
    svg = as_svg(figure, "one", EVIL)
    assert as_svg(figure, "one", EVIL) == svg
    assert matplotlib.rcParams.copy() == before
    assert not [tag for tag in ("<script", "<!--", "<style") if tag in svg]
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == EVIL
    assert "viewBox" in root.attrib
    assert "width" not in root.attrib
    assert EVIL in ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_ids_are_the_pictures_own_and_every_link_has_its_target(figure):
    first, second = (as_svg(figure, name, "") for name in ("one", "two"))
    ids = [set(re.findall(r'id="([^"]*)"', svg)) for svg in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for svg, known in zip((first, second), ids, strict=True):
        targets = [a or b for a, b in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', svg)]
        assert targets
        assert set(targets) <= known


def test_png_is_sharp_and_a_failure_keeps_the_old_one(figure, tmp_path, monkeypatch):
    path = tmp_path / "p.png"
    write_png(figure, path)
    assert imread(path).shape[1] >= 1200
    old = path.read_bytes()

    def fail(self, file, **kwargs):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.backends.backend_agg.FigureCanvasAgg.print_png", fail)
    with pytest.raises(OSError, match="disk full"):
        write_png(figure, path)
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["p.png"]


def test_short():
    assert short("minority") == "minority"
    assert short("people who travel by train", 12) == "people who…"


def test_names_are_not_read_as_formulas_glyphs_may_be_missing_and_pyplot_stays_out(tmp_path, recwarn):
    before = "matplotlib.pyplot" in sys.modules
    figure = new_figure()
    axes = add_axes(figure, "cost $a$", "of $b 多数")
    add_legend(figure, axes.plot([0, 1]), ["cost $a$ and $b"])
    write_png(figure, tmp_path / "p.png")
    assert "多数" in as_svg(figure, "one", "")
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
    assert not any(text.get_parse_math() for text in (axes.xaxis.label, axes.yaxis.label, *figure.legends[0].get_texts()))
    assert ("matplotlib.pyplot" in sys.modules) == before


@pytest.mark.parametrize("corner", [(0.0, 0.0), (1.0, 1.0), (1.0, 0.0)])
def test_labels_stand_on_no_line_no_marker_and_no_other_label_and_inside(corner):
    figure = new_figure()
    axes = add_axes(figure)
    places = [(0.5, 0.5), (0.53, 0.52), (0.5, 0.45), corner]
    axes.plot([0, 1], [0.2, 0.8], "-")
    axes.errorbar(*places[0], xerr=0.2, yerr=0.2)
    for place in places:
        axes.plot(*place, "o", markersize=6)
    add_labels(axes, [(text, place, TEXT) for text, place in zip(("0 to 0.25", "x2", "x0.5", "x4"), places, strict=True)])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert [text.xy for text in axes.texts] == places
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    share = np.linspace(0, 1, 200)[:, None]
    bars = [np.hstack([0.3 + 0.4 * share, 0.5 + 0 * share]), np.hstack([0.5 + 0 * share, 0.3 + 0.4 * share])]
    drawn = axes.transData.transform(
        np.concatenate(
            [
                places,
                np.hstack([share, 0.2 + 0.6 * share]),
                *bars,
            ]
        )
    )
    assert not any(box.contains(*point) for box in boxes for point in drawn)
    assert all(axes.bbox.contains(*at) for box in boxes for at in (box.p0, box.p1))


@pytest.mark.parametrize("kind", ["a line that is mostly outside", "an arrow"])
def test_labels_stand_on_no_long_line_and_no_arrow(kind):
    figure = new_figure()
    axes = add_axes(figure)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    start, end = (
        (np.array([-49.5, -49.42]), np.array([50.5, 50.58])) if kind != "an arrow" else (np.array([0, 0.1]), np.array([0.9, 1.0]))
    )
    if kind == "an arrow":
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->"})
    else:
        axes.plot(*zip(start, end, strict=True), "-")
    places = [(at, at) for at in np.linspace(0.1, 0.85, 12)]
    add_labels(axes, [("label", place, TEXT) for place in places])
    figure.draw_without_rendering()
    drawn = axes.transData.transform(start + np.linspace(0, 1, 20_000)[:, None] * (end - start))
    for text in axes.texts[-len(places) :]:
        box = text.get_window_extent().get_points()
        assert not ((drawn > box[0]) & (drawn < box[1])).all(axis=1).any()
