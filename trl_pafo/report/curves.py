"""The section that shows how well each group was served while a model was trained. (Not from the paper.)"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_pafo.metrics.plotting import GROUP_COLORS, add_axes, add_legend, new_figure, short
from trl_pafo.report.record import Record
from trl_pafo.report.sections import Picture, Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Log = Sequence[Mapping[str, Any]]


def curves(record: Record) -> Section:
    """Accuracy by group over the optimizer steps, of the reference and of the student."""
    section = Section("training", "While they learned")
    for method in record.compared:
        state = record.folder / "models" / method / "trainer_state.json"
        log = json.loads(state.read_text(encoding="utf-8"))["log_history"] if state.is_file() else []
        if any(logged(log, f"accuracy/{group}") for group in record.groups):
            section.pictures.append(Picture(f"training_{method}", record.title(method), "", draw_curves(log, record.groups)))
        else:
            section.missing.append(
                f"Accuracy of {record.title(method)} while it was trained: its trainer logged none of a group. Set logging_steps "
                "below the number of steps."
            )
    if section.pictures:
        section.text.append(
            "Accuracy on the training batches, of the rows that have a label (a tie is half right). Each point is the mean of the logs of a "
            "tenth of the training, which for a small group are few pairs. Dashed: accuracy on held-out pairs, where the trainer evaluated."
        )
    return section


def logged(log: Log, key: str) -> list[tuple[int, float]]:
    """Steps and values under a key of the `log_history` of a trainer, without NaN, which it logs where there was no such row."""
    return [(row["step"], row[key]) for row in log if not math.isnan(row.get(key, math.nan))]


def draw_curves(log: Log, groups: Sequence[str]) -> "Figure":
    """Accuracy of each group over the optimizer steps, in means of a tenth of the logs, and of each evaluation."""
    figure = new_figure(height=2.8)
    axes = add_axes(figure, "optimizer step", "accuracy")
    for i, group in enumerate(groups):
        look: dict[str, Any] = {"color": GROUP_COLORS[i % len(GROUP_COLORS)], "linewidth": 1.4}
        parts = np.array_split(np.array(logged(log, f"accuracy/{group}")).reshape(-1, 2), 10)
        means = np.array([part.mean(axis=0) for part in parts if len(part)]).reshape(-1, 2)
        axes.plot(*means.T, label=short(group), marker="o", markersize=3, **look)
        if evaluated := logged(log, f"eval_accuracy/{group}"):
            axes.plot(*np.array(evaluated).T, label=f"{short(group)}, held out", linestyle="--", **look)
    axes.set_ylim(min(0.48, axes.dataLim.y0 - 0.02), 1.02)  # the same in most pictures, so that they can be compared
    add_legend(figure, axes.lines, [str(line.get_label()) for line in axes.lines])
    return figure
