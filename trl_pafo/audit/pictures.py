"""The pictures of an audit. Figures are objects, as in [`~trl_pafo.report.plots`]."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_pafo.audit.verdict import interval
from trl_pafo.metrics.verdict import format_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUPPORT, ACCURACY, HEADROOM = "support.png", "accuracy_by_support.png", "headroom.png"
# Okabe and Ito's colors, told apart by color-blind readers.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_TEXT, _GRAY = "#333333", "#888888"
_SIZE_INCHES = (8.0, 5.4)
_DPI = 150


def draw_pictures(result: dict[str, Any], folder: Path) -> list[str]:
    """Write the pictures of an audit to a folder; return their names."""
    names = [SUPPORT]
    draw_support(result, folder / SUPPORT)
    if result["accuracy"] is not None:
        draw_accuracy(result, folder / ACCURACY)
        names.append(ACCURACY)
    if result["headroom"] is not None:
        draw_headroom(result["headroom"], folder / HEADROOM)
        names.append(HEADROOM)
    return names


def draw_support(result: dict[str, Any], path: Path) -> None:
    """How many users have how much support, the groups on top of each other."""
    axes, save = _figure(path)
    edges = np.array(result["support"]["edges"])
    bottom = np.zeros(len(edges) - 1)
    order = [name for name in result["counts"]["groups"] if name in result["support"]["users"]]
    for number, name in enumerate(order):
        counts = np.array(result["support"]["users"][name], dtype=np.float64)
        axes.bar(
            edges[:-1],
            counts,
            width=np.diff(edges),
            bottom=bottom,
            align="edge",
            color=_COLORS[number % len(_COLORS)],
            edgecolor="white",
            linewidth=0.8,
            label=f"{name}: {int(counts.sum()):,} users",
        )
        bottom += counts
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1.08 * bottom.max())
    axes.set_xlabel("Support rate of a user's preferences", fontsize=12, color=_TEXT)
    axes.set_ylabel("Users", fontsize=12, color=_TEXT)
    axes.grid(axis="x", visible=False)
    _legend(axes, min(len(order), 3))
    save()


def draw_accuracy(result: dict[str, Any], path: Path) -> None:
    """User accuracy against support: users as dots, means of bins with intervals, the trend, and the noise ceiling."""
    axes, save = _figure(path)
    trend = result["accuracy"]["trend"]
    users, bins = trend["users"], trend["bins"]
    support, pairs = np.array(users["support"]), np.array(users["pairs"], dtype=np.float64)
    low, high = support.min(), support.max()
    room = max(0.05 * (high - low), 0.02)
    rng = np.random.default_rng(0)
    # Many users share a support rate and an accuracy: moved apart a little, they can be seen to be many.
    jitter = rng.uniform(-0.5, 0.5, (2, len(support)))
    axes.scatter(
        support + jitter[0] * room,
        np.array(users["accuracy"]) + jitter[1] * 0.03,
        s=np.clip(4.0 * pairs, 8, 60),
        color="#56B4E9",
        alpha=0.35,
        linewidth=0,
        label="a user (moved a little; large: many pairs)",
        zorder=2,
    )
    value, slope = trend["spearman"], trend["slope"]["value"]
    if slope is not None:
        ends = np.array([low, high])
        axes.plot(
            ends,
            trend["intercept"] + slope * ends,
            color=_COLORS[1],
            linewidth=2,
            label=f"trend; Spearman {interval(value, True)}",
            zorder=3,
        )
    middle = [entry["mean"] for entry in bins]
    _bars(axes, middle, [entry["accuracy"] for entry in bins], _COLORS[0], "o", "accuracy, 95 % over users")
    capped = [(entry["mean"], entry["ceiling"]) for entry in bins if entry.get("ceiling")]
    noise = result["noise"]
    if capped:
        offset = 0.15 * room
        _bars(
            axes, [x + offset for x, _ in capped], [c for _, c in capped], "#009E73", "^", "noise ceiling: majority of the others"
        )
    elif "known" in noise:
        label = f"noise ceiling, known: {format_number(noise['known'])}"
        axes.axhline(noise["known"], color="#009E73", linewidth=1.6, linestyle=(0, (4, 2)), label=label, zorder=1)
    axes.axhline(0.5, color=_GRAY, linewidth=1.1, linestyle=(0, (1, 2)), label="a coin", zorder=1)
    axes.set_xlim(max(low - 2 * room, -0.02 - room), min(high + 2 * room, 1.02 + room))
    axes.set_ylim(-0.04, 1.05)
    axes.set_xlabel("Support rate of the user's preferences", fontsize=12, color=_TEXT)
    judge = "model" if result["accuracy"]["judge"].startswith("model ") else "shared probe"
    axes.set_ylabel(f"Accuracy of the {judge}", fontsize=12, color=_TEXT)
    _legend(axes, 2)
    save()


def draw_headroom(headroom: dict[str, Any], path: Path) -> None:
    """Accuracy of the three probes for each group, and the headroom with its interval above them."""
    names = list(headroom["groups"])
    axes, save = _figure(path, width=max(_SIZE_INCHES[0], 2.7 * len(names)))
    kinds = (
        ("no_history", "shared, no history", "#BBBBBB"),
        ("shared", "shared, sees the history", _COLORS[0]),
        ("teacher", "teacher of the group's own", _COLORS[1]),
    )
    for number, (kind, label, color) in enumerate(kinds):
        places = np.arange(len(names)) + 0.26 * (number - 1)
        heights = [headroom["groups"][name][kind] for name in names]
        axes.bar(places, heights, width=0.24, color=color, label=label, zorder=2)
        for x, height in zip(places, heights, strict=True):
            axes.annotate(
                format_number(height),
                (x, height),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=10,
                color=_TEXT,
                bbox={"facecolor": "white", "linewidth": 0, "pad": 0.8},
                zorder=4,
            )
    axes.axhline(0.5, color=_GRAY, linewidth=1.1, linestyle=(0, (1, 2)), label="a coin", zorder=3)
    labels = [f"{name}\n{g['num_users']:,} users\nheadroom {interval(g['gain'], True)}" for name, g in headroom["groups"].items()]
    axes.set_xticks(np.arange(len(names)), labels, fontsize=11, parse_math=False)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(0, 1.08)
    axes.set_ylabel("Accuracy on users and prompts not fitted", fontsize=12, color=_TEXT)
    axes.grid(axis="x", visible=False)
    _legend(axes, 2)
    save()


def _bars(axes: "Axes", x: list[float], numbers: list[dict[str, float]], color: str, marker: str, label: str) -> None:
    value, low, high = (np.array([number[key] for number in numbers], dtype=np.float64) for key in ("value", "low", "high"))
    axes.errorbar(
        x,
        value,
        yerr=[value - low, high - value],
        color=color,
        marker=marker,
        markersize=8,
        markeredgecolor="white",
        linestyle="none",
        linewidth=1.6,
        capsize=3,
        label=label,
        zorder=4,
    )


def _figure(path: Path, width: float = _SIZE_INCHES[0]) -> tuple["Axes", Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, _SIZE_INCHES[1]), dpi=_DPI, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=10, colors=_TEXT)
    axes.spines[["top", "right"]].set_visible(False)
    return axes, lambda: canvas.print_png(path)


def _legend(axes: "Axes", columns: int) -> None:
    """A legend above the plot, where it hides nothing."""
    axes.figure.legend(loc="outside upper left", ncols=columns, fontsize=10, frameon=False)
