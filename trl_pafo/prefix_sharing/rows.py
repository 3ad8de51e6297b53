"""Shared rows: how a pair becomes one row, which token sees which, and where its two rewards are read.

A row is `[prefix | rest of chosen | rest of rejected | padding]`. The rests are blind to each other and the positions of the
second start again where the prefix ends, so each token sees what it would see in a row of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray

PAIR_LENGTHS = "pair_lengths"
"""Key of a shared batch: int tensor of shape `(num_pairs, 3)`, the tokens of prefix, chosen rest and rejected rest."""

# Parts of a row, in their order.
_PREFIX, _CHOSEN, _REJECTED, _PADDING = range(4)


def pair_lengths(chosen: Sequence[int], rejected: Sequence[int]) -> tuple[int, int, int]:
    """Tokens of prefix, chosen rest and rejected rest; their sum is the length of the shared row.

    Each sequence keeps a token of its own, in which its reward is read.
    """
    most = max(0, min(len(chosen), len(rejected)) - 1)
    differs = np.flatnonzero(np.asarray(chosen[:most]) != np.asarray(rejected[:most]))
    prefix = int(differs[0]) if len(differs) else most
    return prefix, len(chosen) - prefix, len(rejected) - prefix


def dataset_lengths(dataset: Dataset) -> NDArray[np.int64]:
    """[`pair_lengths`] of the tokenized pairs of a dataset, of shape `(num_pairs, 3)`."""
    batches = dataset.select_columns(["chosen_ids", "rejected_ids"]).with_format("numpy").iter(1000)
    lengths = [pair_lengths(*pair) for batch in batches for pair in zip(batch["chosen_ids"], batch["rejected_ids"], strict=True)]
    return np.array(lengths, dtype=np.int64).reshape(-1, 3)


def collate_pairs(
    pairs: Sequence[Mapping[str, Any]], pad_token_id: int, pad_to_multiple_of: int | None = None
) -> dict[str, torch.Tensor]:
    """Tokenized pairs as one batch of shared rows, padded on the right: `"input_ids"` and `"attention_mask"` of shape `(num_pairs,
    num_tokens)`, the latter 0 on padding, and [`PAIR_LENGTHS`].

    The mask of who sees whom is not part of it: it grows with the square of the length, and is made on the device.
    """
    lengths = [pair_lengths(pair["chosen_ids"], pair["rejected_ids"]) for pair in pairs]
    longest = round_up(max(map(sum, lengths)), pad_to_multiple_of)
    ids = np.full((len(lengths), longest), pad_token_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, (pair, (prefix, chosen, rejected)) in enumerate(zip(pairs, lengths, strict=True)):
        ids[row, : prefix + chosen] = pair["chosen_ids"]
        ids[row, prefix + chosen : prefix + chosen + rejected] = pair["rejected_ids"][prefix:]
        mask[row, : prefix + chosen + rejected] = 1
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        PAIR_LENGTHS: torch.tensor(lengths),
    }


def round_up(length: int, multiple: int | None) -> int:
    """The next multiple of `multiple`, or the length itself without one."""
    return length if not multiple else -(-length // multiple) * multiple


class RowLayout(NamedTuple):
    """Part (`0` prefix, `1` chosen, `2` rejected, `3` padding) and position of each token, both `(num_pairs, num_tokens)`."""

    part: torch.Tensor
    position: torch.Tensor


def row_layout(lengths: torch.Tensor, num_tokens: int) -> RowLayout:
    """Layout of shared rows with these [`PAIR_LENGTHS`], padded to `num_tokens`, on the device of `lengths` and without waiting for
    it.
    """
    index = torch.arange(num_tokens, device=lengths.device)[None]
    ends = lengths.cumsum(-1)[:, :, None]
    part = (index[:, None] >= ends).sum(1)
    position = index - (part == _REJECTED) * lengths[:, 1:2]
    # Padding stands at 0: rotary embeddings that depend on the longest sequence must not take it for one.
    return RowLayout(part, position.masked_fill(part == _PADDING, 0))


def may_see(layout: RowLayout, window: int | None = None) -> Callable[..., torch.Tensor]:
    """Whether a token sees another one, as flex_attention's `mask_mod` and, on grids of indices, as a dense mask.

    A token sees itself and what stands before it in its own part, and the prefix before that, as far as a sliding window of the
    layer reaches: so many positions, its own among them.
    """
    part, position = layout

    def mask_mod(row: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        of_query, of_key = part[row, query], part[row, key]
        sees = (key <= query) & ((of_query == of_key) | ((of_key == _PREFIX) & (of_query != _PADDING)))
        if window is not None:
            sees = sees & (position[row, query] - position[row, key] < window)
        return sees

    return mask_mod


def seen_ranges(layout: RowLayout, window: int | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """[`may_see`] as two ranges of tokens that each token sees, first and end of shape `(num_pairs, num_tokens)`: in the prefix before
    the rejected rest, and in the sequence up to itself.
    """
    part, position = layout
    index = torch.arange(part.shape[1], device=part.device).expand_as(part)
    of_prefix, of_first, of_both = ((part < end).sum(1, keepdim=True) for end in (_CHOSEN, _REJECTED, _PADDING))
    own = (part == _REJECTED) * of_first + (part == _PADDING) * of_both
    prefix = torch.zeros_like(index)
    if window is not None:  # padding stands at one position
        own = own.maximum((index - window + 1) * (part != _PADDING))
        prefix = (position - window + 1).clamp(min=0)
    return [(prefix, of_prefix * (part == _REJECTED)), (own, index + 1)]


def dense_mask(layout: RowLayout, window: int | None = None) -> torch.Tensor:
    """[`may_see`] as a bool tensor of shape `(num_pairs, 1, num_tokens, num_tokens)`, rows see columns."""
    rows, num_tokens = layout.part.shape
    device = layout.part.device
    index = torch.arange(num_tokens, device=device)
    row = torch.arange(rows, device=device)[:, None, None]
    return may_see(layout, window)(row, None, index[:, None], index[None, :])[:, None]


def _places(lengths: torch.Tensor, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the tokens of both sequences stand in their row, and which of them are real: `(num_pairs, 2, num_tokens)` each."""
    index = torch.arange(num_tokens, device=lengths.device).expand(len(lengths), num_tokens)
    prefix, chosen, _ = lengths[:, :, None].unbind(1)
    of_rejected = (index + (index >= prefix) * chosen).clamp(max=num_tokens - 1)
    sequence_lengths = lengths[:, :1] + lengths[:, 1:]
    return torch.stack([index, of_rejected], dim=1), index[:, None] < sequence_lengths[:, :, None]


def reward_places(input_ids: torch.Tensor, lengths: torch.Tensor, pad_token_id: int | None) -> torch.Tensor:
    """Where the rewards of chosen and rejected are read, of shape `(num_pairs, 2)`.

    It is where models of transformers read that of a row of its own: at the last token that is not the pad token. With an end
    token for padding, that is the token before the end.
    """
    places, is_real = _places(lengths, input_ids.shape[1])
    if pad_token_id is not None:
        tokens = input_ids[:, None].expand_as(places).gather(2, places)
        is_real = is_real & (tokens != pad_token_id)
    index = torch.arange(input_ids.shape[1], device=input_ids.device)
    last = (index * is_real).amax(-1, keepdim=True)
    return places.gather(2, last).squeeze(-1)


def two_rows(input_ids: torch.Tensor, lengths: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """Token ids of both sequences, of shape `(num_pairs, 2, longest)`, padded on the right. It waits for the device."""
    longest = int((lengths[:, 0] + lengths[:, 1:].amax(1)).max())
    places, is_real = _places(lengths, input_ids.shape[1])
    tokens = input_ids[:, None].expand_as(places).gather(2, places)
    return tokens.masked_fill(~is_real, pad_token_id)[:, :, :longest]
