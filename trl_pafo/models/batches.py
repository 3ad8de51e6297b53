"""Token ids to rewards: forward passes of a model over sequences and pairs, equal ones once, on one process or several."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from trl_pafo.errors import ConfigError, DataError, TeacherError
from trl_pafo.prefix_sharing.forward import forward_shared
from trl_pafo.prefix_sharing.packing import forward_packed
from trl_pafo.prefix_sharing.packing_choice import choose_packing
from trl_pafo.prefix_sharing.rows import PAIR_LENGTHS, collate_pairs, pair_lengths

BATCHES_AT_ONCE = 16
"""Batches of rows that are sorted by length together, wherever there may be more rows than fit into memory."""


def check_batch_size(batch_size: int) -> None:
    """Raise [`ConfigError`] if `batch_size` is no integer above 0."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"`batch_size` must be a whole number of at least 1, got {batch_size!r}.")


def reward_of(outputs: Any) -> torch.Tensor:
    """Rewards of shape `(num_sequences,)` from the output of a sequence classification model with one label.

    Raises:
        ConfigError: If the output is that of another kind of model.
    """
    logits = getattr(outputs, "logits", None)
    if logits is None or logits.dim() != 2 or logits.shape[1] != 1:
        found = "no logits" if logits is None else f"logits of shape {tuple(logits.shape)}"
        raise ConfigError(
            f"A reward model gives one number per sequence, and this one gives {found}. Load it with "
            "AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)."
        )
    return logits.squeeze(-1)


def score_sequences(
    model: torch.nn.Module,
    sequences: Sequence[Sequence[int]],
    pad_token_id: int,
    *,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    desc: str | None = None,
    accelerator: Accelerator | PartialState | None = None,
) -> np.ndarray:
    """Rewards of token sequences, each independent of its neighbors, raw (no sigmoid).

    Sequences of similar length share a batch, so that little is computed on padding, and on a CPU encoders compute none
    ([`~trl_pafo.prefix_sharing.packing.forward_packed`]); equal sequences are scored once.

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
        accelerator ([`~accelerate.Accelerator`] or [`~accelerate.PartialState`], *optional*):
            Its processes, all of which call this with the same sequences, share the batches; see [`in_batches`].

    Returns:
        `np.ndarray` of shape `(num_sequences,)`, float32.

    Raises:
        ConfigError: If `batch_size` is no integer above 0.
        TeacherError: If a reward is not finite.
    """
    how: dict[str, Any] = {"autocast": autocast, "desc": desc, "accelerator": accelerator}
    read = lambda outputs: reward_of(outputs)[:, None]  # noqa: E731
    return _read_sequences(model, sequences, pad_token_id, read, 1, batch_size, device, how)[:, 0]


def pool_sequences(
    model: torch.nn.Module,
    sequences: Sequence[Sequence[int]],
    pad_token_id: int,
    *,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    **how: Any,
) -> np.ndarray:
    """The hidden state of each token sequence that the reward head makes its reward of: of a decoder that of the last token, of an
    encoder what its head has pooled. The arguments are those of [`score_sequences`].

    Returns:
        `np.ndarray` of shape `(num_sequences, hidden_size)`, float32.

    Raises:
        ConfigError: If the model has no linear reward head with one output.
    """
    inner: Any = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), model)
    backbone = f"{getattr(inner, 'base_model_prefix', '')}."
    heads = [name for name, m in inner.named_modules() if getattr(m, "out_features", 0) == 1 and not name.startswith(backbone)]
    heads = [name for name in heads if not any(name.startswith(f"{other}.") for other in heads)]  # within adapted ones
    if not heads:
        raise ConfigError(
            f"{type(inner).__name__} has no linear reward head with one output to take features from. Use another model."
        )
    width = inner.get_submodule(heads[0]).in_features
    # The head gives back what it reads, so that the model's own forward pass pools it.
    hooks = [inner.get_submodule(name).register_forward_hook(lambda module, args, output: args[0]) for name in heads]
    try:
        return _read_sequences(model, sequences, pad_token_id, lambda outputs: outputs.logits, width, batch_size, device, how)
    finally:
        for hook in hooks:
            hook.remove()


def _read_sequences(
    model: torch.nn.Module,
    sequences: Sequence[Sequence[int]],
    pad_token_id: int,
    read: Callable[[Any], torch.Tensor],
    width: int,
    batch_size: int,
    device: torch.device | str,
    how: Mapping[str, Any],
) -> np.ndarray:
    """What `read` takes from the output for each sequence, see [`in_batches`]."""
    call: Callable[..., Any] = partial(forward_packed, model) if choose_packing("auto", model).pack else model

    def forward(batch: list[tuple[int, ...]]) -> torch.Tensor:
        ids, mask = pad_sequences(batch, pad_token_id)
        return read(call(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False))

    return in_batches(model, [tuple(sequence) for sequence in sequences], len, forward, batch_size, width=width, **how)


def score_pairs(
    model: torch.nn.Module,
    chosen_ids: Sequence[Sequence[int]],
    rejected_ids: Sequence[Sequence[int]],
    pad_token_id: int,
    *,
    share_prefix: bool = False,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    **how: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards of the chosen and of the rejected responses, each of shape `(num_pairs,)`. The other arguments are those of
    [`score_sequences`].

    Args:
        share_prefix (`bool`, *optional*, defaults to `False`):
            Compute what both responses of a pair begin with once. The rewards are the same to rounding, if the model is one that
            [`~trl_pafo.prefix_sharing.choice.choose_sharing`] shares with. A pair still counts as two of `batch_size`.
    """
    if not share_prefix:
        sequences = [*chosen_ids, *rejected_ids]
        rewards = score_sequences(model, sequences, pad_token_id, batch_size=batch_size, device=device, **how)
        return rewards[: len(chosen_ids)], rewards[len(chosen_ids) :]

    def forward(pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> torch.Tensor:
        rows = [{"chosen_ids": chosen, "rejected_ids": rejected} for chosen, rejected in pairs]
        batch = {name: tensor.to(device) for name, tensor in collate_pairs(rows, pad_token_id).items()}
        outputs = forward_shared(model, batch["input_ids"], batch[PAIR_LENGTHS], use_cache=False)
        return torch.stack(reward_of(outputs).chunk(2), dim=1)

    keys = [(tuple(chosen), tuple(rejected)) for chosen, rejected in zip(chosen_ids, rejected_ids, strict=True)]
    num_pairs = batch_size if batch_size < 2 else batch_size // 2
    both = in_batches(model, keys, lambda pair: sum(pair_lengths(*pair)), forward, num_pairs, width=2, **how)
    return both[:, 0], both[:, 1]


def in_batches(
    model: torch.nn.Module,
    keys: Sequence[Any],
    length: Callable[[Any], int],
    forward: Callable[[list[Any]], torch.Tensor],
    batch_size: int,
    *,
    width: int = 1,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    desc: str | None = None,
    accelerator: Accelerator | PartialState | None = None,
) -> np.ndarray:
    """What a forward pass gives for each key, without gradients and dropout: equal keys once, those of similar length together.

    The batches are the same however many processes share them, and so are the numbers, to the last bit. Processes that run out of
    batches repeat the last one: all take equally many forward passes, as sharded weights need. `forward` makes a tensor of shape
    `(num_keys, width)` of a list of keys; the result has this shape, in float32, the same on every process. Keys of several processes are
    integers or tuples of them: all have the same hash of these.

    Raises:
        ConfigError: If `batch_size` is no integer above 0.
        DataError: If the processes were given different keys.
        TeacherError: If a number is not finite.
    """
    check_batch_size(batch_size)
    place: dict[Any, int] = {}
    index = np.fromiter((place.setdefault(key, len(place)) for key in keys), dtype=np.int64, count=len(keys))
    unique = list(place)
    # Longest first: a batch that does not fit into memory fails at once, not after an hour.
    order = sorted(range(len(unique)), key=lambda row: -length(unique[row]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    rank, num_processes = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    turns = range(math.ceil(len(batches) / num_processes))
    found = []
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for turn in tqdm(turns, desc=desc, unit="batch", disable=desc is None or rank > 0):
                rows = batches[min(turn * num_processes + rank, len(batches) - 1)]
                with autocast():
                    numbers = forward([unique[row] for row in rows])
                found.append((rows, numbers.float().cpu().numpy()))
    finally:
        model.train(was_training)
    if accelerator is not None:
        shares = gather_object([(hash(tuple(unique)), found)])
        if len({of_keys for of_keys, _ in shares}) > 1:
            raise DataError(
                "The processes have read different rows. Let all of them see the same files and models, and start again."
            )
        found = [batch for _, share in shares for batch in share]
    results = np.full((len(unique), width), np.nan, dtype=np.float32)
    for rows, values in found:
        results[rows] = values
    if not np.isfinite(results).all():
        raise TeacherError(
            f"{int((~np.isfinite(results)).sum())} of {results.size} rewards are NaN or infinite; the model's weights or its "
            "dtype are broken. Train it again, or score it in float32."
        )
    return results[index]


def pad_sequences(sequences: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask of shape `(num_sequences, longest)`, padded on the right."""
    rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_token_id)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    return ids, mask.long()
