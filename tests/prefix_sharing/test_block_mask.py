"""What flex_attention is told of who sees whom, on a GPU as here: block by block. (Token by token: test_prefix_rows.py)"""

import torch
from helpers.mock_gpu import mock_gpu
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode

from trl_pafo.prefix_sharing.attention import attention_mask
from trl_pafo.prefix_sharing.rows import may_see, row_layout

LENGTHS = torch.tensor([[200, 150, 30], [0, 140, 260], [129, 1, 1], [256, 128, 128]])
NUM_TOKENS = 530


BLOCKS = [f"{full}{way}_{what}" for full in ("", "full_") for way in ("kv", "q") for what in ("num_blocks", "indices")]
PARTS = st.sampled_from([0, 1, 60, 127, 128, 129, 260])


@settings(max_examples=30)
@given(
    st.lists(st.tuples(PARTS, PARTS, PARTS), min_size=1, max_size=3),
    st.integers(0, 130),
    st.sampled_from([None, 1, 64, 129, 1000]),
)
def test_blocks_are_those_that_torch_finds_in_the_mask_of_all_tokens(lengths, padding, window):
    num_tokens = max(1, max(map(sum, lengths)) + padding)
    layout = row_layout(torch.tensor(lengths), num_tokens)
    found = attention_mask(layout, window, "flex_attention", torch.float32)
    expected = create_block_mask(may_see(layout, window), len(lengths), None, num_tokens, num_tokens, "cpu")
    assert (found.shape, found.seq_lengths, found.BLOCK_SIZE) == (expected.shape, expected.seq_lengths, expected.BLOCK_SIZE)
    for name in BLOCKS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0)


class Largest(TorchDispatchMode):
    """The size of the largest tensor that is made meanwhile."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        self.numel = max(self.numel, made.numel() if isinstance(made, torch.Tensor) else 0)
        return made


def test_no_mask_of_all_tokens_is_made():
    layout = row_layout(LENGTHS, NUM_TOKENS)
    with Largest() as largest:
        attention_mask(layout, 64, "flex_attention", torch.float32)
    assert 0 < largest.numel <= 2 * len(LENGTHS) * NUM_TOKENS * -(-NUM_TOKENS // 128)


def test_a_gpu_is_not_waited_for():
    with mock_gpu() as gpu:
        layout = row_layout(LENGTHS.to("mock", non_blocking=True), NUM_TOKENS)
        found = attention_mask(layout, 64, "flex_attention", torch.float32)
        assert found.kv_indices.device.type == "mock"
        assert not +gpu.waits
