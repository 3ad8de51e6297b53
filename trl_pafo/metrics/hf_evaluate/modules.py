"""The three modules, over columns of pairs.

`evaluate` copies the script of a module elsewhere and imports it there; this file is not copied. It takes the first module class
that it finds by name in a script, so each script imports one class and nothing else.
"""

import math
from collections import Counter
from dataclasses import asdict
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from numpy.typing import ArrayLike

from trl_pafo.data.labels import normalize_labels
from trl_pafo.errors import DataError
from trl_pafo.metrics.accuracy import group_accuracy, group_gap, pair_correctness, user_accuracy
from trl_pafo.metrics.inequality import cvar, gini, jain, max_min, std, theil
from trl_pafo.metrics.verdict import compare

_COLUMNS = ("predictions", "predictions1", "predictions2", "groups", "users")


class PairModule(evaluate.EvaluationModule):
    """
    A module over pairs of responses. Predictions come as margins or as rewards, groups and users as any labels.

    A batch is checked before it is stored, because `evaluate` keeps its files locked where a computation fails.

    Subclasses name their `columns`, and what `evaluate` shows of them.
    """

    info_class = evaluate.MetricInfo
    columns: tuple[str, ...]
    about: str
    inputs: str
    source: str

    def _info(self) -> Any:
        kinds = {name: Value("float64" if name.startswith("predictions") else "string") for name in self.columns}
        return self.info_class(
            description=self.about, inputs_description=self.inputs, citation=self.source, features=Features(kinds)
        )

    def add(self, **row: Any) -> None:
        """Add one pair.

        Raises:
            DataError: If a column is missing, unknown, or holds a value that cannot be used.
        """
        names = {"prediction": "predictions", "reference": "references"}
        self.add_batch(**{names.get(name, name): None if value is None else [value] for name, value in row.items()})

    def add_batch(self, **columns: Any) -> None:
        """Add pairs; a batch may be empty.

        Raises:
            DataError: If a column is missing, unknown, or holds a value that cannot be used.
        """
        self._refuse_references(columns.pop("references", None))
        given = [name for name, values in columns.items() if values is not None]
        if set(given) != set(self.columns):
            raise DataError(
                f"{self.name} takes the columns {', '.join(self.columns)}, one value per pair; got {', '.join(given) or 'none'}."
            )
        checked = {
            name: _margins(columns[name], name)
            if name.startswith("predictions")
            else normalize_labels(columns[name], name, "The pairs")
            for name in self.columns
        }
        lengths = {name: len(values) for name, values in checked.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"{self.name} takes one value per pair in each column, but their lengths are {lengths}.")
        super().add_batch(**checked)

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """Compute over all pairs that were added and those given here; `None` on processes other than the first.

        Raises:
            DataError: If a column is missing, unknown, or holds a value that cannot be used.
            ConfigError: If an option cannot be used.
        """
        self._refuse_references(references)
        # `evaluate.combine` hands every module the columns of all.
        kwargs = {name: value for name, value in kwargs.items() if name in self.columns or name not in _COLUMNS}
        return super().compute(predictions=predictions if "predictions" in self.columns else None, **kwargs)

    def _refuse_references(self, references: Any) -> None:
        # `evaluate` would ignore them in silence, and predicted labels 0 and 1 would be read as margins.
        if references is not None:
            raise DataError(
                f"{self.name} takes no references: the sign of a margin tells which response the model prefers. Give the "
                f"columns {', '.join(self.columns)}."
            )


def _margins(values: ArrayLike, name: str) -> list[float]:
    """Margins as they are; rewards of shape `(num_pairs, 2)` as chosen minus rejected."""
    try:
        array = np.asarray(values)
        numbers = None if array.dtype.kind in "bUS" else array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"`{name}` cannot be read as numbers ({error}). Give a list or an array; of a tensor, `.detach().float().cpu()`."
        ) from error
    if numbers is None or not (numbers.ndim == 1 or (numbers.ndim == 2 and numbers.shape[1] == 2)):
        raise DataError(
            f"`{name}` must be margins of shape (num_pairs,), or rewards of shape (num_pairs, 2), the chosen response's first; "
            f"got shape {array.shape} of {array.dtype}."
        )
    if numbers.ndim == 2:
        with np.errstate(invalid="ignore"):  # infinite minus infinite is NaN, which is refused below
            numbers = numbers[:, 0] - numbers[:, 1]
    pair_correctness(numbers)
    return numbers.tolist()


class GroupFairness(PairModule, evaluate.Metric):
    """Group fairness of pairwise accuracy, with fairlearn's names."""

    columns = ("predictions", "groups")
    about = """
Pairwise accuracy of a reward model: overall, for each group of users, of the worst and the best group, and the
difference and ratio of these two. A tie counts half a point.
"""
    inputs = """
Args:
    predictions: for each pair the margin (reward of the chosen minus reward of the rejected response), or both rewards
        as [chosen, rejected]. Raw rewards, no sigmoid needed.
    groups: for each pair the group of its user, any label.
    group_names (optional): the groups to report, so that the keys are the same every time. An absent one has accuracy
        NaN and count 0, and is left out of the other numbers.
Returns:
    accuracy, count: over all pairs.
    accuracy/{group}, count/{group}: over the pairs of a group.
    accuracy_group_mean: mean of the groups' accuracies, each group counted once.
    accuracy_group_min, accuracy_group_max: of the worst and the best group; worst_group: the name of the worst one.
    accuracy_difference: best minus worst group; NaN with one group.
    accuracy_ratio: worst over best group; NaN where the best has accuracy 0.
Examples:
    >>> group_fairness = trl_pafo.metrics.hf_evaluate.load("group_fairness")
    >>> group_fairness.compute(predictions=[2.1, 0.3, -0.4, 1.5], groups=["a", "a", "b", "b"])["accuracy_difference"]
    0.5
"""
    source = "Weerts et al. (2023): Fairlearn: Assessing and Improving Fairness of AI Systems. JMLR 24(257). For the names."

    def _compute(
        self, predictions: list[float], groups: list[str], group_names: list[object] | None = None
    ) -> dict[str, float | int | str]:
        correct = pair_correctness(predictions)
        accuracy = group_accuracy(correct, groups)
        count = Counter(groups)
        names = sorted(accuracy) if group_names is None else normalize_labels(group_names, "group_names", "The option")
        unlisted = sorted(set(accuracy) - set(names))
        if unlisted:
            raise DataError(f"`group_names` lacks groups that the pairs have: {', '.join(unlisted)}. Add them, or leave it out.")
        return {
            "accuracy": float(correct.mean()),
            "count": len(correct),
            **{f"accuracy/{name}": accuracy.get(name, math.nan) for name in names},
            **{f"count/{name}": count[name] for name in names},
            **group_gap(accuracy),
            "worst_group": min(accuracy, key=accuracy.__getitem__),
        }


class UserFairness(PairModule, evaluate.Metric):
    """User fairness of pairwise accuracy."""

    columns = ("predictions", "users")
    about = """
How unevenly the pairwise accuracy of a reward model is spread over users. Every user counts once, whatever its number
of pairs. A tie counts half a point.
"""
    inputs = """
Args:
    predictions: for each pair the margin (reward of the chosen minus reward of the rejected response), or both rewards
        as [chosen, rejected]. Raw rewards, no sigmoid needed.
    users: for each pair whose it is, any label.
    share (optional, defaults to 0.1): which share of the users, the worst ones, user_accuracy_cvar is the mean over.
Returns:
    user_count: number of users.
    user_accuracy_mean, user_accuracy_std, user_accuracy_min, user_accuracy_max: over the accuracies of the users.
    user_accuracy_max_min: best minus worst user.
    user_accuracy_p10: 10th percentile; user_accuracy_cvar: mean of the worst share of the users.
    user_accuracy_gini, user_accuracy_theil: inequality, 0 where all are equal.
    user_accuracy_jain: Jain's index, 1 where all are equal.
Examples:
    >>> user_fairness = trl_pafo.metrics.hf_evaluate.load("user_fairness")
    >>> user_fairness.compute(predictions=[2.1, 0.3, -0.4, 1.5], users=["u1", "u1", "u2", "u2"])["user_accuracy_min"]
    0.5
"""
    source = "Jain, Chiu and Hawe (1984): A Quantitative Measure of Fairness and Discrimination. DEC-TR-301."

    def _compute(self, predictions: list[float], users: list[str], share: float = 0.1) -> dict[str, float | int]:
        _, accuracy, _ = user_accuracy(pair_correctness(predictions), users)
        numbers = {
            "mean": accuracy.mean(),
            "std": std(accuracy),
            "min": accuracy.min(),
            "max": accuracy.max(),
            "max_min": max_min(accuracy),
            "p10": np.quantile(accuracy, 0.1),
            "cvar": cvar(accuracy, share=share),
            "gini": gini(accuracy),
            "theil": theil(accuracy),
            "jain": jain(accuracy),
        }
        return {"user_count": len(accuracy), **{f"user_accuracy_{name}": float(value) for name, value in numbers.items()}}


class ParetoVerdict(PairModule, evaluate.Comparison):
    """The Pareto verdict of [`~trl_pafo.metrics.compare`]."""

    info_class = evaluate.ComparisonInfo
    columns = ("predictions1", "predictions2", "groups", "users")
    about = """
Whether a reward model is a Pareto improvement over another in pairwise accuracy for groups of users: improves, degrades,
mixed, cannot tell or same, from simultaneous intervals over users, both models judged on the same pairs.
"""
    inputs = """
Args:
    predictions1: the model. For each pair the margin (reward of the chosen minus reward of the rejected response), or
        both rewards as [chosen, rejected]. Raw rewards, no sigmoid needed.
    predictions2: the model that it is compared with, the same pairs in the same order.
    groups: for each pair the group of its user, any label.
    users: for each pair whose it is, any label. The intervals are over users, since pairs of one user resemble each
        other. Where no two pairs have the same user, number the pairs.
    confidence (optional, defaults to 0.95): of all groups' intervals together.
    margin (optional, defaults to 0.0): estimated loss of accuracy that a group may have beside another's gain.
    num_resamples (optional, defaults to 2000), seed (optional, defaults to 0): of the random subsets of users.
Returns:
    verdict: "improves", "degrades", "mixed", "cannot tell", or "same" where the margins are the same on every pair.
    differences: for each group the accuracy of predictions1 minus that of predictions2 as value, and low and high.
    sentence: the same in one sentence.
Examples:
    >>> pareto_verdict = trl_pafo.metrics.hf_evaluate.load("pareto_verdict")
    >>> users = list(range(20))
    >>> groups = ["a"] * 10 + ["b"] * 10
    >>> pareto_verdict.compute(predictions1=[1.0] * 20, predictions2=[1.0] * 10 + [-1.0] * 10, groups=groups, users=users)["verdict"]
    'improves'
"""
    source = "Hartigan (1969): Using Subsample Values as Typical Values. JASA 64(328), 1303-1317. For the intervals."

    def _compute(
        self, predictions1: list[float], predictions2: list[float], groups: list[str], users: list[str], **options: Any
    ) -> dict[str, Any]:
        correct, reference = (pair_correctness(margins) for margins in (predictions1, predictions2))
        options |= {"margins": predictions1, "reference_margins": predictions2}
        return asdict(compare(correct, reference, users, groups, **options))
