"""An adapter keeps its reward head, and is saved alone."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.parts import make_pairs, make_tokenizer
from helpers.rounding import rounding
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
)

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.errors import ConfigError
from trl_pafo.models.adapters import keep_reward_head
from trl_pafo.models.batches import score_sequences
from trl_pafo.models.loading import load_reward_model


def without_head(folder):
    """A PeftModel without a task type, which neither trains nor saves the head."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))


@pytest.mark.parametrize(
    ("options", "task"),
    [
        ({}, "SEQ_CLS"),
        ({"modules_to_save": ["score"]}, None),
        ({"modules_to_save": ["classifier"]}, None),
        ({"modules_to_save": ["score"], "task_type": "TOKEN_CLS"}, "TOKEN_CLS"),
    ],
)
def test_a_task_type_is_set_where_none_and_no_head_is_named(options, task):
    config = LoraConfig(r=2, **options)
    keep_reward_head("base", config)
    assert config.task_type == task


@pytest.mark.parametrize("task", ["FEATURE_EXTRACTION", "CAUSAL_LM"])
def test_another_task_type_is_refused(task):
    """Of a language model whatever is saved: peft asks such a model how it generates."""
    save = ["score"] if task.endswith("_LM") else ["embed_tokens"]
    with pytest.raises(ConfigError, match=f"`peft_config` has task_type={task}, .* Use task_type='SEQ_CLS'"):
        keep_reward_head("base", LoraConfig(task_type=task, modules_to_save=save))


class TestAHeadThatWouldBeLost:
    def test_a_new_one(self, decoder, tmp_path):
        AutoModelForCausalLM.from_pretrained(decoder).save_pretrained(tmp_path)
        match = "The adapter of `model` has task_type=None, so score would not be saved, and random after loading. Use task_type='SEQ_"
        with pytest.raises(ConfigError, match=match):
            keep_reward_head(without_head(tmp_path), None)
        with pytest.raises(ConfigError, match="`peft_config` has task_type=TOKEN_CLS, so score would not be saved"):
            keep_reward_head(str(tmp_path), LoraConfig(task_type="TOKEN_CLS"))

    def test_one_that_is_trained_and_one_that_may_be_new(self, decoder):
        model = without_head(decoder)
        model.get_base_model().score.requires_grad_(True)
        with pytest.raises(ConfigError, match="The adapter of `model` has task_type=None, so score would not be saved"):
            keep_reward_head(model, None)
        model.peft_config["default"].base_model_name_or_path = None
        with pytest.raises(ConfigError, match="so the reward head would not be saved"):
            keep_reward_head(model, None)


def assert_comes_back(trainer, folder):
    """Trained, saved and loaded again, the model gives the same reward."""
    trainer.train()
    trainer.save_model()
    torch.manual_seed(99)  # a head that was not saved would be drawn anew
    ids = [trainer.train_dataset[0]["chosen_ids"]]
    expected = score_sequences(trainer.model, ids, 0)
    np.testing.assert_allclose(score_sequences(load_reward_model(folder), ids, 0), expected, atol=rounding(expected))


def test_an_adapter_on_a_trained_reward_model_may_keep_its_head(decoder, training, tmp_path):
    """It is frozen, and on disk with the base."""
    trainer = PAFORewardTrainer(
        without_head(decoder),
        PAFOConfig(str(tmp_path), **training),
        train_dataset=make_pairs(history=0),
        processing_class=AutoTokenizer.from_pretrained(decoder),
    )
    assert_comes_back(trainer, tmp_path)
    assert not [name for name in load_file(tmp_path / "adapter_model.safetensors") if "score" in name]
    keep_reward_head(decoder, LoraConfig(task_type="FEATURE_EXTRACTION"))  # one yet to be made may keep it too


def test_all_new_layers_below_the_reward_come_back(training, tmp_path):
    """peft saves a head of two names; others are as new where the base is a language model."""
    tokenizer = make_tokenizer("encoder")
    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "pooler_hidden_size"), 16)
    sizes |= dict.fromkeys(("num_hidden_layers", "num_attention_heads"), 2)
    base = DebertaV2ForMaskedLM(DebertaV2Config(vocab_size=len(tokenizer), pad_token_id=0, **sizes))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    trainer = PAFORewardTrainer(
        str(tmp_path / "base"),
        PAFOConfig(str(tmp_path / "out"), eos_token="[SEP]", **training),
        train_dataset=make_pairs(history=0),
        peft_config=LoraConfig(r=2, target_modules=["query_proj"]),
    )
    assert_comes_back(trainer, tmp_path / "out")
    heads = sorted(name for name in load_file(tmp_path / "out/adapter_model.safetensors") if "lora" not in name)
    assert [name.split(".")[-3:-1] for name in heads[2:]] == [["pooler", "dense"]] * 2


@pytest.fixture
def trained_adapter(decoder, training, tmp_path):
    """An adapter on a language model that knows neither one label nor the pad id; and the model in memory."""
    base = AutoModelForCausalLM.from_pretrained(decoder)
    base.config.num_labels, base.config.pad_token_id = 2, 17
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(decoder).save_pretrained(tmp_path / "base")
    trainer = PAFORewardTrainer(
        str(tmp_path / "base"),
        PAFOConfig(str(tmp_path / "fair-lora"), **training),
        train_dataset=make_pairs(history=0),
        peft_config=LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"]),
    )
    trainer.train()
    trainer.save_model()
    return trainer.model.eval()


SEQUENCES = [[7, 8, 9], [10], [11, 12, 13, 14, 15, 16, 17]]


def test_it_loads_and_merges_as_documented(trained_adapter, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs/serving.md").read_text(encoding="utf-8")
    section = page.split("## Loading and merging an adapter\n")[1].split("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", section, re.S)), names)
    expected = score_sequences(trained_adapter, SEQUENCES, 0)
    loaded = {
        "adapted": names["adapted"],
        "merged": AutoModelForSequenceClassification.from_pretrained("fair-merged").eval(),
        "ours": load_reward_model("fair-lora"),
        "ours, merged": load_reward_model("fair-merged"),
    }
    for name, model in loaded.items():
        assert model.config.pad_token_id == 0, name
        np.testing.assert_allclose(score_sequences(model, SEQUENCES, 0), expected, atol=rounding(expected), err_msg=name)
    assert not list(Path("fair-merged").glob("adapter*"))
