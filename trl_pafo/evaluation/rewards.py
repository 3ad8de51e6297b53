"""Raw rewards of the pairs of a dataset under saved models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import PartialState
from datasets import Dataset

from trl_pafo.data.history import reads_history, without_history
from trl_pafo.data.rows import read_rows
from trl_pafo.data.template import add_history_template
from trl_pafo.data.tokenization import tokenize_row
from trl_pafo.errors import DataError
from trl_pafo.models.group_scorer import GroupScorer
from trl_pafo.models.loading import check_positions
from trl_pafo.models.scoring import RewardScorer

SIDES = ("chosen", "rejected")


class ScoredPairs(NamedTuple):
    """Raw rewards of the chosen and the rejected responses, each of shape `(num_pairs,)`."""

    chosen: np.ndarray
    rejected: np.ndarray


def score_rows(
    folder: str | Path,
    rows: Dataset,
    *,
    batch_size: int = 32,
    bf16: bool = False,
    desc: str | None = None,
    processes: PartialState | None = None,
) -> ScoredPairs:
    """Score pairs under a saved model.

    Args:
        folder (`str` or `Path`):
            A saved reward model or adapter with its tokenizer.
        rows ([`~datasets.Dataset`]):
            Rows with `prompt`, `chosen`, `rejected`, optional `chat_template_kwargs` and `tools`, rendered by
            [`~trl_pafo.data.rendering.InputRenderer.render`]: what stands there is what the model reads.
        batch_size (`int`, *optional*, defaults to `32`):
            Pairs in a forward pass.
        bf16 (`bool`, *optional*, defaults to `False`):
            Compute in bfloat16 mixed precision.
        desc (`str`, *optional*):
            Title of the progress bar; no bar without it.
        processes ([`~accelerate.PartialState`], *optional*):
            All of them call this with the same rows, and share the work; see [`~trl_pafo.models.batches.in_batches`].

    Raises:
        DataError: If a pair is longer than the model's positions.
    """
    scorer = RewardScorer.from_pretrained(folder, bf16=bf16)
    ids = tokenize_rendered(scorer, rows)
    check_positions([max(map(len, row.values())) for row in ids], scorer.positions, "pairs", "the model")
    return score_tokenized(scorer, ids, batch_size=batch_size, desc=desc, processes=processes)


def tokenize_rendered(scorer: RewardScorer, rows: Dataset) -> list[dict[str, list[int]]]:
    """Token ids of both sides of rendered pairs, see [`score_rows`]. A model that was trained without histories, or elsewhere, is shown none;
    one that reads the names of groups reads the column `history`, not what is rendered.
    """
    if isinstance(scorer, GroupScorer):
        return scorer.sequences(list(read_rows(rows)), "Row {}".format, allow_no_history=True)
    if "chat_template_kwargs" in rows.column_names:
        if not reads_history(scorer.tokenizer):
            rows = without_history(rows)
        add_history_template(scorer.tokenizer)  # a teacher that was trained elsewhere may have none
    return [
        {side: tokenize_row(scorer.tokenizer, row, side, f"Row {number}") for side in SIDES} for number, row in enumerate(rows)
    ]


def score_tokenized(
    scorer: RewardScorer,
    ids: list[dict[str, list[int]]],
    *,
    batch_size: int = 32,
    desc: str | None = None,
    processes: PartialState | None = None,
) -> ScoredPairs:
    """Score pairs that are tokenized, `batch_size` of them in a forward pass."""
    rewards = scorer.score_tokens(ids, batch_size=2 * batch_size, desc=desc, processes=processes)
    return ScoredPairs(*(np.array([row[side] for row in rewards], dtype=np.float32) for side in SIDES))


def score_mean(folders: str | Sequence[str], rows: Dataset, **kwargs: Any) -> ScoredPairs:
    """The mean rewards of one or several saved models, such as the folds of a teacher; see [`score_rows`]."""
    scored = [score_rows(folder, rows, **kwargs) for folder in ([folders] if isinstance(folders, str) else folders)]
    return ScoredPairs(*np.mean(scored, axis=0))


def score_routed(teachers: Mapping[str, str | Sequence[str]], rows: Dataset, **kwargs: Any) -> ScoredPairs:
    """Score each row under the teacher of its group, which needs the label at inference.

    Raises:
        DataError: If a group has no teacher.
    """
    group = np.asarray(rows["group"])
    missing = sorted(set(group) - set(teachers))
    if missing:
        raise DataError(
            f"The test data have groups without a teacher: {', '.join(missing)}. Add teachers, or leave out group_routed."
        )
    places = {name: np.flatnonzero(group == name) for name in teachers if (group == name).any()}
    parts = [score_mean(teachers[name], rows.select(mine), **kwargs) for name, mine in places.items()]
    order = np.argsort(np.concatenate(list(places.values())))
    return ScoredPairs(*np.concatenate(parts, axis=1)[:, order])
