"""Rewards and gradients of shared rows are those of two rows: families, kernels, adapters, checkpointing, dtypes."""

import copy

import pytest
import torch
from helpers.rounding import rounding
from helpers.shared_pairs import (
    FAMILIES,
    PAD,
    VOCABULARY,
    gradients,
    largest_difference,
    make_family,
    needs_minilm,
    real_pairs,
    recompute_layers,
    shared_rewards,
    two_row_rewards,
)
from peft import LoraConfig, get_peft_model

from trl_pafo.errors import ConfigError
from trl_pafo.prefix_sharing.attention import layer_windows
from trl_pafo.prefix_sharing.forward import PairHead, forward_shared, reward_model
from trl_pafo.prefix_sharing.rows import PAIR_LENGTHS, collate_pairs

pytestmark = needs_minilm


def assert_same(model, pairs, multiple=None):
    """Rewards to rounding and gradients to sixteen times that, on pairs whose rewards differ by far more."""
    expected = two_row_rewards(model, pairs)
    assert expected.std() > 0.1
    wanted = gradients(model, expected)
    found = shared_rewards(model, pairs, multiple)
    torch.testing.assert_close(found, expected, atol=rounding(expected), rtol=0)
    assert largest_difference(gradients(model, found), wanted) < 16 * rounding()


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family):
    assert_same(make_family(family), real_pairs(2))


def test_eager_attention():
    assert_same(make_family("gemma2", attention="eager"), real_pairs(2))


def test_padding_to_a_multiple_changes_nothing():
    assert_same(make_family("llama"), real_pairs(2), multiple=64)


def test_rows_longer_than_the_positions_of_the_model():
    """Learnt positions end at the longest sequence; a shared row may be longer, its positions are not."""
    pairs = real_pairs(2)
    longest = max(len(ids) for pair in pairs for ids in pair.values())
    assert collate_pairs(pairs, PAD)["input_ids"].shape[1] > longest
    assert_same(make_family("gpt2", n_positions=longest), pairs)


def test_the_end_token_as_padding():
    """Rewards are read before the end then, as with two rows; not where the rests end."""
    model = make_family("llama")
    end = {pair[side][-1] for pair in real_pairs(2)[:2] for side in pair}
    assert len(end) == 1
    before = two_row_rewards(model, real_pairs(2))
    model.config.pad_token_id = end.pop()
    assert (two_row_rewards(model, real_pairs(2)) - before).abs().max() > 0.1
    assert_same(model, real_pairs(2))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention(monkeypatch):
    """The kernel as Python code: compiling it takes a compiler and minutes, and changes nothing in what it is told. Some layers of
    the family have a window."""
    from torch.nn.attention.flex_attention import flex_attention
    from transformers.integrations import flex_attention as integration

    monkeypatch.setattr(integration.WrappedFlexAttention, "__call__", lambda self: flex_attention)
    pairs = real_pairs(2)
    expected = two_row_rewards(make_family("gemma2", attention="eager"), pairs)
    model = make_family("gemma2", attention="flex_attention")
    with torch.no_grad():
        torch.testing.assert_close(shared_rewards(model, pairs), expected, atol=rounding(expected), rtol=0)


@pytest.mark.slow
def test_flex_attention_compiled():
    """On a CPU without gradients: its backward pass is for accelerators."""
    expected = two_row_rewards(make_family("llama", attention="eager"), real_pairs(2))
    with torch.no_grad():
        found = shared_rewards(make_family("llama", attention="flex_attention"), real_pairs(2))
    torch.testing.assert_close(found, expected, atol=rounding(expected), rtol=0)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2"])  # which hand the mask over by name, and by place
def test_gradient_checkpointing(family, use_reentrant, attended):
    model = make_family(family)
    wanted = gradients(model, two_row_rewards(model, real_pairs(2)))
    recompute_layers(model, use_reentrant)
    model.enable_input_require_grads()
    model.train()  # where it is in force
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert largest_difference(gradients(model, shared_rewards(model, real_pairs(2))), wanted) < 16 * rounding()
    assert attended == [4] * 8  # each layer went row by row, and again


@pytest.mark.parametrize("task_type", ["SEQ_CLS", None])
def test_adapters(task_type):
    """SEQ_CLS trains a copy of the head; without it the head is the base's."""
    config = LoraConfig(task_type=task_type, r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    model = get_peft_model(make_family("llama"), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name or "modules_to_save" in name:
                parameter.normal_(std=0.2)
    assert_same(model, real_pairs(2))
    head = type(reward_model(model).score).__name__
    assert head == ("ModulesToSaveWrapper" if task_type else "Linear")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_autocast_and_scaled_gradients(dtype, attention):
    """As `bf16=True` and `fp16=True` train; for the latter accelerate wants a GPU."""
    model = make_family("llama", attention=attention)
    expected = two_row_rewards(model, real_pairs(2))
    wanted = gradients(model, expected)
    with torch.autocast("cpu", dtype):
        two = two_row_rewards(model, real_pairs(2)).float()
        found = shared_rewards(model, real_pairs(2)).float()
    assert 0 < (found - expected).abs().max() < 2 * (two - expected).abs().max()
    model.zero_grad()
    loss = -torch.nn.functional.logsigmoid(torch.sub(*found.chunk(2))).mean()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss).backward()
    scaler.unscale_(torch.optim.SGD(model.parameters(), lr=0.0))
    scaled = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert largest_difference(scaled, wanted) < (0.05 if dtype == torch.float16 else 0.4)


@pytest.mark.slow
def test_compiled():
    """Traced with the hook in it. (A backend would change nothing in what is traced.)"""
    model = make_family("llama", num_hidden_layers=1)
    expected = two_row_rewards(model, real_pairs(2))
    PairHead.of(model)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(shared_rewards(compiled, real_pairs(2)), expected, atol=rounding(expected), rtol=0)
    plain = two_row_rewards(compiled, real_pairs(2)[:1])
    torch.testing.assert_close(plain, two_row_rewards(model, real_pairs(2)[:1]), atol=rounding(plain), rtol=0)


class TestPairHead:
    def test_is_silent_but_for_shared_batches(self):
        model = make_family("llama")
        ids = torch.tensor([[5, 6, 7, 8]])
        before = model(ids).logits
        shared_rewards(model, real_pairs(2))
        assert PairHead.of(model).places is None
        assert torch.equal(model(ids).logits, before)

    def test_is_put_on_a_model_once_and_found_through_wrappers(self):
        model = make_family("llama")
        head = PairHead.of(model)
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
        assert PairHead.of(torch.nn.Sequential(adapted)) is head
        assert len(model.score._forward_hooks) == 1

    def test_copies_of_a_model_have_heads_of_their_own(self):
        model = make_family("llama")
        head = PairHead.of(model)
        copied = copy.deepcopy(model)
        assert PairHead.of(copied) is not head
        torch.testing.assert_close(shared_rewards(copied, real_pairs(2)), shared_rewards(model, real_pairs(2)))

    def test_is_silent_again_after_a_failure(self):
        model = make_family("llama")
        batch = collate_pairs(real_pairs(2), PAD)
        with pytest.raises(IndexError):
            forward_shared(model, batch["input_ids"] + VOCABULARY, batch[PAIR_LENGTHS])
        assert PairHead.of(model).places is None

    def test_a_model_without_one(self, encoder):
        from transformers import AutoModelForSequenceClassification

        with pytest.raises(ConfigError, match=r"BertForSequenceClassification has no reward head `score`.*prefix_sharing='off'"):
            PairHead.of(AutoModelForSequenceClassification.from_pretrained(encoder))

    def test_a_forward_that_goes_past_it(self):
        class Elsewhere(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inside = make_family("llama")

            def forward(self, **inputs):
                return make_family("llama")(**inputs)

        with pytest.raises(ConfigError, match=r"went past the reward head.*prefix_sharing='off'"):
            shared_rewards(Elsewhere(), real_pairs(2))


class TestWindows:
    def test_of_families(self):
        some = {"full_attention": None, "sliding_attention": 24}
        for family, expected in {"mistral": None, "mistral sliding": 24, "qwen2": None, "qwen2 sliding": some}.items():
            assert layer_windows(make_family(family).config) == expected

    def test_a_window_that_is_not_heeded_shows(self, monkeypatch):
        """So the tests of sliding families above can fail."""
        model = make_family("mistral sliding")
        expected = two_row_rewards(model, real_pairs(2))
        monkeypatch.setattr("trl_pafo.prefix_sharing.forward.layer_windows", lambda config: None)
        assert (shared_rewards(model, real_pairs(2)) - expected).abs().max() > 1e-2
