import itertools

import numpy as np
import pytest
from matplotlib.colors import to_hex

from trl_pafo.metrics.plotting import COLORS, MARKERS
from trl_pafo.report import pictures

LONG = "people who travel by train and like $x$ & <b>"


def interval(value, reach=0.05):
    return {"value": value, "low": max(0, value - reach), "high": min(1, value + reach)}


def inside(figure):
    """Whether every text that is drawn lies within the figure."""
    figure.draw_without_rendering()
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        texts += [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert len(boxes) > 4
    width, height = figure.canvas.get_width_height()
    return all(min(box.x0, box.y0) >= -2 and box.x1 <= width + 2 and box.y1 <= height + 2 for box in boxes)


def at(majority, minority, name, series=0, reach=0.02):
    return {"name": name, "series": series, "majority": interval(majority, reach), "minority": interval(minority, reach)}


POINTS = [at(0.97, 0.60, "Bradley-Terry"), at(0.98, 0.44, "personalized BT", 1), at(0.97, 0.93, "PAFO", 2)]


def markers(axes):
    return [line for line in axes.lines if line.get_marker() in MARKERS]


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_points_and_intervals_are_where_the_numbers_say():
    figure = pictures.draw_majority_minority(POINTS, names=("road", "rail"))
    axes = figure.axes[0]
    assert legend_of(figure) == [*(point["name"] for point in POINTS), "both groups served alike"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("accuracy, road", "accuracy, rail")
    assert [tuple(line.get_xydata()[0]) for line in markers(axes)] == [(0.97, 0.60), (0.98, 0.44), (0.97, 0.93)]
    for container, point in zip(axes.containers, POINTS, strict=True):
        across, up = (bar.get_segments()[0] for bar in container[2])
        assert across[:, 0] == pytest.approx([point["majority"]["low"], point["majority"]["high"]])
        assert up[:, 1] == pytest.approx([point["minority"]["low"], point["minority"]["high"]])
        for axis, (low, high) in enumerate((axes.get_xlim(), axes.get_ylim())):
            assert low < (across, up)[axis][:, axis].min() <= (across, up)[axis][:, axis].max() < high
    assert inside(figure)


def test_an_interval_that_is_not_known_has_no_bar():
    unknown = {"value": 0.5, "low": float("nan"), "high": None}
    axes = pictures.draw_majority_minority([POINTS[0], {**POINTS[1], "minority": unknown}]).axes[0]
    assert [len(container[2]) for container in axes.containers] == [2, 1]


def test_methods_differ_in_color_and_marker_and_hidden_ones_show_as_a_rim():
    points = [at(0.5, 0.5, str(i), i) for i in range(30)]
    drawn = markers(pictures.draw_majority_minority(points).axes[0])
    assert len({(line.get_color(), line.get_marker()) for line in drawn}) == 30
    sizes = [line.get_markersize() for line in drawn[:4]]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


def test_pareto_region_starts_at_the_reference():
    figure = pictures.draw_majority_minority(POINTS, reference="Bradley-Terry")
    (region,) = [c for c in figure.axes[0].collections if type(c).__name__ in ("FillBetweenPolyCollection", "PolyCollection")]
    assert region.get_paths()[0].vertices.min(axis=0).tolist() == [0.97, 0.60]
    assert region.get_paths()[0].vertices.max(axis=0).tolist() == [1.0, 1.0]
    assert legend_of(figure)[-1] == "neither below Bradley-Terry"


def test_the_path_is_a_line_through_its_points_with_a_label_at_each():
    places = [(0.99, 0.30), (0.985, 0.35), (0.98, 0.44), (0.975, 0.43)]
    path = [{"label": f"x{2**i}", "majority": x, "minority": y} for i, (x, y) in enumerate(places)]
    figure = pictures.draw_majority_minority(POINTS, path=path)
    axes = figure.axes[0]
    (line,) = [line for line in axes.lines if len(line.get_xdata()) == 4]
    assert list(map(tuple, line.get_xydata())) == places
    assert to_hex(line.get_color()).upper() == COLORS[1]
    assert axes.get_ylim()[0] < 0.30
    assert "x times the student's steps" in legend_of(figure)
    assert inside(figure)
    labels = [text for text in axes.texts if text.get_text()]
    assert [(text.get_text(), text.xy) for text in labels] == [(p["label"], at) for p, at in zip(path, places, strict=True)]
    boxes = [text.get_window_extent() for text in labels]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    drawn = axes.transData.transform([*places, *(tuple(line.get_xydata()[0]) for line in markers(axes))])
    assert not any(box.contains(*place) for box in boxes for place in drawn)


def test_noise_is_not_blown_up_and_perfect_scores_fit():
    axes = pictures.draw_majority_minority([at(1.0, 1.0, "perfect", reach=0.0)]).axes[0]
    for low, high in (axes.get_xlim(), axes.get_ylim()):
        assert high - low >= 0.15
        assert 1.0 < high < 1.05


def test_numbers_by_group_stand_at_their_values_with_their_intervals():
    unknown = {"value": 0.3, "low": None, "high": None}
    numbers = {"rail": {"PAFO": {"value": 0.2, "low": 0.1, "high": 0.4}, "BT": unknown}}
    numbers["road"] = {"PAFO": {"value": -0.01, "low": -0.03, "high": 0.01}, "BT": unknown}
    figure = pictures.draw_differences(numbers, {"PAFO": 2, "BT": 3}, "it")
    axes = figure.axes[0]
    drawn = markers(axes)
    assert [line.get_xdata()[0] for line in drawn] == [0.2, 0.3, -0.01, 0.3]
    assert [to_hex(line.get_color()).upper() for line in drawn] == [COLORS[2], COLORS[3]] * 2
    ends = [container[2][0].get_segments()[0][:, 0].tolist() for container in axes.containers if container[2]]
    assert ends == [pytest.approx([0.1, 0.4]), pytest.approx([-0.03, 0.01])]
    assert [text.get_text() for text in axes.texts] == ["+.200", "+.300", "-.010", "+.300"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["rail", "road"]
    assert legend_of(figure) == ["PAFO", "BT"]
    assert inside(figure)


@pytest.mark.parametrize("number", [1, 2, 7])
def test_any_number_of_groups_fits(number):
    groups = {f"group {i} {LONG}": {method: interval(0.9, 0.1) for method in "ABCDE"} for i in range(number)}
    figure = pictures.draw_differences(groups, {method: i for i, method in enumerate("ABCDE")}, "it")
    assert inside(figure)
    assert max(figure.axes[0].get_xticks()) <= 1


def test_numbers_below_wide_intervals_do_not_run_into_each_other():
    figure = pictures.draw_differences({LONG: {"PAFO": {"value": 0.059, "low": -1.0, "high": 1.0}}}, {"PAFO": 0}, "it")
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert len(boxes) >= 3
    assert all(left.x1 + 4 < right.x0 for left, right in itertools.pairwise(boxes))


def test_support_draws_discs_by_number_of_users():
    user = ["a", "a", "b", "b", "c", "c", "d", "d"]
    correct = np.array([1, 1, 1, 1, 1, 0, 0, 0.0])
    support = np.array([0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.1, 0.1])
    figure = pictures.draw_user_support(correct, user, support, 1)
    discs = figure.axes[0].collections[0]
    sizes = dict(zip(map(tuple, discs.get_offsets().tolist()), discs.get_sizes(), strict=True))
    assert set(sizes) == {(0.9, 1.0), (0.9, 0.5), (0.1, 0.0)}
    assert sizes[0.9, 1.0] > sizes[0.9, 0.5] == sizes[0.1, 0.0]
    assert inside(figure)
