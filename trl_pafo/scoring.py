"""Token sequences to rewards: one forward pass for teachers and for evaluation."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from trl_pafo.errors import TeacherError


def reward_of(outputs: Any) -> torch.Tensor:
    """Rewards of shape `(num_sequences,)` from the output of a sequence classification model with one label."""
    return outputs.logits.squeeze(-1)


def score_sequences(
    model: torch.nn.Module,
    sequences: Sequence[Sequence[int]],
    pad_token_id: int,
    *,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    desc: str | None = None,
) -> np.ndarray:
    """Rewards of token sequences, each scored alone of its neighbours, raw (no sigmoid).

    Sequences of like length share a batch, so that little is computed on padding; equal sequences are scored once.

    Args:
        model (`torch.nn.Module`):
            Sequence classification model with one label.
        sequences (`Sequence[Sequence[int]]`):
            Token ids.
        pad_token_id (`int`):
            The pad id that the model was trained with: pooling looks for it.
        batch_size (`int`, *optional*, defaults to `32`):
            Sequences in a forward pass.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`):
            Where the model stands.
        autocast (`Callable`, *optional*):
            Makes the context manager of a forward pass, as `Accelerator.autocast` does.
        desc (`str`, *optional*):
            Title of the progress bar; no bar without it.

    Returns:
        `np.ndarray` of shape `(num_sequences,)`, float32.

    Raises:
        TeacherError: If a reward is not finite.
    """
    place: dict[tuple[int, ...], int] = {}
    index = np.fromiter((place.setdefault(tuple(s), len(place)) for s in sequences), dtype=np.int64, count=len(sequences))
    unique = list(place)
    # Longest first: a batch that does not fit into memory fails at once, not after an hour.
    order = sorted(range(len(unique)), key=lambda i: -len(unique[i]))
    rewards = np.empty(len(unique), dtype=np.float32)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), tqdm(total=len(unique), desc=desc, unit="seq", disable=desc is None) as bar:
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                ids, mask = _pad([unique[row] for row in rows], pad_token_id)
                with autocast():
                    outputs = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
                rewards[rows] = reward_of(outputs).float().cpu().numpy()
                bar.update(len(rows))
    finally:
        model.train(was_training)
    if not np.isfinite(rewards).all():
        raise TeacherError(
            f"{int((~np.isfinite(rewards)).sum())} of {len(rewards)} rewards are NaN or infinite; the model's weights or its "
            "number format are broken. Train it again, or score it in float32."
        )
    return rewards[index]


def score_pairs(
    model: torch.nn.Module,
    chosen_ids: Sequence[Sequence[int]],
    rejected_ids: Sequence[Sequence[int]],
    pad_token_id: int,
    **kwargs: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards of the chosen and of the rejected responses, each of shape `(num_pairs,)`. See [`score_sequences`]."""
    rewards = score_sequences(model, [*chosen_ids, *rejected_ids], pad_token_id, **kwargs)
    return rewards[: len(chosen_ids)], rewards[len(chosen_ids) :]


def _pad(sequences: list[tuple[int, ...]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(s) for s in sequences)
    ids = torch.full((len(sequences), longest), pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        mask[row, : len(sequence)] = 1
    return ids, mask
