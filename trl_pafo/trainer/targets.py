"""What a student is to learn of each showing of a training pair: the margin of the teacher of the group whose history it is."""

from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from trl_pafo.data.rows import read_rows
from trl_pafo.trainer.margins import TeacherMargins
from trl_pafo.trainer.teacher import Teacher

FloatArray = NDArray[np.float64]


class Targets:
    """
    Target margins of training pairs under histories: the margin of the teacher of the group whose history it is. (Not from the paper.)

    `margins` have the shape `(num_rows, num_groups)`, and are NaN where no history of the group ever goes with them. `group` has the
    place of each row's group.
    """

    def __init__(self, margins: FloatArray, group: NDArray[np.int64]):
        self.margins, self.group = margins, group

    def __call__(self, rows: Sequence[int], donors: Sequence[int]) -> NDArray[np.float32]:
        """Targets of the pairs of some rows under the histories of others, of shape `(len(rows),)`, in reward units."""
        return self.margins[list(rows), self.group[list(donors)]].astype(np.float32)

    def own(self) -> NDArray[np.float32]:
        """The margin of each pair under the teacher of its user's group, of shape `(num_rows,)`."""
        return self.margins[np.arange(len(self.group)), self.group].astype(np.float32)


def group_numbers(dataset: Dataset, column: str, groups: Sequence[str]) -> FloatArray:
    """A column with a number for each group, as an array of shape `(num_rows, num_groups)` in the order of `groups`."""
    return np.array([[row[column][group] for group in groups] for row in read_rows(dataset, [column])], dtype=np.float64)


def score_pairs(
    score: TeacherMargins, teachers: Mapping[str, Teacher], rows: Dataset, tokenizer: PreTrainedTokenizerBase, own: bool = False
) -> FloatArray:
    """Margins of all teachers for all pairs, each read as the teacher's training read its own, of shape `(num_rows, num_groups)`,
    groups in the order of their names. With `own`, each teacher scores the pairs of its `group` alone; the others are NaN.
    """
    margins = np.full((len(rows), len(teachers)), np.nan)
    group = np.asarray(rows["group"][:]) if own else None
    numbers = {name: np.arange(len(rows)) if group is None else np.flatnonzero(group == name) for name in sorted(teachers)}
    scored = score(teachers, {name: teachers[name].read(rows.select(mine), tokenizer) for name, mine in numbers.items()})
    for place, (name, mine) in enumerate(numbers.items()):
        margins[mine, place] = scored[name]
    return margins


def targets_from_teachers(
    score: TeacherMargins,
    teachers: Mapping[str, Teacher],
    rows: Dataset,
    group: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    own: bool = False,
) -> Targets:
    """Targets of training pairs that teachers score now, see [`score_pairs`]."""
    return Targets(score_pairs(score, teachers, rows, tokenizer, own), np.searchsorted(sorted(teachers), group))


def targets_from_columns(rows: Dataset, groups: Sequence[str]) -> Targets:
    """Targets of training pairs that bring `teacher_margins`; `groups` are in the order of their names."""
    return Targets(group_numbers(rows, "teacher_margins", groups), np.searchsorted(groups, rows["group"][:]))
