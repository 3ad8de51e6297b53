"""Which model a group is distilled from: a teacher of its own, if that beats the shared model on held-out pairs. (Ours.)

A teacher learns from its group's pairs alone. Where the groups do not want different things, it is the shared model with
less data, and distilling it does harm: it teaches the student the noise of a small sample. So each teacher must first beat the
shared (personalised Bradley-Terry) model on pairs of its group that neither was trained on. Where it does not, the shared model
stands in for it. Where none does, there is nothing to distil, and the shared model is the answer.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from trl_pafo.metrics import pair_correctness
from trl_pafo.rewards import pair_rewards


@dataclass(frozen=True)
class Choice:
    """
    Whether a group gets a teacher of its own.

    Attributes:
        group (`str`):
            The group.
        own (`bool`):
            Whether its own teacher is distilled; else the shared model.
        gain (`float`):
            Accuracy of its own teacher minus the shared model's on held-out pairs of the group, in [-1, 1]; NaN without pairs.
        standard_error (`float`):
            Standard error of the gain over users; NaN with fewer than two users.
        num_pairs, num_users (`int`):
            Held-out pairs of the group, and whose they are.
    """

    group: str
    own: bool
    gain: float
    standard_error: float
    num_pairs: int
    num_users: int

    def __str__(self) -> str:
        seen = f"on {self.num_pairs} held-out pairs of {self.num_users} users"
        if math.isnan(self.standard_error):
            return f"{self.group}: its own teacher, unjudged ({seen} are too few to tell)"
        whose = "its own teacher" if self.own else "the shared model stands in, as its own teacher is not shown to be better"
        return f"{self.group}: {whose} (accuracy {self.gain:+.3f} ± {self.standard_error:.3f} {seen})"

    def as_dict(self) -> dict[str, Any]:
        """As JSON values, with the same in a sentence."""
        return {name: None if value != value else value for name, value in asdict(self).items()} | {"sentence": str(self)}


def gain_over_users(correct: np.ndarray, reference_correct: np.ndarray, user: Any) -> tuple[float, float]:
    """Difference of two accuracies over the same pairs, and its standard error over users.

    The difference is a ratio of two sums over users (pairs won more, pairs); its error is that of the linearised ratio.

    Args:
        correct, reference_correct (`np.ndarray` of shape `(num_pairs,)`):
            Outputs of [`~trl_pafo.metrics.pair_correctness`].
        user (sequence of `num_pairs`):
            Whose pair it is.

    Returns:
        `tuple[float, float]`: The difference, NaN without pairs, and its standard error, NaN with fewer than two users.
    """
    difference = correct - reference_correct
    if not len(difference):
        return math.nan, math.nan
    gain = float(difference.mean())
    codes = np.unique(np.asarray(user), return_inverse=True)[1]
    residual = np.bincount(codes, weights=difference - gain)
    users = len(residual)
    if users < 2:
        return gain, math.nan
    return gain, float(np.sqrt((residual**2).sum() * users / (users - 1)) / len(difference))


def choose_teachers(
    teachers: Mapping[str, str], shared: str, held_out: Dataset, min_standard_errors: float, **scoring: Any
) -> list[Choice]:
    """Judge each group's teacher against the shared model on held-out pairs of its group.

    Args:
        teachers (`Mapping[str, str]`):
            Folder of each group's teacher.
        shared (`str`):
            Folder of the model of all groups.
        held_out ([`~datasets.Dataset`]):
            Rows with `prompt`, `chosen`, `rejected`, `group`, `user` that no model was trained on.
        min_standard_errors (`float`):
            A teacher is better if its gain is above 0 and at least so many standard errors.
        **scoring:
            Options of [`~trl_pafo.rewards.pair_rewards`].

    Returns:
        `list[Choice]`: One a group. A group with held-out pairs of fewer than two users cannot be judged and keeps its teacher.
    """
    group = np.asarray(held_out["group"])
    choices = []
    for name, folder in teachers.items():
        rows = held_out.select(np.flatnonzero(group == name))
        gain = error = math.nan
        if len(rows):
            desc = f"Held-out pairs, {name}"
            mine, ours = (pair_correctness(np.subtract(*pair_rewards(f, rows, desc=desc, **scoring))) for f in (folder, shared))
            gain, error = gain_over_users(mine, ours, rows["user"])
        own = math.isnan(error) or (gain > 0 and gain >= min_standard_errors * error)
        choices.append(Choice(name, own, gain, error, len(rows), len(set(rows["user"]))))
    return choices
