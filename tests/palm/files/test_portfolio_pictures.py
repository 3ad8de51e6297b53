"""What the pictures of a portfolio show: numbers and names in the figure, not its pixels alone."""

import numpy as np
import pytest
from helpers.fronts import Finite
from PIL import Image

from trl_pafo.errors import PortfolioError
from trl_pafo.metrics.plotting import write_png
from trl_pafo.palm import Portfolio, build_portfolio, serve
from trl_pafo.palm.files.pictures import draw_cells, draw_gap, draw_sizes, draw_usage


def make(num_rewards: int) -> Portfolio:
    values = np.random.default_rng(0).random((15, num_rewards))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    names = ["helpful", "harmless $x$", "humour", "brevity"][:num_rewards]
    return build_portfolio(Finite(values), num_rewards, 0.08, reward_names=names, progress=False)


@pytest.fixture(scope="module")
def three() -> Portfolio:
    return make(3)


def texts(figure) -> str:
    """All that a figure says."""
    axes = figure.axes[0]
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return "\n".join([axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), *(t.get_text() for t in axes.texts), *legends])


def test_the_cells_of_a_triangle_are_those_of_choose(three: Portfolio, tmp_path) -> None:
    users = np.random.default_rng(1).dirichlet(np.ones(3), 20)
    figure = draw_cells(three, users, ["majority"] * 15 + ["minority"] * 5)
    patches = figure.axes[0].patches
    assert len(patches) == len(three)
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])
    for weights in users:
        inside = [place for place, patch in enumerate(patches) if patch.get_path().contains_point(weights @ corners)]
        assert inside == [three.choose(weights)]
    write_png(figure, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        assert image.width == 1216
    said = texts(figure)
    for expected in ("helpful alone", "harmless $x$ alone", "7", "majority", "minority", f"{three.gap:.4f}", "objective w.R"):
        assert expected in said


def test_two_rewards_are_lines() -> None:
    two = make(2)
    assert "weight of harmless $x$ (the rest: helpful)" in texts(draw_cells(two, [[0.2, 0.8]]))
    gap = draw_gap(two)
    assert two.gap - 2e-3 < max(gap.axes[0].lines[0].get_ydata()) <= two.gap + 1e-9
    assert f"certified over all weights: {two.gap:.4f}" in texts(gap)


def test_the_map_of_the_gap_has_its_worst_weights(three: Portfolio) -> None:
    figure = draw_gap(three)
    assert three.gap - 0.01 < figure.axes[0].collections[0].get_array().max() <= three.gap + 1e-9
    assert f"certified worst: {three.gap:.4f}" in texts(figure)


def test_four_rewards_have_a_gap_and_no_cells() -> None:
    four = make(4)
    figure = draw_gap(four)
    heights = np.asarray(figure.axes[0].lines[0].get_ydata())
    assert (np.diff(heights) >= 0).all()
    assert heights[-1] <= four.gap + 1e-9
    assert "share of 20,000 weights" in texts(figure)
    with pytest.raises(PortfolioError, match="for 2 or 3 rewards, not for 4; draw_gap works"):
        draw_cells(four)


def test_sizes_and_usage(three: Portfolio) -> None:
    rows = [
        {"method": m, "size": n, "gap": g / n, "low": g / n / 2, "high": g, "draws": 10, "calls": n}
        for n in (1, 2, 3)
        for m, g in {"PALM": 0.01, "uniform": 0.2, "random": 0.4}.items()
    ]
    figure = draw_sizes(rows, "relative gap")
    assert [line.get_label() for line in figure.axes[0].lines] == ["PALM", "uniform", "random"]
    assert figure.axes[0].lines[1].get_ydata().tolist() == pytest.approx([0.2, 0.1, 0.2 / 3])
    assert "worst relative gap" in texts(figure)
    users = np.random.default_rng(1).dirichlet(np.ones(3), 40)
    service = serve(three, users, ["a"] * 30 + ["b"] * 10)
    usage = draw_usage(service)
    groups = {group.name: group for group in service.by_group()}
    assert [bar.get_height() for bar in usage.axes[0].patches] == pytest.approx([*groups["a"].usage, *groups["b"].usage])
    assert f"perplexity {service.perplexity:.2f}" in texts(usage)


def test_bad_input(three: Portfolio) -> None:
    with pytest.raises(PortfolioError, match="adding up to 1"):
        draw_cells(three, [[0.5, 0.5, 0.5]])
    with pytest.raises(PortfolioError, match="2 users and 1 groups"):
        draw_cells(three, [[1, 0, 0], [0, 1, 0]], ["a"])
