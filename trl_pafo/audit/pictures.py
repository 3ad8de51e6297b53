"""The pictures of an audit."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_pafo.audit.text import interval
from trl_pafo.metrics.verdict import format_number
from trl_pafo.plotting import (
    COLORS,
    GROUP_COLORS,
    MUTED,
    PAPER,
    TEXT,
    WIDTH_INCHES,
    add_axes,
    add_legend,
    new_figure,
    short,
    write_png,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = ("support.png", "headroom.png")
_PROBES = {
    "no_history": ("shared, no history", "#BBBBBB"),
    "shared": ("shared, sees the history", COLORS[0]),
    "teacher": ("teacher of the group's own", COLORS[1]),
}


def draw_pictures(result: dict[str, Any], folder: Path) -> list[str]:
    """Write the pictures of an audit to a folder; return their names."""
    figures = {PICTURES[0]: draw_support(result["counts"]["groups"])}
    if result["headroom"] is not None:
        figures[PICTURES[1]] = draw_headroom(result["headroom"]["groups"])
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


def draw_headroom(groups: dict[str, Any]) -> "Figure":
    """Accuracy of the three probes for each group, and the headroom with its interval below them."""
    figure = new_figure(width=max(WIDTH_INCHES, 1.7 * len(groups)), height=3.6)
    axes = add_axes(figure, "", "held-out accuracy (dashed: a coin)", grid="y")
    for number, (probe, (label, color)) in enumerate(_PROBES.items()):
        heights = [group[probe] for group in groups.values()]
        bars = axes.bar(np.arange(len(groups)) + 0.28 * (number - 1), heights, width=0.26, color=color, label=label)
        axes.bar_label(bars, [format_number(height) for height in heights], fontsize=8, color=TEXT, padding=1)
    axes.axhline(0.5, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    labels = [f"{short(name)}\n{group['num_users']:,} users\n{interval(group['gain'], True)}" for name, group in groups.items()]
    axes.set_xticks(np.arange(len(groups)), labels, parse_math=False)
    axes.set_xlabel("headroom: own teacher minus shared", fontsize=9, color=TEXT)
    axes.set_ylim(0, 1.08)
    add_legend(figure, *axes.get_legend_handles_labels())
    return figure
