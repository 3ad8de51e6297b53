"""What flex_attention is told of shared rows: which blocks of tokens to compute, counted from where the parts of a row begin.

`create_block_mask` of torch makes the mask of every token on every other one first, several times over: a gigabyte for four rows of 5,120
tokens. What a token sees are two ranges, so their overlap with a block is a number, and memory grows with the blocks.
"""

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask

from trl_pafo.prefix_sharing.rows import RowLayout, may_see, seen_ranges

_SIZE = 128
"""Tokens of a block, each way: flex_attention's own default."""


def block_mask(layout: RowLayout, window: int | None = None) -> BlockMask:
    """[`may_see`] as flex_attention wants to be told, on the device of the layout and without waiting for it."""
    num_tokens = layout.part.shape[1]
    num_blocks = -(-num_tokens // _SIZE)
    starts = torch.arange(num_blocks, device=layout.part.device) * _SIZE
    overlaps = [
        (end[..., None].minimum(starts + _SIZE) - start[..., None].maximum(starts)).clamp(min=0)
        for start, end in seen_ranges(layout, window)
    ]
    by_token = F.pad(torch.stack(overlaps).sum(0), (0, 0, 0, num_blocks * _SIZE - num_tokens))
    by_block = by_token.unflatten(1, (num_blocks, _SIZE)).sum(2)[:, None]  # all heads see the same
    is_full = by_block == _SIZE**2
    return BlockMask.from_kv_blocks(
        *_in_order((by_block > 0) & ~is_full),
        *_in_order(is_full),
        BLOCK_SIZE=_SIZE,
        mask_mod=may_see(layout, window),
        seq_lengths=(num_tokens, num_tokens),
    )


def _in_order(is_of_kind: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many blocks of a kind each block of queries has, and their numbers first, then the others'."""
    kind = is_of_kind.int()
    return kind.sum(-1, dtype=torch.int32), kind.argsort(dim=-1, descending=True, stable=True).int()
