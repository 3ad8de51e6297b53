"""What flex_attention is told of who sees whom, on a GPU as here: block by block, against plain loops."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from trl_pafo.prefix_sharing.attention import attention_mask
from trl_pafo.prefix_sharing.rows import row_layout

LENGTHS = torch.tensor([[200, 150, 30], [0, 140, 260], [129, 1, 1], [256, 128, 128]])
NUM_TOKENS = 530


def sees_by_loops(lengths: list[int], window: int | None) -> torch.Tensor:
    """Each of the two sequences of a row is causal, whatever else is in the row; what padding sees is of no interest."""
    prefix, chosen, rejected = lengths
    sees = torch.zeros(NUM_TOKENS, NUM_TOKENS, dtype=torch.bool)
    for start, rest in ((prefix, chosen), (prefix + chosen, rejected)):
        places = [*range(prefix), *range(start, start + rest)]
        for position, place in enumerate(places):
            first = 0 if window is None else max(0, position - window + 1)
            sees[place, places[first : position + 1]] = True
    return sees


@pytest.mark.parametrize("window", [None, 64])
def test_blocks_are_those_of_plain_loops(window):
    found = attention_mask(row_layout(LENGTHS, NUM_TOKENS), window, "flex_attention", torch.float32)
    mask = create_mask(found.mask_mod, len(LENGTHS), None, NUM_TOKENS, NUM_TOKENS, device="cpu")[:, 0]
    size = found.BLOCK_SIZE[0]
    for row, lengths in enumerate(LENGTHS.tolist()):
        expected, real = sees_by_loops(lengths, window), sum(lengths)
        assert torch.equal(mask[row, :real], expected[:real])
        computed = torch.zeros_like(expected)
        for number, indices, whole in (
            (found.kv_num_blocks, found.kv_indices, False),
            (found.full_kv_num_blocks, found.full_kv_indices, True),
        ):
            for block in range(number.shape[-1]):
                for other in indices[row, 0, block, : number[row, 0, block]].tolist():
                    part = slice(block * size, (block + 1) * size), slice(other * size, (other + 1) * size)
                    computed[part] = True if whole else mask[row][part]
        assert torch.equal(computed[:real], expected[:real])
    assert found.sparsity() > 30  # percent of all blocks, which are not computed
