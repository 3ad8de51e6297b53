"""Whether there is anything to distill: does a teacher beat the shared model on held-out pairs of its group? (Not from the paper.)

Where the groups do not want different things, a teacher is the shared model with less data, and distilling it teaches the student the
noise of a small sample. So one teacher at least must be better for its group than the shared (personalized Bradley-Terry) model on pairs
that neither was trained on; then all are distilled, unless the held-out pairs of a group are too few to judge its teacher
(docs/results.md has the figures). Else the shared model is the answer.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from trl_pafo.evaluation.rewards import pair_rewards
from trl_pafo.metrics import pair_correctness


@dataclass(frozen=True)
class TeacherGain:
    """
    What a group's own teacher gains over the shared model.

    Attributes:
        group (`str`):
            The group.
        better (`bool` or `None`):
            Whether it is shown to be better; `None` where the held-out pairs are those of fewer than [`fewest_users`].
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
            return f"Teacher of {self.group}: cannot be judged {seen}, which are too few"
        shown = "better" if self.better else "not shown to be better"
        return f"Teacher of {self.group}: {shown} than the shared model ({self.gain:+.3f} ± {self.standard_error:.3f} {seen})"


def worth_distilling(better: Iterable[bool | None]) -> bool:
    """Whether the teacher of every group could be judged, and one at least is better than the shared model; see [`TeacherGain`]."""
    found = list(better)
    return None not in found and True in found


def why_not(gains: Sequence[TeacherGain]) -> str:
    """A sentence: why nothing is distilled, and how to distill all the same."""
    unjudged = ", ".join(gain.group for gain in gains if gain.better is None)
    if not unjudged:
        return "No teacher is better than the shared model: nothing to distill, the shared model is kept."
    return (
        f"Too few held-out pairs to judge the teacher of {unjudged}: nothing is distilled, the shared model is kept. Hold out more of "
        "them (--validation_share), or pass --teacher_min_gain=-inf to distill unjudged teachers."
    )


def fewest_users(min_standard_errors: float) -> int:
    """The fewest users with whom a teacher can pass the test: were each a fair coin, all would agree more rarely than it allows.

    A standard error over fewer says nothing; where two users happen to agree, it is 0.
    """
    level = math.erfc(min_standard_errors / math.sqrt(2)) / 2
    return max(2, math.ceil(-math.log2(max(level, 1e-300))))


def gain_over_users(correct: np.ndarray, reference_correct: np.ndarray, user: Any) -> tuple[float, float]:
    """Difference of two accuracies over the same pairs, NaN without pairs, and its standard error, NaN with fewer than two users.

    The difference is a ratio of two sums over users (pairs won more, pairs); its error is that of the linearized ratio.
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
            Options of [`~trl_pafo.evaluation.rewards.pair_rewards`].
    """
    group = np.asarray(held_out["group"][:], dtype=object)
    gains = []
    for name, folder in teachers.items():
        rows = held_out.select(np.flatnonzero(group == name))
        gain = error = math.nan
        if len(rows):
            desc = f"Held-out pairs, {name}"
            own, common = (pair_correctness(np.subtract(*pair_rewards(f, rows, desc=desc, **scoring))) for f in (folder, shared))
            gain, error = gain_over_users(own, common, rows["user"])
        users = len(set(rows["user"]))
        judged = users >= fewest_users(min_standard_errors)
        better = gain > 0 and gain >= min_standard_errors * error if judged else None
        known = [None if math.isnan(number) else number for number in (gain, error)]
        gains.append(TeacherGain(name, better, known[0], known[1], len(rows), users))
    return gains
