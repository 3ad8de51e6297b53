"""The path of personalized Bradley-Terry, trained for several multiples of the student's steps, and which of its points counts.

Trained briefly, a model of all groups has learnt the majority's taste alone; trained on, it serves the minority better, at the majority's
price. So what a method gains over one length may be what that training lacked. Each point of the path is a training of its own, with
its own schedule, and the best of them on held-out pairs is what the other methods are compared with. (Not from the paper.)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from trl_pafo.evaluation.evaluate import summary_of
from trl_pafo.evaluation.rewards import score_rows
from trl_pafo.metrics.verdict import format_number, is_known

RULES: dict[str, Callable[[list[float], float], float]] = {
    "group_balanced": lambda of_groups, overall: sum(of_groups) / len(of_groups),
    "worst_group": lambda of_groups, overall: min(of_groups),
    "overall": lambda of_groups, overall: overall,
}
"""By what a point is the best: a number of the accuracies of groups, and of the accuracy over all pairs; higher is better."""
CHOSEN = {"personalized_bt": "group_balanced", "worst_group_bt": "worst_group"}
"""Methods that are a point of the path, and the rule that chooses it."""


@dataclass(frozen=True)
class Point:
    """A training of the path: how many times the student's optimizer steps it has, and how many these are."""

    multiple: float
    steps: int

    @property
    def stage(self) -> str:
        """Name of its stage in a run."""
        return stage_of(self.multiple)

    @property
    def output(self) -> str:
        """Folder of its model, relative to that of the run."""
        return f"models/personalized_bt_x{self.multiple:g}"


def stage_of(multiple: float) -> str:
    """Name of the stage of a run that trains this point."""
    return f"personalized_bt@{multiple:g}"


def accuracies_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Of the numbers of a summary, accuracies with their intervals, and how many users and pairs stand behind them."""
    return {
        key: value for key, value in summary.items() if key.split("/")[0] in ("overall", "accuracy", "num_users", "num_pairs")
    }


def value_of(rule: str, summary: Mapping[str, Any]) -> float:
    """The number by which a rule compares points, of those that [`accuracies_of`] keeps; over the groups that have pairs."""
    of_groups = [entry["value"] for key, entry in summary.items() if key.startswith("accuracy/") and is_known(entry["value"])]
    return RULES[rule](of_groups, summary["overall"]["value"])


def best_points(points: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The multiple of the best point of [`score_path`] by each rule, of equals that of the fewest steps; empty without held-out
    pairs.
    """
    if any(point["validation"] is None for point in points):
        return {}
    by_steps = sorted(points, key=lambda point: point["multiple"])
    return {rule: max(by_steps, key=lambda point: value_of(rule, point["validation"]))["multiple"] for rule in RULES}


def score_path(
    folders: Mapping[Point, str],
    held_out: Dataset | None,
    groups: Sequence[str],
    rule: str,
    num_resamples: int,
    seed: int,
    **scoring: Any,
) -> dict[str, Any]:
    """Accuracies of the points of a path on held-out pairs, and which point is the reference.

    Each point has the folder of its model; one has the student's steps (multiple 1), and is the reference where no pairs are held
    out. These are rows with `prompt`, `chosen`, `rejected`, `user`, `group` that no model was trained on. One of [`RULES`] chooses.
    `scoring` are options of [`~trl_pafo.evaluation.rewards.score_rows`].

    The result has `points`, a list of `multiple`, `steps`, `validation` ([`accuracies_of`], or `None`); `best`, the multiple of the
    best point by each rule; `rule`, that of the reference; `chosen`, its multiple; `sentence`, which says so; and `margins`, by
    multiple, those of the held-out pairs.
    """
    points, margins = [], {}
    for point, folder in sorted(folders.items(), key=lambda item: item[0].multiple):
        summary = None
        if held_out is not None:
            scored = score_rows(folder, held_out, desc=f"Held-out pairs, x{point.multiple:g}", **scoring)
            summary = accuracies_of(summary_of(scored, held_out, num_resamples, seed))
            margins[str(point.multiple)] = np.subtract(scored.chosen, scored.rejected).tolist()
        points.append({"multiple": point.multiple, "steps": point.steps, "validation": summary})
    best = best_points(points)
    chosen = best.get(rule, 1.0)
    steps = next(point["steps"] for point in points if point["multiple"] == chosen)
    reference = f"The reference is personalized BT of {steps} steps, {chosen:g} times the student's"
    if held_out is None:
        sentence = f"{reference}: no pairs are held out to choose by (--validation_share)."
    else:
        found = dict(zip(*np.unique(held_out["group"][:], return_counts=True), strict=True))
        counts = ", ".join(f"{group} {found.get(group, 0)}" for group in groups)
        value = format_number(max(value_of(rule, point["validation"]) for point in points))  # type: ignore[arg-type]
        by = f"{rule.replace('_', ' ')} accuracy {value} on {len(held_out)} held-out pairs ({counts})"
        sentence = f"{reference}, the best of its path by {by}."
        others = [f"{name.replace('_', ' ')} x{multiple:g}" for name, multiple in best.items() if multiple != chosen]
        sentence += f" By another rule it would be: {', '.join(others)}." if others else ""
    return {"points": points, "best": best, "rule": rule, "chosen": chosen, "sentence": sentence, "margins": margins}


def multiple_of(method: str, path: Mapping[str, Any]) -> float:
    """The multiple of the point that a method of [`CHOSEN`] is."""
    return float(path["chosen"] if method == "personalized_bt" else path["best"][CHOSEN[method]])
