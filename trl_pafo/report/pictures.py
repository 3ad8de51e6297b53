"""The pictures of a report beside majority against minority accuracy: each takes numbers, and returns a figure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_pafo.metrics import pair_correctness, user_accuracy
from trl_pafo.metrics.accuracy import FloatArray
from trl_pafo.metrics.verdict import format_number, is_known
from trl_pafo.plotting import COLORS, GRID, GROUP_COLORS, MARKERS, MUTED, PAPER, TEXT, ends_of, new_figure, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FONT = 9
_MOST_POINTS = 300
_LOSSES = {  # key of the log: name, color, whether it is a part of another
    "loss": ("loss", TEXT, "-"),
    "bradley_terry_loss": ("Bradley-Terry part", COLORS[0], "--"),
    "distillation_loss": ("distillation part", COLORS[1], ":"),
}

Interval = Mapping[str, float]


def draw_group_accuracy(
    accuracies: Mapping[str, Mapping[str, Interval]], series: Mapping[str, int], counts: Mapping[str, str] | None = None
) -> "Figure":
    """Bars of each group's accuracy under each method, with intervals as far as they are known.

    Args:
        accuracies (`Mapping[str, Mapping]`):
            Group to method to `{"value", "low", "high"}`.
        series (`Mapping[str, int]`):
            Method to the number of its color, in the order of the bars.
        counts (`Mapping[str, str]`, *optional*):
            Group to what is written below its name, such as its numbers of users and pairs.
    """
    thick = 0.8 / len(series)
    figure = new_figure(height=0.9 + 0.19 * len(accuracies) * (len(series) + 1))
    axes = _axes(figure)
    for place, of_method in enumerate(accuracies.values()):
        for i, (method, number) in enumerate(series.items()):
            if method not in of_method:
                continue
            at, numbers = place + (i - (len(series) - 1) / 2) * thick, of_method[method]
            axes.barh(at, numbers["value"], thick * 0.9, color=COLORS[number % len(COLORS)], alpha=0.75, linewidth=0)
            low, high = ends_of(numbers)
            if is_known(numbers["low"]):
                axes.plot([low, high], [at, at], color=TEXT, linewidth=1.2, solid_capstyle="butt")
            axes.text(max(high, numbers["value"]) + 0.015, at, format_number(numbers["value"]), **_small("left"))
    axes.axvline(0.5, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_xlim(0, 1.13)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_ylim(len(accuracies) - 0.45, -0.55)
    labels = [f"{short(group)}\n{counts[group]}" if counts and group in counts else short(group) for group in accuracies]
    axes.set_yticks(range(len(accuracies)), labels, parse_math=False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_xlabel("accuracy (dashed: a coin)", fontsize=_FONT, color=TEXT)
    handles = [_patch(COLORS[number % len(COLORS)]) for number in series.values()]
    _legend(figure, handles, list(series))
    return figure


def draw_differences(differences: Mapping[str, Mapping[str, Interval]], series: Mapping[str, int], reference: str) -> "Figure":
    """Each method's accuracy minus the reference's, group by group, with the simultaneous intervals of the verdict.

    Args:
        differences (`Mapping[str, Mapping]`):
            Method to group to `{"value", "low", "high"}`.
        series (`Mapping[str, int]`):
            Method to the number of its color and marker.
        reference (`str`):
            Name of the reference.
    """
    rows = sum(len(of_group) + 1 for of_group in differences.values())
    figure = new_figure(height=0.75 + 0.21 * rows)
    axes = _axes(figure)
    ends = [end for of_group in differences.values() for d in of_group.values() for end in (d["low"], d["high"])]
    low, high = min([-0.05, *ends]), max([0.05, *ends])
    room = 0.06 * (high - low)
    under = {"facecolor": PAPER, "linewidth": 0, "pad": 1}  # the zero line stops at a name
    ticks: dict[float, str] = {}
    place = 0.0
    for method, of_group in differences.items():
        axes.text(
            low - 0.8 * room, place, method, **{**_small("left"), "fontweight": "bold", "fontsize": _FONT}, bbox=under, zorder=5
        )
        for group, d in of_group.items():
            place += 1
            color, marker = COLORS[series[method] % len(COLORS)], MARKERS[series[method] % len(MARKERS)]
            axes.plot([d["low"], d["high"]], [place, place], color=color, linewidth=1.8, solid_capstyle="butt")
            axes.plot(d["value"], place, color=color, marker=marker, markersize=6, markeredgecolor=PAPER, markeredgewidth=0.7)
            ticks[place] = short(group)
        place += 1.15
    axes.axvline(0, color=TEXT, linewidth=1)
    axes.set_xlim(low - room, high + room)
    axes.locator_params(axis="x", nbins=6)
    axes.set_ylim(place - 0.6, -0.7)
    axes.set_yticks(list(ticks), list(ticks.values()), parse_math=False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_xlabel(f"accuracy minus {reference}'s", fontsize=_FONT, color=TEXT, parse_math=False)
    return figure


def draw_user_support(
    correct: FloatArray, user: Sequence[str], support: FloatArray, means: Sequence[tuple[float, Interval]], series: int
) -> "Figure":
    """User accuracy against support: a dot for the users of equal numbers, its area their number, and means with intervals.

    Args:
        correct (`float` array of shape `(num_pairs,)`):
            Correctness of each pair.
        user (`Sequence[str]`, one a pair):
            Whose it is.
        support (`float` array of shape `(num_pairs,)`):
            Support rate of that user, in [0, 1].
        means (`Sequence[tuple[float, Mapping]]`):
            Support rates and the accuracy there, as `{"value", "low", "high"}`.
        series (`int`):
            Number of the color.
    """
    users, accuracy, _ = user_accuracy(correct, user)
    of_user = dict(zip(user, support, strict=True))
    rate = np.array([of_user[name] for name in users])
    figure = new_figure(height=3.0)
    axes = _axes(figure)
    cells, counts = np.unique(np.column_stack([np.round(rate, 3), accuracy]), axis=0, return_counts=True)
    axes.scatter(
        cells[:, 0], cells[:, 1], s=10 + 700 * counts / len(users), color=COLORS[series % len(COLORS)], alpha=0.4, linewidth=0
    )
    for place, mean in means:
        low, high = ends_of(mean)
        error = [[mean["value"] - low], [high - mean["value"]]] if is_known(mean["low"]) else None
        axes.errorbar(place, mean["value"], yerr=error, color=TEXT, marker="D", markersize=4, capsize=4, linewidth=1.4, zorder=4)
    axes.plot([place for place, _ in means], [mean["value"] for _, mean in means], color=TEXT, linewidth=0.9, zorder=4)
    axes.set_xlim(-0.04, 1.04)
    axes.set_ylim(-0.08, 1.1)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_xlabel("support rate of the user's preferences", fontsize=_FONT, color=TEXT)
    axes.set_ylabel("user accuracy", fontsize=_FONT, color=TEXT)
    return figure


def draw_training(history: Sequence[Mapping[str, Any]], groups: Sequence[str] = ()) -> "Figure":
    """Loss and its parts, accuracy and that of the groups on the batches of a training, as far as they were logged.

    Args:
        history (`Sequence[Mapping]`):
            `log_history` of the trainer's state.
        groups (`Sequence[str]`, *optional*):
            The groups whose accuracy is drawn.
    """
    figure = new_figure(height=3.3)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for key, (name, color, line) in _LOSSES.items():
        steps, values = _curve(history, key)
        if len(steps):
            above.plot(steps, values, color=color, linestyle=line, linewidth=1.4, label=name)
    for key, name, line in (("accuracy", "all", "-"), ("eval_accuracy", "evaluation", "--")):
        steps, values = _curve(history, key)
        if len(steps):
            below.plot(steps, values, color=TEXT, linestyle=line, linewidth=1.4, label=name)
    for i, group in enumerate(groups):
        steps, values = _curve(history, f"accuracy/{group}")
        if len(steps):
            color, marker = GROUP_COLORS[i % len(GROUP_COLORS)], MARKERS[i % len(MARKERS)]
            below.plot(steps, values, color=color, linewidth=0.9, marker=marker, markersize=2.5, label=short(group))
    for axes, label in ((above, "loss"), (below, "accuracy")):
        _dress(axes)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_ylabel(label, fontsize=_FONT, color=TEXT)
        axes.margins(x=0.02)
    above.set_ylim(bottom=0)
    below.set_ylim(0, 1.05)
    below.set_xlabel("optimizer step", fontsize=_FONT, color=TEXT)
    lines = [axes.get_legend_handles_labels() for axes in (above, below)]
    grouped = len(lines[1][1]) > 1
    handles, labels = ([*lines[0][part], *(lines[1][part] if grouped else [])] for part in (0, 1))
    _legend(figure, handles, [f"accuracy, {text}" if i >= len(lines[0][1]) else text for i, text in enumerate(labels)])
    return figure


def draw_margins(teacher: FloatArray, margins: FloatArray, series: int, name: str, seed: int = 0) -> "Figure":
    """Margins of a model against its teacher's, over pairs of one group; both in reward units of their own scale.

    Args:
        teacher (`float` array of shape `(num_pairs,)`):
            The teacher's margins.
        margins (`float` array of shape `(num_pairs,)`):
            The model's margins on the same pairs.
        series (`int`):
            Number of the color.
        name (`str`):
            Name of the model.
        seed (`int`, *optional*, defaults to `0`):
            Seed of which pairs are drawn, where there are more than 300.
    """
    figure = new_figure(height=3.6)
    axes = _axes(figure)
    picked = np.random.default_rng(seed).permutation(len(teacher))[:_MOST_POINTS]
    axes.scatter(teacher[picked], margins[picked], s=14, color=COLORS[series % len(COLORS)], alpha=0.5, linewidth=0, zorder=3)
    reaches = [1.08 * max(np.abs(values[picked]).max(), 1e-6) for values in (teacher, margins)]
    axes.set_xlim(-reaches[0], reaches[0])
    axes.set_ylim(-reaches[1], reaches[1])
    for line in (axes.axhline, axes.axvline):
        line(0, color=TEXT, linewidth=0.9)
    axes.grid(color=GRID, linewidth=0.8)
    same = pair_correctness(margins * np.sign(teacher))
    under = {"facecolor": PAPER, "linewidth": 0, "pad": 1.5, "alpha": 0.8}
    for x, y, quarter in ((0.98, 0.97, (1, 1)), (0.02, 0.97, (0, 1)), (0.02, 0.03, (0, 0)), (0.98, 0.03, (1, 0))):
        share = np.mean(((teacher > 0) == quarter[0]) & ((margins > 0) == quarter[1]))
        look = _small("right" if x > 0.5 else "left") | {"verticalalignment": "top" if y > 0.5 else "bottom", "fontsize": _FONT}
        axes.text(x, y, format_number(share), transform=axes.transAxes, bbox=under, **look, zorder=5)
    axes.locator_params(nbins=7)
    axes.set_xlabel("margin of the teacher", fontsize=_FONT, color=TEXT)
    axes.set_ylabel(f"margin of {short(name, 28)}", fontsize=_FONT, color=TEXT, parse_math=False)
    axes.set_title(f"same side on {format_number(same.mean())} of {len(teacher)} pairs", fontsize=_FONT, color=MUTED)
    return figure


def draw_hidden_states(states: FloatArray, group: Sequence[str], shown: Sequence[str], groups: Sequence[str]) -> "Figure":
    """Two principal components of hidden states: color says whose history was shown, the marker whose pair it is.

    Args:
        states (`float` array of shape `(num_entries, hidden_size)`):
            The last hidden state at the pooled token.
        group, shown (`Sequence[str]`, one an entry):
            Group of the pair's user, and of the user whose history was shown (`""` where none was).
        groups (`Sequence[str]`):
            All groups, in the order of the legend.
    """
    figure = new_figure(height=3.9)
    axes = _axes(figure)
    places, shares = principal_components(states)
    whose = np.asarray(shown if any(shown) else group)
    of_pair = np.asarray(group)
    for i, history in enumerate(groups):
        for j, name in enumerate(groups):
            mine = (whose == history) & (of_pair == name)
            color, marker = GROUP_COLORS[i % len(GROUP_COLORS)], MARKERS[j % len(MARKERS)]
            x, y = places[mine].T
            axes.scatter(x, y, s=22, color=color, marker=marker, alpha=0.75, edgecolor=PAPER, linewidth=0.4, zorder=3)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_xlabel(f"first component ({100 * shares[0]:.0f} % of the variance)", fontsize=_FONT, color=TEXT)
    axes.set_ylabel(f"second ({100 * shares[1]:.0f} %)", fontsize=_FONT, color=TEXT)
    colors = [_patch(GROUP_COLORS[i % len(GROUP_COLORS)]) for i in range(len(groups))]
    kinds = [_mark(MARKERS[j % len(MARKERS)]) for j in range(len(groups))]
    names = [short(name) for name in groups]
    first = "history of" if any(shown) else "pair of"
    if any(shown):
        _legend(figure, [*colors, *kinds], [*(f"{first} {n}" for n in names), *(f"pair of {n}" for n in names)], len(groups))
    else:
        _legend(figure, colors, [f"{first} {n}" for n in names])
    return figure


def principal_components(states: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The two components of largest variance, of shape `(num_entries, 2)`, and their shares of all variance.

    Signs are set so that the largest absolute value of each component is positive, and pictures can be compared.
    """
    centered = np.asarray(states, dtype=np.float64) - np.mean(states, axis=0, dtype=np.float64)
    left, sizes, _ = np.linalg.svd(centered, full_matrices=False)
    places = np.zeros((len(centered), 2))
    number = min(2, len(sizes))
    places[:, :number] = left[:, :number] * sizes[:number]
    places *= np.where(places[np.abs(places).argmax(axis=0), [0, 1]] < 0, -1.0, 1.0)
    shares = np.zeros(2)
    shares[:number] = sizes[:number] ** 2 / max((sizes**2).sum(), 1e-300)
    return places, shares


def _axes(figure: "Figure") -> "Axes":
    return _dress(figure.add_subplot())


def _dress(axes: "Axes") -> "Axes":
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=_FONT - 0.5, colors=TEXT, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(MUTED)
    return axes


def _small(align: str) -> dict[str, Any]:
    return {
        "fontsize": _FONT - 1,
        "color": TEXT,
        "horizontalalignment": align,
        "verticalalignment": "center",
        "parse_math": False,
    }


def _curve(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    logged = [(row["step"], row[key]) for row in history if key in row and "step" in row and row[key] == row[key]]  # no NaN
    return [float(step) for step, _ in logged], [float(value) for _, value in logged]


def _patch(color: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=color)


def _mark(marker: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="none", marker=marker, color=MUTED, markersize=5)


def _legend(figure: "Figure", handles: list[Any], labels: list[str], columns: int = 2) -> None:
    legend = figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=columns,
        fontsize=_FONT,
        frameon=False,
        labelcolor=TEXT,
        handlelength=1.6,
        columnspacing=1.2,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
