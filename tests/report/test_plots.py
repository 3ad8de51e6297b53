import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from trl_pafo.errors import ConfigError, DataError
from trl_pafo.report.plots import plot_majority_minority


def at(majority, minority, name, reach=0.02):
    def interval(value):
        return {"value": value, "low": max(0.0, value - reach), "high": min(1.0, value + reach)}

    return {"name": name, "majority": interval(majority), "minority": interval(minority)}


POINTS = [
    at(0.97, 0.60, "Bradley-Terry"),
    at(0.98, 0.44, "personalized BT"),
    at(0.97, 0.93, "PAFO"),
    at(0.975, 0.97, "group-routed teachers"),
]
CROWD = [at(0.66 + 0.004 * i, 0.5 + 0.01 * (i % 3), f"method number {i}") for i in range(9)]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were made."""
    figures = []
    original = Figure.__init__

    def keep(self, *args, **kwargs):
        original(self, *args, **kwargs)
        figures.append(self)

    monkeypatch.setattr(Figure, "__init__", keep)
    return figures


def labels_of(figure):
    return {text.get_text(): text for text in figure.axes[0].texts}


def test_picture_is_1200_pixels_wide_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "plot.png"
    path.write_bytes(b"old")
    plot_majority_minority(POINTS, path, reference="personalized BT", title="Styles")
    picture = imread(path)
    assert picture.shape[1] == 1200
    assert picture[..., :3].std() > 0.02
    assert [file.name for file in tmp_path.iterdir()] == ["plot.png"]


def test_failure_keeps_the_old_picture(tmp_path, monkeypatch):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    original = FigureCanvasAgg.print_png

    def fail(self, file, **kwargs):
        if not isinstance(file, Path):  # Matplotlib's own, to measure text.
            return original(self, file, **kwargs)
        file.write_bytes(b"half a pict")
        raise OSError("disk full")

    monkeypatch.setattr(FigureCanvasAgg, "print_png", fail)
    path = tmp_path / "plot.png"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        plot_majority_minority(POINTS, path, reference=None)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["plot.png"]


@pytest.mark.parametrize("points", [POINTS, CROWD, [at(0.9, 0.9, f"same {i}") for i in range(4)]], ids=["usual", "crowd", "same"])
def test_names_lie_inside_and_hide_neither_each_other_nor_a_point(points, tmp_path, drawn):
    plot_majority_minority(points, tmp_path / "plot.png", reference=None)
    axes = drawn[0].axes[0]
    labels = labels_of(drawn[0])
    assert set(labels) == {point["name"] for point in points}
    boxes = {name: matplotlib.text.Text.get_window_extent(text) for name, text in labels.items()}
    for name, box in boxes.items():
        assert axes.bbox.x0 <= box.x0
        assert box.x1 <= axes.bbox.x1
        assert axes.bbox.y0 <= box.y0
        assert box.y1 <= axes.bbox.y1
        assert not any(box.overlaps(other) for other_name, other in boxes.items() if other_name != name)
        for point in points:
            assert not box.contains(*axes.transData.transform((point["majority"]["value"], point["minority"]["value"])))


def test_points_and_intervals_are_where_the_numbers_say(tmp_path, drawn):
    plot_majority_minority(POINTS, tmp_path / "plot.png", reference=None)
    containers = drawn[0].axes[0].containers
    assert len(containers) == len(POINTS)
    for container, point in zip(containers, POINTS, strict=True):
        line, _, bars = container
        assert line.get_xydata().tolist() == [[point["majority"]["value"], point["minority"]["value"]]]
        across, up = (bar.get_segments()[0] for bar in bars)
        assert across[:, 0] == pytest.approx([point["majority"]["low"], point["majority"]["high"]])
        assert up[:, 1] == pytest.approx([point["minority"]["low"], point["minority"]["high"]])
        for axis, ends in ((0, drawn[0].axes[0].get_xlim()), (1, drawn[0].axes[0].get_ylim())):
            assert ends[0] < (across, up)[axis][:, axis].min()
            assert (across, up)[axis][:, axis].max() < ends[1]


def test_an_interval_that_is_not_known_has_no_bar(tmp_path, drawn):
    unknown = {"value": 0.5, "low": float("nan"), "high": None}
    points = [POINTS[0], {**POINTS[1], "minority": unknown}]
    plot_majority_minority(points, tmp_path / "plot.png", reference=None, names=("road", "rail"))
    axes = drawn[0].axes[0]
    assert [len(container[2]) for container in axes.containers] == [2, 1]
    assert "No bar: too few users" in drawn[0].get_supxlabel()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Accuracy, road", "Accuracy, rail")


def test_methods_differ_in_color_and_marker(tmp_path, drawn):
    plot_majority_minority([at(0.5 + i / 100, 0.5, str(i)) for i in range(30)], tmp_path / "plot.png", reference=None)
    lines = [container[0] for container in drawn[0].axes[0].containers]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 30
    assert len({line.get_marker() for line in lines[:8]}) == 8


def test_pareto_region_starts_at_the_reference(tmp_path, drawn):
    plot_majority_minority(POINTS, tmp_path / "a.png", reference="Bradley-Terry")
    plot_majority_minority(POINTS, tmp_path / "b.png", reference=None)

    def regions(figure):
        return [c for c in figure.axes[0].collections if type(c).__name__ in ("FillBetweenPolyCollection", "PolyCollection")]

    (region,) = regions(drawn[0])
    vertices = region.get_paths()[0].vertices
    assert vertices.min(axis=0).tolist() == [0.97, 0.60]
    assert vertices.max(axis=0).tolist() == [1.0, 1.0]
    assert "neither group below Bradley-Terry" in drawn[0].get_supxlabel()
    assert not regions(drawn[1])
    assert "Shaded" not in drawn[1].get_supxlabel()


def test_hidden_markers_show_as_a_rim(tmp_path, drawn):
    plot_majority_minority([at(0.9, 0.8, "a"), at(0.9, 0.8, "b"), at(0.7, 0.6, "c")], tmp_path / "p.png", reference=None)
    sizes = [container[0].get_markersize() for container in drawn[0].axes[0].containers]
    assert sizes[0] > sizes[1] == sizes[2]


def test_names_are_not_read_as_formulas(tmp_path, drawn):
    plot_majority_minority([at(0.9, 0.8, "cost $a$ and $b")], tmp_path / "p.png", reference="cost $a$ and $b", title="$x$")
    assert not labels_of(drawn[0])["cost $a$ and $b"].get_parse_math()


def test_noise_is_not_blown_up_and_perfect_scores_fit(tmp_path, drawn):
    plot_majority_minority([at(1.0, 1.0, "perfect", reach=0.0)], tmp_path / "p.png", reference="perfect")
    for low, high in (drawn[0].axes[0].get_xlim(), drawn[0].axes[0].get_ylim()):
        assert high - low >= 0.15
        assert 1.0 < high < 1.05


def test_pyplot_stays_out(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    settings = matplotlib.rcParams.copy()
    plot_majority_minority(POINTS, tmp_path / "p.png", reference=None)
    assert ("matplotlib.pyplot" in sys.modules) == before
    assert matplotlib.rcParams.copy() == settings


def test_unusable_points(tmp_path):
    path = tmp_path / "p.png"
    with pytest.raises(DataError, match="give at least one point"):
        plot_majority_minority([], path, reference=None)
    with pytest.raises(DataError, match="same name"):
        plot_majority_minority([POINTS[0], POINTS[0]], path, reference=None)
    with pytest.raises(ConfigError, match="`reference` must be one of the plotted methods"):
        plot_majority_minority(POINTS, path, reference="baseline")
    for wrong in ({"value": 0.5, "low": 0.6, "high": 0.7}, {"value": 0.5}, {"value": np.nan, "low": 0.1, "high": 0.9}):
        with pytest.raises(DataError, match="The minority accuracy of 'x' needs 0 <= low <= value <= high <= 1"):
            plot_majority_minority([{**POINTS[0], "name": "x", "minority": wrong}], path, reference=None)
    assert not path.exists()
