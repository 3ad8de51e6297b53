"""The mean of the weights of several reward models."""

import pytest
import torch
from helpers.parts import make_adapter, make_model
from peft import PeftModel
from safetensors.torch import load_file

from trl_pafo.errors import ConfigError
from trl_pafo.models import mean_of_models


def test_each_weight_is_the_mean_and_bfloat16_is_rounded_once(tmp_path):
    folders = [make_model("decoder", tmp_path / str(seed), seed) for seed in range(3)]
    saved = [load_file(f"{folder}/model.safetensors") for folder in folders]
    mean = dict(mean_of_models(folders).named_parameters())
    assert mean.keys() == saved[0].keys()
    for name, weight in mean.items():
        torch.testing.assert_close(weight.double(), sum(one[name].double() for one in saved) / 3)
        assert weight.requires_grad
    rounded = [{name: w.bfloat16().float() for name, w in one.items()} for one in saved]
    for name, weight in mean_of_models(folders, torch.bfloat16).named_parameters():
        assert weight.dtype == torch.bfloat16
        torch.testing.assert_close(weight, (sum(one[name] for one in rounded) / 3).bfloat16(), rtol=0, atol=0)


def test_of_adapters_the_adapter_alone(decoder, tmp_path):
    folders = [make_adapter(decoder, tmp_path / str(seed), seed) for seed in (1, 2)]
    mean = mean_of_models(folders)
    assert isinstance(mean, PeftModel)
    trained = {name: weight for name, weight in mean.named_parameters() if weight.requires_grad}
    assert any("lora_A" in name for name in trained)
    assert any("score" in name for name in trained)
    mean.save_pretrained(tmp_path / "mean")
    one, two, both = (load_file(f"{folder}/adapter_model.safetensors") for folder in (*folders, tmp_path / "mean"))
    for name, weight in both.items():
        torch.testing.assert_close(weight, (one[name] + two[name]) / 2)


def test_models_that_have_no_mean(decoder, tmp_path):
    other = make_model("decoder", tmp_path / "wider", hidden_size=32)
    with pytest.raises(ConfigError, match="have no mean: their weights differ in name or shape"):
        mean_of_models([decoder, other])
    adapters = [make_adapter(decoder, tmp_path / f"r{r}", r=r) for r in (2, 4)]
    with pytest.raises(ConfigError, match="have no mean"):
        mean_of_models(adapters)
