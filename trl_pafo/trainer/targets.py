"""What a student is to learn of each showing of a training pair: the margins of the teachers, weighed by the groups of the history."""

from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from trl_pafo.data.group_posterior import GroupLikelihood, history_scores, mixture_margin, posterior
from trl_pafo.data.history import past_pairs
from trl_pafo.data.rows import read_rows
from trl_pafo.trainer.margins import TeacherMargins
from trl_pafo.trainer.teacher import Teacher

FloatArray = NDArray[np.float64]


class Targets:
    """
    Target margins of training pairs under histories: `logit(sum_g q(g | H) sigmoid(D_g))`. (Not from the paper.)

    `D_g` is the margin of the teacher of group g for the pair, `q(g | H)` how likely the history H makes group g: the `posterior`,
    or, without it, certain of the group of its user, so that the target is the margin of that group's teacher. `margins` and
    `posterior` have the shape `(num_rows, num_groups)`; margins are NaN where no `q` above 0 ever goes with them. `group` has the
    place of each row's group.
    """

    def __init__(self, margins: FloatArray, group: NDArray[np.int64], posterior: FloatArray | None = None):
        self.margins, self.group, self.posterior = margins, group, posterior

    def __call__(self, rows: Sequence[int], donors: Sequence[int]) -> NDArray[np.float32]:
        """Targets of the pairs of some rows under the histories of others, of shape `(len(rows),)`, in reward units."""
        if self.posterior is None:
            return self.margins[list(rows), self.group[list(donors)]].astype(np.float32)
        return mixture_margin(self.margins[list(rows)], self.posterior[list(donors)]).astype(np.float32)

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


def posterior_of_histories(log_likelihood: FloatArray, group: Sequence[str], tau: float) -> FloatArray:
    """`q(g | H)` of each row's history, with the shares of the groups in the rows as the prior that `tau` flattens."""
    shares = np.unique(np.asarray(group), return_counts=True)[1] / len(group)
    return posterior(log_likelihood, np.log(shares), tau)


def targets_from_teachers(
    score: TeacherMargins,
    teachers: Mapping[str, Teacher],
    rows: Dataset,
    group: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    own: bool = False,
    tau: float | None = None,
) -> Targets:
    """Targets of training pairs that teachers score now, see [`score_pairs`]; with `tau`, under the posterior of the group with
    this prior.

    How likely a history makes each group is fitted on the rows themselves: with teachers that were trained on these pairs it is
    surer than of new users.
    """
    places = np.searchsorted(sorted(teachers), group)
    margins = score_pairs(score, teachers, rows, tokenizer, own)
    if tau is None:
        return Targets(margins, places)
    past, of_row = past_pairs(rows)
    scores = history_scores(score_pairs(score, teachers, past, tokenizer), of_row)
    likelihood = GroupLikelihood.fit(scores, places).log_likelihood(scores)
    return Targets(margins, places, posterior_of_histories(likelihood, group, tau))


def targets_from_columns(rows: Dataset, groups: Sequence[str], *, tau: float | None = None) -> Targets:
    """Targets of training pairs that bring `teacher_margins`, and, for the posterior, `history_log_likelihood`, both by group.

    `groups` are in the order of their names.
    """
    group = rows["group"][:]
    margins, places = group_numbers(rows, "teacher_margins", groups), np.searchsorted(groups, group)
    if tau is None:
        return Targets(margins, places)
    likelihood = group_numbers(rows, "history_log_likelihood", groups)
    return Targets(margins, places, posterior_of_histories(likelihood, group, tau))
