"""Whether there is anything to distil: does a teacher beat the shared model on held-out pairs of its group? (Ours.)

A teacher learns from its group's pairs alone. Where the groups do not want different things, it is the shared model with
less data, and distilling it does harm: it teaches the student the noise of a small sample. So the teachers must first show
that one of them at least is better for its group than the shared (personalised Bradley-Terry) model, on pairs that neither was
trained on. Where none is, there is nothing to distil, and the shared model is the answer.

Where one is, all are distilled. The student learns to read the history from the contrast of the teachers: with the shared model
in the place of the majority's teacher, which is less sure than the minority's, it leaned to the minority everywhere
(docs/results.md has the figures).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from trl_pafo.metrics import pair_correctness
from trl_pafo.rewards import pair_rewards


@dataclass(frozen=True)
class TeacherGain:
    """
    What a group's own teacher gains over the shared model.

    Attributes:
        group (`str`):
            The group.
        better (`bool` or `None`):
            Whether it is shown to be better; `None` where there are too few held-out pairs to judge.
        gain (`float` or `None`):
            Its accuracy minus the shared model's on held-out pairs of the group, in [-1, 1]; `None` without pairs.
        standard_error (`float` or `None`):
            Standard error of the gain over users; `None` with fewer than two users.
        num_pairs, num_users (`int`):
            Held-out pairs of the group, and whose they are.
    """

    group: str
    better: bool | None
    gain: float | None
    standard_error: float | None
    num_pairs: int
    num_users: int

    def __str__(self) -> str:
        seen = f"on {self.num_pairs} held-out pairs of {self.num_users} users"
        if self.better is None:
            return f"Teacher of {self.group}: {seen} cannot be judged, and counts as better than the shared model"
        shown = "better" if self.better else "not shown to be better"
        return f"Teacher of {self.group}: {shown} than the shared model ({self.gain:+.3f} ± {self.standard_error:.3f} {seen})"


def worth_distilling(gains: Sequence[TeacherGain]) -> bool:
    """Whether a teacher is better for its group than the shared model, or may be and cannot be judged."""
    return any(gain.better is not False for gain in gains)


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


def judge_teachers(
    teachers: Mapping[str, str], shared: str, held_out: Dataset, min_standard_errors: float, **scoring: Any
) -> list[TeacherGain]:
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
    """
    group = np.asarray(held_out["group"])
    gains = []
    for name, folder in teachers.items():
        rows = held_out.select(np.flatnonzero(group == name))
        gain = error = math.nan
        if len(rows):
            desc = f"Held-out pairs, {name}"
            own, common = (pair_correctness(np.subtract(*pair_rewards(f, rows, desc=desc, **scoring))) for f in (folder, shared))
            gain, error = gain_over_users(own, common, rows["user"])
        better = None if math.isnan(error) else gain > 0 and gain >= min_standard_errors * error
        known = [None if math.isnan(number) else number for number in (gain, error)]
        gains.append(TeacherGain(name, better, known[0], known[1], len(rows), len(set(rows["user"]))))
    return gains
