"""Raw rewards of the pairs of a dataset under saved models, with the texts as the models read them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset

from trl_pafo.data.groups import count_by_group
from trl_pafo.data.template import add_history_template
from trl_pafo.data.tokenization import tokenize_row
from trl_pafo.errors import DataError
from trl_pafo.models.base_models import longest_input
from trl_pafo.models.safe_loading import ADAPTER_CONFIG
from trl_pafo.models.scoring import load_reward_model, load_saved_tokenizer, pad_id_of, score_pairs


class ScoredPairs(NamedTuple):
    """What a model read of each pair, and its raw rewards: four columns of `num_pairs`."""

    chosen: np.ndarray
    rejected: np.ndarray
    text_chosen: list[str]
    text_rejected: list[str]


def pair_rewards(folder: str | Path, rows: Dataset, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rewards of the chosen and rejected responses as [`score_rows`] gives them, each of shape `(num_pairs,)`."""
    scored = score_rows(folder, rows, **kwargs)
    return scored.chosen, scored.rejected


def score_rows(
    folder: str | Path, rows: Dataset, *, batch_size: int = 32, bf16: bool = False, desc: str | None = None
) -> ScoredPairs:
    """Score pairs under a saved model.

    Args:
        folder (`str` or `Path`):
            A saved reward model or adapter with its tokenizer.
        rows ([`~datasets.Dataset`]):
            Rows with `prompt`, `chosen`, `rejected`, optional `chat_template_kwargs` and `tools`, as the model reads them: see
            [`~trl_pafo.data.rendering.InputRenderer.render`].
        batch_size (`int`, *optional*, defaults to `32`):
            Pairs in a forward pass.
        bf16 (`bool`, *optional*, defaults to `False`):
            Compute in bfloat16 mixed precision.
        desc (`str`, *optional*):
            Title of the progress bar; no bar without it.

    Raises:
        DataError: If a pair is longer than the model's positions.
    """
    tokenizer = load_saved_tokenizer(folder)
    if "chat_template_kwargs" in rows.column_names:
        add_history_template(tokenizer)  # a teacher that was trained elsewhere may have none
    ids: dict[str, list[list[int]]] = {"chosen": [], "rejected": []}
    for number, row in enumerate(rows):
        for side, sequences in ids.items():
            sequences.append(tokenize_row(tokenizer, row, side, f"Row {number}"))
    longest = longest_input(str(folder)) if not (Path(folder) / ADAPTER_CONFIG).exists() else None
    too_long = [i for i, pair in enumerate(zip(*ids.values(), strict=True)) if longest and max(map(len, pair)) > longest]
    if too_long:
        raise DataError(
            f"{len(too_long)} of {len(rows)} pairs are longer than the model's {longest} positions (by group: "
            f"{dict(count_by_group(rows.select(too_long)))}), the first in row {too_long[0]}. Lower `history_max_tokens`, or leave "
            "them out."
        )
    device = PartialState().device
    model = load_reward_model(folder).to(device)
    chosen, rejected = score_pairs(
        model,
        ids["chosen"],
        ids["rejected"],
        pad_id_of(model.config, tokenizer),
        batch_size=2 * batch_size,
        device=device,
        autocast=lambda: torch.autocast(device.type, torch.bfloat16, enabled=bf16),
        desc=desc,
    )
    return ScoredPairs(chosen, rejected, *(tokenizer.batch_decode(ids[side]) for side in ("chosen", "rejected")))


def score_routed(teachers: Mapping[str, str], rows: Dataset, **kwargs: Any) -> ScoredPairs:
    """Score each row under the teacher of its group, which needs the label at inference."""
    group = np.asarray(rows["group"])
    missing = sorted(set(group) - set(teachers))
    if missing:
        raise DataError(
            f"The test data have groups without a teacher: {', '.join(missing)}. Add teachers, or leave out group_routed."
        )
    places = {name: np.flatnonzero(group == name) for name in teachers if (group == name).any()}
    parts = [score_rows(teachers[name], rows.select(mine), **kwargs) for name, mine in places.items()]
    order = np.argsort(np.concatenate(list(places.values()))).tolist()
    columns = [[value for part in parts for value in part[column]] for column in range(4)]
    chosen, rejected, *texts = ([column[i] for i in order] for column in columns)
    return ScoredPairs(np.asarray(chosen), np.asarray(rejected), *texts)
