"""What cannot share rows is found out, whatever the reason; what can is not turned away."""

import copy

import pytest
import torch
import transformers
from helpers.shared_pairs import FAMILIES, make_family
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification

import trl_pafo.prefix_sharing.forward
from trl_pafo.prefix_sharing import rows
from trl_pafo.prefix_sharing.support import TESTED_FAMILIES, twin_difference, why_not_shared

SMALL = {"vocab_size": 100, "num_labels": 1, "pad_token_id": 0}


def on_no_device(name, attention=None, **options):
    """A model of the family's default size, without weights: only its class and configuration are looked at."""
    with torch.device("meta"):
        config = CONFIG_MAPPING[name](**SMALL, **options)
        model = AutoModelForSequenceClassification.from_config(config)
    if attention is not None:
        model.config._attn_implementation = attention
    return model


def test_families_that_share_unasked_are_those_whose_gradients_are_compared():
    assert {name.split()[0] for name in FAMILIES} == set(TESTED_FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family):
    assert why_not_shared(make_family(family)) is None


@pytest.mark.parametrize(("name", "attention"), [("llama", None), ("gemma2", "eager"), ("qwen3_moe", "flex_attention")])
def test_a_model_of_any_size_and_implementation_of_attention_is_asked_in_no_time(name, attention):
    model = on_no_device(name, attention)
    assert sum(p.numel() for p in model.parameters()) > 1e9
    assert why_not_shared(model) is None


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("bert", {}, "no reward head `score`"),
        ("bloom", {}, "a small BloomForSequenceClassification cannot compute shared rows"),
        ("mpt", {}, "a small MptForSequenceClassification gives other rewards"),  # biases by distance
        (
            "gpt_neo",
            {},
            "a small GPTNeoForSequenceClassification gives other rewards",
        ),  # windows of its own, longer than most rows
        ("qwen3_5_text", {}, "layers of type linear_attention process tokens in their own order"),
        ("gemma3", {}, "is more than one decoder"),
    ],
)
def test_architectures_that_cannot(name, options, reason):
    with torch.device("meta"):
        config = CONFIG_MAPPING[name](**options)
        config.num_labels = 1
        config.get_text_config().pad_token_id = 0
        model = AutoModelForSequenceClassification.from_config(config)
    assert reason in why_not_shared(model)


def test_flash_attention_cannot_be_told():
    reason = why_not_shared(on_no_device("llama", "flash_attention_2"))
    assert "attn_implementation='flash_attention_2' cannot be told who sees whom; 'sdpa', 'eager', 'flex_attention' can" in reason


def test_adapters(decoder):
    model = AutoModelForSequenceClassification.from_pretrained(decoder)
    assert why_not_shared(get_peft_model(copy.deepcopy(model), LoraConfig(task_type="SEQ_CLS", r=2))) is None
    prompts = get_peft_model(model, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
    assert why_not_shared(prompts) == "the adapter puts tokens of its own in front of each row"


class TestTheTwinCanTell:
    """Each of the three ideas of a shared row, left out, is found."""

    def test_rests_that_see_each_other(self, monkeypatch):
        causal = lambda layout, window=None: lambda row, head, query, key: (key <= query) & (row >= 0)  # noqa: E731
        monkeypatch.setattr(rows, "may_see", causal)
        assert twin_difference(make_family("llama")) > 0.1

    def test_positions_that_run_on(self, monkeypatch):
        layout = rows.row_layout

        def running(lengths, num_tokens):
            part, _ = layout(lengths, num_tokens)
            return rows.RowLayout(part, torch.arange(num_tokens).expand_as(part))

        monkeypatch.setattr(trl_pafo.prefix_sharing.forward, "row_layout", running)
        assert twin_difference(make_family("llama")) > 0.1
        assert twin_difference(make_family("gpt2")) > 0.1

    def test_rewards_read_elsewhere(self, monkeypatch):
        read = rows.reward_places
        monkeypatch.setattr(trl_pafo.prefix_sharing.forward, "reward_places", lambda *args: (read(*args) - 1).clamp(min=0))
        assert twin_difference(make_family("llama")) > 0.1

    def test_windows_longer_than_its_rows_are_cut(self, monkeypatch):
        monkeypatch.setattr(trl_pafo.prefix_sharing.forward, "layer_windows", lambda config: None)
        assert twin_difference(make_family("mistral sliding", sliding_window=4096)) > 0.1


def test_nothing_of_the_run_is_touched():
    model = make_family("gemma2")
    config = copy.deepcopy(model.config.to_dict())
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.bfloat16)
    try:
        difference = twin_difference(model)
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config.to_dict() == config
    assert not model.score._forward_hooks
    assert difference == twin_difference(model)  # on every process the same


def test_a_model_that_gives_nan(monkeypatch):
    forward = transformers.LlamaForSequenceClassification.forward

    def broken(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits * float("nan")
        return output

    monkeypatch.setattr(transformers.LlamaForSequenceClassification, "forward", broken)
    assert "gives other rewards" in why_not_shared(make_family("llama"))
