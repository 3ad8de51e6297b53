"""Pairs to rewards: one way of loading, tokenising and scoring for teachers, evaluation and `trl-pafo score`."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from trl_pafo.errors import TeacherError


def local_folder(source: str) -> Path:
    """The folder of a saved model: as it is, or the Hub's snapshot (safetensors only).

    Raises:
        TeacherError: If there is no such folder and no such repository.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise TeacherError(f"No model is found at {source!r}: no such folder, and the Hub does not give it ({error}).") from error


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer was saved in a folder."""
    return any((folder / name).exists() for name in ("tokenizer_config.json", "tokenizer.json"))


def load_reward_model(folder: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    """A saved reward model or adapter, in evaluation mode, only from safetensors and without remote code."""
    folder = Path(folder)
    if not (folder / "adapter_config.json").exists():
        return AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, use_safetensors=True).eval()
    from peft import AutoPeftModelForSequenceClassification

    model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=dtype)
    config = model.config.get_text_config()
    if config.pad_token_id is None and has_tokenizer(folder):
        # The base's own config knows no pad id, but pooling looks for the one that the adapter was trained with.
        config.pad_token_id = AutoTokenizer.from_pretrained(folder).pad_token_id
    return model.eval()


def pad_id_of(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """The pad id that a model of this configuration was trained with; the tokenizer's where the model knows none."""
    own = config.get_text_config().pad_token_id
    return tokenizer.pad_token_id if own is None else own


def tokenize_response(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[dict[str, str]] | None,
    response: str | list[dict[str, str]],
    chat_template_kwargs: dict[str, Any] | None = None,
) -> list[int]:
    """Token ids of a prompt and its response, as RewardTrainer makes them: by the chat template, or as plain text and eos."""
    if isinstance(response, str):
        text = (prompt or "") + response  # type: ignore[operator]
        end = tokenizer.eos_token or ""
        return tokenizer(text if text.endswith(end) else text + end)["input_ids"]
    messages = [*(prompt or []), *response]
    encoded: Any = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **(chat_template_kwargs or {}))
    return encoded["input_ids"]


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
