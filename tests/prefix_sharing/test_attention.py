"""Row by row, attention gives what the dense mask gives, and whoever does not know of it sees the dense mask."""

import pytest
import torch
from helpers.shared_pairs import make_family, needs_minilm, real_pairs, shared_rewards
from torch.nn.functional import scaled_dot_product_attention

from trl_pafo.prefix_sharing.attention import RowMask, attention_mask
from trl_pafo.prefix_sharing.rows import dense_mask, row_layout

LENGTHS = torch.tensor([[7, 3, 5], [0, 4, 2], [9, 1, 1], [2, 6, 8]])
NUM_TOKENS = 20


@pytest.fixture
def mask():
    return RowMask.of(LENGTHS, NUM_TOKENS, lambda: dense_mask(row_layout(LENGTHS, NUM_TOKENS)))


@pytest.fixture
def dense():
    return dense_mask(row_layout(LENGTHS, NUM_TOKENS))


@pytest.mark.parametrize("scale", [None, 0.5])
def test_outputs_and_gradients_are_those_of_the_dense_mask(mask, dense, scale, attended):
    torch.manual_seed(0)
    tensors = [torch.randn(4, 3, NUM_TOKENS, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    is_real = (torch.arange(NUM_TOKENS) < LENGTHS.sum(1, keepdim=True))[:, None, :, None]
    found, expected = (
        scaled_dot_product_attention(*tensors, attn_mask=given, dropout_p=0.0, scale=scale, is_causal=False) * is_real
        for given in (mask, dense)
    )
    assert attended == [4]
    torch.testing.assert_close(found, expected)
    unmasked = scaled_dot_product_attention(*tensors, attn_mask=mask)
    assert torch.equal(unmasked[1, :, 6:], torch.zeros(3, 14, 8, dtype=torch.float64))  # padding gives zeros
    weights = torch.randn_like(found)
    for one, other in zip(*(torch.autograd.grad((o * weights).sum(), tensors) for o in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_it_looks_like_the_dense_mask_and_is_not_made_for_that(mask, dense):
    assert (mask.shape, mask.dtype, mask.device, mask.ndim) == (dense.shape, dense.dtype, dense.device, 4)
    assert (mask.dim(), mask.size(2), mask.is_floating_point(), mask.requires_grad) == (4, NUM_TOKENS, False, False)
    assert mask._dense is None


def test_any_other_use_meets_the_dense_mask(mask, dense, attended):
    zeros, tensors = torch.zeros(4, 1, NUM_TOKENS, NUM_TOKENS), torch.randn(3, 4, 1, NUM_TOKENS, 8)
    for use in (
        lambda mask: mask[:, :, 3:9, :5],
        lambda mask: torch.where(mask, 0.0, -1.0),
        lambda mask: zeros.masked_fill(mask, 7.0),
        lambda mask: torch.cat([mask, mask]),
        lambda mask: scaled_dot_product_attention(*tensors, mask),  # handed over by place
    ):
        found = use(mask)
        assert type(found) is torch.Tensor
        assert torch.equal(found, use(dense))
    assert attended == []


@pytest.mark.parametrize(("window", "by_rows"), [(None, True), (15, True), (10, True), (9, False)])
def test_a_window_that_bites_needs_the_mask(window, by_rows):
    """The longest sequence has 12 tokens: 7 + 5; a window of 10 is that of the second row."""
    lengths = LENGTHS[[1, 3]]  # sequences of 4, 2, 8 and 10 tokens
    found = attention_mask(row_layout(lengths, 16), window, "sdpa", torch.float32, lengths)
    assert isinstance(found, RowMask) is by_rows


@needs_minilm
class TestInModels:
    def test_layers_with_and_without_a_window(self, attended):
        shared_rewards(make_family("gemma3_text", attention="sdpa"), real_pairs(2))
        types = make_family("gemma3_text").config.layer_types
        assert attended == [4] * types.count("full_attention")
