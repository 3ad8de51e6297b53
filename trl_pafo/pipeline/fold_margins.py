"""Margins of teachers for pairs that they have not seen: of each fold of the prompts, by those that were trained without it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from trl_pafo.data.history import without_history
from trl_pafo.data.overlap import PromptFolds
from trl_pafo.evaluation.rewards import score_rows
from trl_pafo.metrics.group_posterior import fit_temperature


def with_fold_margins(rows: Dataset, teachers: Mapping[str, Sequence[str]], seed: int, **scoring: Any) -> Dataset:
    """Training rows with the column `teacher_margins`, by group. (Not from the paper.)

    Margins are divided by a temperature of each group's teachers, fitted to the labels of the group's pairs. Each group has the
    folder of the teacher that was trained without each fold, see [`~trl_pafo.data.overlap.PromptFolds`], whose seed is given.
    `scoring` are options of [`~trl_pafo.evaluation.rewards.score_rows`].
    """
    groups = sorted(teachers)
    fold = PromptFolds(rows, len(teachers[groups[0]]), seed).of(rows)
    alone = without_history(rows)
    margins = np.zeros((len(rows), len(groups)))
    for place, group in enumerate(groups):
        for number, folder in enumerate(teachers[group]):
            mine = np.flatnonzero(fold == number)
            scored = score_rows(folder, alone.select(mine), desc=f"Training pairs, teacher of {group}", **scoring)
            margins[mine, place] = np.subtract(*scored)
    own = np.searchsorted(groups, rows["group"][:])
    temperature = np.array([fit_temperature(margins[own == place, place]) for place in range(len(groups))])
    by_group = [dict(zip(groups, row, strict=True)) for row in (margins / temperature).tolist()]
    return rows.add_column("teacher_margins", by_group)  # type: ignore[arg-type]
