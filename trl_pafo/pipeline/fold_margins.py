"""Margins of teachers for pairs that they have not seen: of each fold of the prompts, by those that were trained without it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from trl_pafo.data.group_posterior import GroupLikelihood, fit_temperature, history_scores
from trl_pafo.data.history import without_history
from trl_pafo.data.overlap import PromptFolds
from trl_pafo.evaluation.mixture import past_pairs_alone
from trl_pafo.evaluation.rewards import score_rows
from trl_pafo.metrics.accuracy import FloatArray


def with_fold_margins(
    rows: Dataset, teachers: Mapping[str, Sequence[str]], seed: int, *, of_histories: bool = False, **scoring: Any
) -> Dataset:
    """Training rows with the column `teacher_margins`, and, if asked for, `history_log_likelihood`, both by group. (Not from the
    paper.)

    Margins are divided by a temperature of each group's teachers, fitted to the labels of the group's pairs. Each group has the
    folder of the teacher that was trained without each fold, see [`~trl_pafo.data.overlap.PromptFolds`], whose seed is given.
    `scoring` are options of [`~trl_pafo.evaluation.rewards.score_rows`].
    """
    groups = sorted(teachers)
    folds = PromptFolds(rows, len(teachers[groups[0]]), seed)

    def score(pairs: Dataset, desc: str) -> FloatArray:
        fold = folds.of(pairs)
        margins = np.zeros((len(pairs), len(groups)))
        for place, group in enumerate(groups):
            for number, folder in enumerate(teachers[group]):
                mine = np.flatnonzero((fold == number) | (fold < 0))
                scored = np.subtract(*score_rows(folder, pairs.select(mine), desc=f"{desc}, teacher of {group}", **scoring))
                margins[mine, place] += scored / np.where(fold[mine] < 0, len(teachers[group]), 1)  # the mean where all are new
        return margins

    margins = score(without_history(rows), "Training pairs")
    own = np.searchsorted(groups, rows["group"][:])
    temperature = np.array([fit_temperature(margins[own == place, place]) for place in range(len(groups))])
    columns = {"teacher_margins": margins / temperature}
    if of_histories:
        entries, past = past_pairs_alone(rows)
        scores = history_scores(score(entries, "Past pairs") / temperature, past)
        columns["history_log_likelihood"] = GroupLikelihood.fit(scores, own).log_likelihood(scores)
    for name, values in columns.items():
        by_group = [dict(zip(groups, row, strict=True)) for row in values.tolist()]
        rows = rows.add_column(name, by_group)  # type: ignore[arg-type]
    return rows
