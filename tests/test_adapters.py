"""An adapter keeps its reward head, and is saved alone."""

import pytest
import torch
from conftest import make_model, make_pairs
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.adapters import active_adapter_alone, keep_reward_head
from trl_pafo.errors import ConfigError


@pytest.fixture
def student(decoder):
    model = AutoModelForSequenceClassification.from_pretrained(decoder)
    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"]))


def test_a_missing_task_type_is_set():
    config = LoraConfig(r=2)
    keep_reward_head("base", config)
    assert config.task_type == "SEQ_CLS"


@pytest.mark.parametrize("head", ["score", "classifier"])
def test_a_head_in_modules_to_save_is_left_as_it_is(head):
    for task in (None, "CAUSAL_LM"):
        config = LoraConfig(task_type=task, modules_to_save=[head])
        keep_reward_head("base", config)
        assert config.task_type == task


@pytest.mark.parametrize("task", ["CAUSAL_LM", "TOKEN_CLS", "FEATURE_EXTRACTION"])
def test_another_task_type_is_refused(task):
    with pytest.raises(ConfigError, match=f"`peft_config` has task_type={task}, .* Use task_type='SEQ_CLS'"):
        keep_reward_head("base", LoraConfig(task_type=task, modules_to_save=["embed_tokens"]))


def test_no_adapter_and_a_good_one_are_no_matter(student):
    keep_reward_head("base", None)
    keep_reward_head(student, None)
    keep_reward_head(student.base_model.model, None)


def test_an_adapter_that_was_made_without_its_head_is_refused(decoder):
    model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(decoder), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match="The adapter of `model` has task_type=None"):
        keep_reward_head(model, None)


def test_the_head_that_a_config_without_task_type_trains_comes_back(decoder, training, tmp_path):
    trainer = PAFORewardTrainer(
        decoder,
        PAFOConfig(str(tmp_path), **training),
        train_dataset=make_pairs(),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
    )
    trainer.train()
    trainer.save_model()
    torch.manual_seed(99)  # a head that was not saved would be drawn anew
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1).eval()
    ids = torch.tensor([trainer.train_dataset[0]["chosen_ids"]])
    with torch.no_grad():
        assert saved(ids).logits.item() == pytest.approx(trainer.model.eval()(ids).logits.item(), abs=1e-6)


def test_of_several_adapters_the_trained_one_is_saved(student, decoder, training, tmp_path):
    """Others on the same backbone may be teachers, which are nobody's to publish."""
    student.add_adapter("majority", LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"]))
    trainer = PAFORewardTrainer(
        student,
        PAFOConfig(str(tmp_path), **training),
        train_dataset=make_pairs(),
        processing_class=AutoTokenizer.from_pretrained(decoder),
    )
    trainer.save_model()
    assert not (tmp_path / "majority").exists()
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 2 * 2 + 1  # A and B of two layers, and the head
    student.save_pretrained(tmp_path / "all")  # as it was
    assert (tmp_path / "all/majority").is_dir()


def test_other_models_are_saved_as_ever(decoder, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(make_model("decoder", tmp_path / "model"))
    with active_adapter_alone(model):
        model.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").exists()
