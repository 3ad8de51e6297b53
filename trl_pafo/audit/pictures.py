"""The pictures of an audit."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_pafo.plotting import GROUP_COLORS, PAPER, add_axes, add_legend, new_figure, short, write_png
from trl_pafo.report.front import draw_front

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = ("support.png", "front.png")


def draw_pictures(result: dict[str, Any], folder: Path) -> list[str]:
    """Write the pictures of an audit to a folder; return their names."""
    figures = {PICTURES[0]: draw_support(result["counts"]["groups"])}
    front = None if result["front"] is None else draw_front(result["front"])
    figures |= {} if front is None else {PICTURES[1]: front}
    for name, figure in figures.items():
        write_png(figure, folder / name)
    return list(figures)


def draw_support(groups: dict[str, Any]) -> "Figure":
    """How many users have how much support, the groups on top of each other."""
    figure = new_figure(height=3.2)
    axes = add_axes(figure, "support rate of a user's preferences", "users", grid="y")
    colors = [GROUP_COLORS[number % len(GROUP_COLORS)] for number in range(len(groups))]
    # Bins around 0, 0.05, ... 1, so that rates of few pairs fall into the middle of one.
    rates = [group["support_rates"] for group in groups.values()]
    labels = [f"{short(name)}: {group['users']:,} users" for name, group in groups.items()]
    look: dict[str, Any] = {"color": colors, "label": labels, "edgecolor": PAPER, "linewidth": 0.6}
    axes.hist(rates, np.arange(-0.025, 1.05, 0.05).tolist(), stacked=True, **look)
    axes.set_xlim(-0.03, 1.03)
    add_legend(figure, *axes.get_legend_handles_labels())
    return figure
