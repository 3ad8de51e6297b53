import numpy as np
import pytest
from matplotlib.colors import to_hex

from trl_pafo.plotting import COLORS, GROUP_COLORS
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


def test_group_bars_have_the_numbers_lengths():
    accuracies = {"majority": {"A": interval(0.9), "B": interval(0.95)}, LONG: {"A": interval(0.3), "B": interval(1.0, 0)}}
    figure = pictures.draw_group_accuracy(accuracies, {"A": 0, "B": 2})
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.9, 0.95, 0.3, 1.0]
    assert [to_hex(bar.get_facecolor()).upper() for bar in axes.patches[:2]] == [COLORS[0], COLORS[2]]
    ends = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] != line.get_xdata()[1]]
    assert sorted(map(tuple, ends))[0] == pytest.approx((0.25, 0.35))
    assert "1.000" in [text.get_text() for text in axes.texts]
    assert inside(figure)


@pytest.mark.parametrize("number", [1, 2, 7])
def test_any_number_of_groups_fits(number):
    groups = [f"group {i} {LONG}" for i in range(number)]
    figure = pictures.draw_group_accuracy(
        {g: {m: interval(0.5) for m in "ABCDE"} for g in groups}, {m: i for i, m in enumerate("ABCDE")}
    )
    assert inside(figure)
    heights = [bar.get_window_extent().height / figure.dpi * 72 for bar in figure.axes[0].patches]
    assert min(heights) > 7
    figure = pictures.draw_differences({m: {g: interval(0.1) for g in groups} for m in "ABC"}, {m: 0 for m in "ABC"}, "ref")
    assert inside(figure)


def test_differences_show_zero_and_every_interval():
    differences = {
        "PAFO": {"rail": {"value": 0.2, "low": 0.1, "high": 0.4}, "road": {"value": -0.01, "low": -0.03, "high": 0.01}},
        "group_routed": {"rail": {"value": 0.3, "low": 0.2, "high": 0.45}},
    }
    axes = pictures.draw_differences(differences, {"PAFO": 2, "group_routed": 3}, "BT").axes[0]
    low, high = axes.get_xlim()
    assert low < -0.03 <= 0 <= 0.45 < high
    assert [text.get_text() for text in axes.texts] == ["PAFO", "group_routed"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["rail", "road", "rail"]
    dots = [line.get_xdata()[0] for line in axes.lines if line.get_marker() not in ("None", None, "")]
    assert dots == [0.2, -0.01, 0.3]


def test_support_draws_discs_by_number_of_users():
    user = ["a", "a", "b", "b", "c", "c", "d", "d"]
    correct = np.array([1, 1, 1, 1, 1, 0, 0, 0.0])
    support = np.array([0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.1, 0.1])
    figure = pictures.draw_user_support(correct, user, support, [(0.1, interval(0)), (0.9, interval(0.83))], 1)
    discs = figure.axes[0].collections[0]
    sizes = dict(zip(map(tuple, discs.get_offsets().tolist()), discs.get_sizes(), strict=True))
    assert set(sizes) == {(0.9, 1.0), (0.9, 0.5), (0.1, 0.0)}
    assert sizes[0.9, 1.0] > sizes[0.9, 0.5] == sizes[0.1, 0.0]
    assert inside(figure)


def test_training_draws_what_was_logged():
    history = [{"step": s, "loss": 1 / s, "accuracy": 0.1 * s, "distillation_loss": 2.0} for s in (1, 2, 3)] + [
        {"step": 3, "train_loss": 1}
    ]
    above, below = pictures.draw_training(history).axes
    assert {line.get_label(): line.get_ydata().tolist() for line in above.lines} == {
        "loss": [1, 0.5, 1 / 3],
        "distillation part": [2, 2, 2],
    }
    assert below.lines[0].get_ydata() == pytest.approx([0.1, 0.2, 0.3])


def test_training_draws_groups_where_they_were_seen():
    history = [{"step": 1, "loss": 1, "accuracy": 0.5, "accuracy/a": 0.5, "accuracy/b": float("nan")}]
    history.append({"step": 2, "loss": 1, "accuracy": 0.6, "accuracy/a": 0.7, "accuracy/b": 0.2})
    figure = pictures.draw_training(history, ["a", "b", "c"])
    drawn = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[1].lines}
    assert drawn == {"all": [[1, 0.5], [2, 0.6]], "a": [[1, 0.5], [2, 0.7]], "b": [[2, 0.2]]}
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["loss", "accuracy, all", "accuracy, a", "accuracy, b"]
    assert inside(figure)
    assert len(pictures.draw_training(history).legends[0].get_texts()) == 1


def test_margins_count_the_quarters_with_ties_half():
    teacher, student = np.array([1, 2, -1, -2, 3.0]), np.array([1, -1, -1, 1, 0.0])
    axes = pictures.draw_margins(teacher, student, 2, LONG).axes[0]
    assert [text.get_text() for text in axes.texts] == [".200", ".200", ".200", ".400"]
    assert axes.get_title() == "same side on .500 of 5 pairs"
    for limits in (axes.get_xlim(), axes.get_ylim()):
        assert limits[0] == -limits[1]


def test_at_most_300_points_are_drawn_and_the_shares_are_of_all():
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(2, 1000))
    axes = pictures.draw_margins(teacher, student, 0, "x").axes[0]
    assert len(axes.collections[0].get_offsets()) == 300
    assert axes.texts[0].get_text() == f"{np.mean((teacher > 0) & (student > 0)):.3f}".lstrip("0")


def test_principal_components_are_those_of_the_covariance():
    states = np.random.default_rng(0).normal(size=(40, 6)) * [5, 3, 1, 1, 1, 1]
    places, shares = pictures.principal_components(states)
    values, vectors = np.linalg.eigh(np.cov(states.T, bias=True))
    assert shares == pytest.approx(values[::-1][:2] / values.sum())
    expected = (states - states.mean(0)) @ vectors[:, ::-1][:, :2]
    assert np.abs(places) == pytest.approx(np.abs(expected))
    assert (places[np.abs(places).argmax(0), [0, 1]] > 0).all()


@pytest.mark.parametrize("states", [np.ones((3, 4)), np.ones((1, 4)), np.array([[1.0], [2.0]])])
def test_states_that_do_not_vary_are_no_error(states):
    places, shares = pictures.principal_components(states)
    assert np.isfinite(places).all()
    assert np.isfinite(shares).all()


def test_hidden_states_color_the_history_and_mark_the_pair():
    group, shown = ["rail", "rail", "road", "road"], ["rail", "road", "rail", "road"]
    figure = pictures.draw_hidden_states(np.eye(4), group, shown, ["rail", "road"])
    drawn = [c for c in figure.axes[0].collections if len(c.get_offsets())]
    assert [to_hex(c.get_facecolor()[0]).upper() for c in drawn] == [GROUP_COLORS[0]] * 2 + [GROUP_COLORS[1]] * 2
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["history of rail", "history of road", "pair of rail", "pair of road"]
    bare = pictures.draw_hidden_states(np.eye(4), group, [""] * 4, ["rail", "road"])
    assert [text.get_text() for text in bare.legends[0].get_texts()] == ["pair of rail", "pair of road"]
    assert inside(figure)
