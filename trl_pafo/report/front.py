"""The predicted front as a table and a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_pafo.evaluation.front import ROUTED
from trl_pafo.metrics.accuracy import FloatArray
from trl_pafo.metrics.plotting import write_png
from trl_pafo.report.pictures import draw_majority_minority
from trl_pafo.report.record import series_of
from trl_pafo.report.tables import markdown_table
from trl_pafo.storage.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRONT_NOTE = (
    "Accuracy and mean log likelihood on held-out pairs, with 95 % intervals over users, each by itself. tau: 0 takes groups to be as "
    "frequent as in training, 1 equally frequent. The mixture of teachers weighs them by what a history says of the group."
)
_NEAR = 0.012
"""Of neighboring taus whose accuracies differ by less, the first is drawn for all: their labels would cover each other."""


def draw_front(front: Mapping[str, Any]) -> "Figure | None":
    """Accuracy of the largest against the smallest group: the mixture for each tau, the path as a line, and students once they are
    there.

    The front is the output of [`~trl_pafo.evaluation.front.predict_front`], with `majority` and `minority`, the names of the two
    groups. `None` where one of the two has no held-out pairs, or they are the same.
    """
    sides, points = {side: f"accuracy/{front[side]}" for side in ("majority", "minority")}, front["points"]
    if len({*sides.values()}) < 2 or not points or not {*sides.values()} <= {*points[ROUTED]}:
        return None

    def place(name: str, title: str, method: str, label: str = "") -> dict[str, Any]:
        return {"name": title, "series": series_of(method), "label": label} | {
            side: points[name][key] for side, key in sides.items()
        }

    def where(at: Mapping[str, Any]) -> FloatArray:
        return np.array([points[at["name"]][key]["value"] for key in sides.values()])

    near: list[list[dict[str, Any]]] = []
    for at in front["mixture"]:
        if near and np.abs(where(at) - where(near[-1][0])).max() < _NEAR:
            near[-1].append(at)
        else:
            near.append([at])
    shown = []
    for some in near:
        label = " to ".join(dict.fromkeys(f"{at['tau']:g}" for at in (some[0], some[-1])))
        shown.append(place(some[0]["name"], "mixture, by tau", "teacher_mixture", label))
    arrows = [(i, i + 1) for i in range(len(shown) - 1)]
    shown += [place(ROUTED, ROUTED, "group_routed"), place(front["reference"], front["reference"], "personalized_bt")]
    shown += [place(name, name, "pafo") for name in front.get("students", ())]
    path = [
        {"label": f"x{at['multiple']:g}", **{side: points[at["name"]][key]["value"] for side, key in sides.items()}}
        for at in front["path"]
    ]
    names = (front["majority"], front["minority"])
    return draw_majority_minority(shown, reference=front["reference"], names=names, arrows=arrows, path=path if path[1:] else ())


def write_front(out: Path, front: Mapping[str, Any]) -> None:
    """Write `front.md` and, where there is one, `front.png` to a folder; `front` as in [`draw_front`]."""
    table = [markdown_table(front["points"]), FRONT_NOTE] if front["points"] else []
    write_text(out / "front.md", "\n\n".join([*table, front["sentence"]]) + "\n")
    figure = draw_front(front)
    if figure is not None:
        write_png(figure, out / "front.png")
