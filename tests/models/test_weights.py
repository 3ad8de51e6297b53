"""What a checkpoint lacks is told by its headers as transformers tells it after loading; and nothing scores without it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from helpers.parts import make_model, make_pairs, make_tokenizer
from helpers.rounding import rounding
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import ModelConfig

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.errors import ConfigError, TeacherError
from trl_pafo.evaluation.evaluate import evaluate_models
from trl_pafo.models import RewardScorer
from trl_pafo.models.base_models import load_base
from trl_pafo.models.batches import score_sequences
from trl_pafo.models.loading import load_reward_model, pad_id_of
from trl_pafo.models.weights import check_reward_model, find_gaps
from trl_pafo.pipeline.starting_points import start_of
from trl_pafo.trainer.loaded_teachers import TeacherModels
from trl_pafo.trainer.teacher import Teacher

SEQUENCES = [[7, 8, 9], [10], [11, 12, 13, 14, 15, 16, 17]]
SIZES = {
    "vocab_size": 53,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
# Family, options, its pretraining model, and what that lacks of a reward model.
FAMILIES = {
    "Bert": ({}, "MaskedLM", ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"]),
    "Roberta": ({}, "MaskedLM", [f"classifier.{name}.{kind}" for name in ("dense", "out_proj") for kind in ("bias", "weight")]),
    "DebertaV2": ({}, "MaskedLM", [f"{name}.{kind}" for name in ("classifier", "pooler.dense") for kind in ("bias", "weight")]),
    "Llama": ({"tie_word_embeddings": True}, "CausalLM", ["score.weight"]),
    "Qwen3": ({"head_dim": 8}, "CausalLM", ["score.weight"]),
    "Mixtral": ({"num_local_experts": 2}, "CausalLM", ["score.weight"]),  # weights that transformers renames and merges
}


def family(name: str, folder: Path, kind: str = "SequenceClassification") -> Path:
    options = FAMILIES[name][0] | ({"num_key_value_heads": 2} if FAMILIES[name][1] == "CausalLM" else {})
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **options}, num_labels=1)
    torch.manual_seed(0)
    getattr(transformers, f"{name}For{kind}")(config).save_pretrained(folder)
    return folder


def gaps_of(folder, **options):
    return find_gaps(Path(folder), AutoConfig.from_pretrained(folder), **options)


def change_config(folder: Path, **values) -> None:
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | values).items() if v is not ...}))


def without(folder: Path, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", FAMILIES)
class TestFamilies:
    def test_a_pretrained_model_lacks_its_head_as_loading_says(self, name, tmp_path):
        _, kind, head = FAMILIES[name]
        gaps = gaps_of(family(name, tmp_path, kind))
        assert gaps == (head, [], head)
        _, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
        assert sorted(info["missing_keys"]) == head
        with pytest.raises(ConfigError, match=f"{tmp_path} holds no weights for {head[0]}.*so there is no reward head"):
            load_reward_model(tmp_path)

    def test_a_saved_reward_model_is_whole_and_any_other_weight_is_missed_too(self, name, tmp_path):
        assert gaps_of(family(name, tmp_path)) == ([], [], [])
        check_reward_model(tmp_path)
        lost = next(n for n in load_file(tmp_path / "model.safetensors") if "layer" in n and ".1." in n and "expert" not in n)
        without(tmp_path, lost)
        gaps = gaps_of(tmp_path)
        assert len(gaps.missing) == 1
        assert gaps.of_head == []
        with pytest.raises(ConfigError, match=r"holds no weights for [^ ]*layer[^ ]*: they would be random"):
            load_reward_model(tmp_path)
        with pytest.raises(ConfigError, match=r"holds no weights for [^ ]*layer.*Name a complete pretrained model"):
            load_base(AutoModelForSequenceClassification, str(tmp_path))


class TestGaps:
    def test_a_part_of_a_merged_weight(self, tmp_path):
        family("Mixtral", tmp_path)
        without(tmp_path, next(name for name in load_file(tmp_path / "model.safetensors") if "experts.1." in name))
        with pytest.raises(ConfigError, match=f"No reward model can be loaded from {tmp_path}: .*model, or save it again"):
            load_reward_model(tmp_path)

    def test_only_the_head_of_a_quantized_model_is_looked_for(self, decoder, tmp_path):
        """The names of the others are those of its library."""
        shutil.copytree(decoder, tmp_path / "model")
        weights = load_file(tmp_path / "model/model.safetensors")
        renamed = {name.replace("_proj.weight", "_proj.qweight"): weight for name, weight in weights.items()}
        save_file(renamed, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
        assert len(gaps_of(tmp_path / "model").missing) == 14
        change_config(tmp_path / "model", quantization_config={"quant_method": "gptq", "bits": 4})
        assert gaps_of(tmp_path / "model") == ([], [], [])
        without(tmp_path / "model", "score.weight")
        assert gaps_of(tmp_path / "model").missing == ["score.weight"]

    def test_other_shapes(self, decoder, tmp_path):
        shutil.copytree(decoder, tmp_path / "model")
        change_config(tmp_path / "model", intermediate_size=48)
        assert len(gaps_of(tmp_path / "model").misfits) == 6
        with pytest.raises(ConfigError, match=r"weights of the right shape for model.layers.0.mlp.*. Save the model again"):
            load_reward_model(tmp_path / "model")

    def test_a_launcher_that_shards_the_student_is_no_matter(self, decoder):
        from transformers.integrations import deepspeed

        zero3 = type("Zero3", (), {"is_zero3": lambda self: True})()
        deepspeed.set_hf_deepspeed_config(zero3)
        try:
            assert gaps_of(decoder) == ([], [], [])
            assert deepspeed.is_deepspeed_zero3_enabled()
        finally:
            deepspeed.unset_hf_deepspeed_config()


@pytest.fixture
def language_model(decoder, tmp_path) -> Path:
    """A causal language model whose configuration says one label."""
    model = AutoModelForCausalLM.from_pretrained(decoder)
    model.config.num_labels = 1
    model.save_pretrained(tmp_path / "lm")
    make_tokenizer("decoder").save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


def lora(folder: Path, base, *, num_labels: int = 1, **options):
    """An adapter whose rewards are far from those of its base, saved; and the model."""
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=num_labels, ignore_mismatched_sizes=True)
    options = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **options}
    model = get_peft_model(model, LoraConfig(**options)).eval()
    with torch.no_grad():
        model.get_base_model().score.weight.mul_(3)  # of the copy in the adapter, where there is one
    model.save_pretrained(folder)
    make_tokenizer("decoder").save_pretrained(folder)
    return model


class TestEverythingThatScores:
    @pytest.fixture(params=["language model", "part of a model", "adapter"])
    def headless(self, request, decoder, language_model, tmp_path) -> str:
        if request.param == "language model":
            return str(language_model)
        if request.param == "adapter":
            lora(tmp_path / "headless", language_model)
        else:
            AutoModelForSequenceClassification.from_pretrained(decoder).model.save_pretrained(tmp_path / "headless")
            make_tokenizer("decoder").save_pretrained(tmp_path / "headless")
        return str(tmp_path / "headless")

    def test_refuses_a_model_without_a_head_before_any_weight_is_read(self, headless, decoder, training, tmp_path, monkeypatch):
        monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", None)
        pairs = make_pairs(history=0)
        args = PAFOConfig(str(tmp_path / "out"), num_history=0, **training)
        given = {"majority": headless, "minority": decoder}
        uses = {
            "load": lambda: load_reward_model(headless),
            "scorer": lambda: RewardScorer.from_pretrained(headless),
            "evaluate": lambda: evaluate_models(headless, pairs),
            "reference": lambda: evaluate_models(decoder, pairs, reference=headless),
            "warm start": lambda: start_of(headless, decoder, ModelConfig()),
            "evaluating trainer": lambda: PAFORewardTrainer(headless, args),
            "teachers of a training": lambda: PAFORewardTrainer(decoder, args, train_dataset=make_pairs(), teachers=given),
        }
        for name, use in uses.items():
            kind = TeacherError if name.startswith("teacher") else ConfigError
            with pytest.raises(kind, match=r"weights for score\.weight, so there is no reward head"):
                use()

    def test_refuses_models_with_more_labels(self, tmp_path):
        folder = make_model("decoder", tmp_path / "model", num_labels=2)
        with pytest.raises(ConfigError, match=f"{folder} has num_labels=2; a reward model has one"):
            load_reward_model(folder)

    def test_a_base_may_have_a_head_of_other_labels(self, training, tmp_path):
        """A student and the base of a run get a new one in its place."""
        folder = make_model("decoder", tmp_path / "three", num_labels=3)
        assert load_base(AutoModelForSequenceClassification, folder, num_labels=1).score.weight.shape == (1, 16)
        options = {**training, "model_init_kwargs": {"ignore_mismatched_sizes": True}}
        PAFORewardTrainer(folder, PAFOConfig(str(tmp_path / "out"), **options), train_dataset=make_pairs(history=0)).save_model()
        check_reward_model(tmp_path / "out")
        with pytest.raises(ConfigError, match=r"score\.weight .*model_init_kwargs={'ignore_mismatched_sizes': True}"):
            PAFORewardTrainer(folder, PAFOConfig(str(tmp_path), **training), train_dataset=make_pairs(history=0))

    def test_a_student_may_have_a_new_head_and_nothing_else(self, language_model, training, tmp_path):
        pairs = make_pairs(history=0)
        without(language_model, "model.layers.0.self_attn.q_proj.weight")
        with pytest.raises(ConfigError, match=r"no weights for .*self_attn\.q_proj\.weight: .*not just a new reward head"):
            PAFORewardTrainer(str(language_model), PAFOConfig(str(tmp_path / "out"), **training), train_dataset=pairs)


class TestAdapters:
    @pytest.mark.parametrize(
        "options",
        [{"task_type": "SEQ_CLS"}, {"modules_to_save": ["score"]}, {}],
        ids=["head in the adapter", "named", "of the base"],
    )
    def test_a_head_in_the_adapter_or_in_its_base(self, options, decoder, tmp_path):
        model = lora(tmp_path / "adapter", decoder, **options)
        if "score.weight" not in str(list(load_file(tmp_path / "adapter/adapter_model.safetensors"))):
            with torch.no_grad():
                model.get_base_model().score.weight.div_(3)  # as it is on disk
        torch.manual_seed(99)
        loaded = load_reward_model(tmp_path / "adapter")
        expected = score_sequences(model, SEQUENCES, 0)
        np.testing.assert_allclose(score_sequences(loaded, SEQUENCES, 0), expected, atol=rounding(expected))
        assert np.abs(score_sequences(load_reward_model(decoder), SEQUENCES, 0) - expected).max() > 1e-2

    @pytest.mark.parametrize("wrong", [{"task_type": "CAUSAL_LM"}, {"r": "x"}, {"lora_alpha": None}])
    def test_a_configuration_that_peft_cannot_use(self, wrong, decoder, tmp_path):
        lora(tmp_path, decoder, task_type="SEQ_CLS")
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(ConfigError, match=f"No reward model can be loaded from {tmp_path}: .*model, or save it again"):
            load_reward_model(tmp_path)

    def test_on_a_base_whose_own_head_has_two_labels(self, tmp_path):
        base = make_model("decoder", tmp_path / "base", num_labels=2)
        model = lora(tmp_path / "adapter", base, task_type="SEQ_CLS")
        expected = score_sequences(model, SEQUENCES, 0)
        found = score_sequences(load_reward_model(tmp_path / "adapter"), SEQUENCES, 0)
        np.testing.assert_allclose(found, expected, atol=rounding(expected))
        lora(tmp_path / "headless", base)
        with pytest.raises(ConfigError, match=r"Neither the adapter .* weights of the right shape for score\.weight"):
            load_reward_model(tmp_path / "headless")

    def test_its_own_weights_are_there(self, decoder, tmp_path):
        lora(tmp_path / "adapter", decoder, task_type="SEQ_CLS")
        path = tmp_path / "adapter/adapter_model.safetensors"
        weights = load_file(path)
        del weights["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]
        save_file(weights, path)
        with pytest.raises(ConfigError, match=r"The adapter .* lacks weights: .*layers\.1\..*lora_B.*Save it again"):
            load_reward_model(tmp_path / "adapter")

        lora(tmp_path / "whole", decoder, task_type="SEQ_CLS")
        teachers = {name: Teacher(name, str(tmp_path / name)) for name in ("whole", "adapter")}
        with pytest.raises(ConfigError, match=r"The adapter .* lacks weights: .*q_proj\.lora_B\.teacher1"):
            TeacherModels(teachers, make_tokenizer("decoder"), Accelerator(cpu=True))

    def test_tokens_without_embeddings(self, decoder, tmp_path):
        lora(tmp_path / "adapter", decoder, task_type="SEQ_CLS")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
        tokenizer.add_tokens(["one", "two"])
        tokenizer.save_pretrained(tmp_path / "adapter")
        with pytest.raises(ConfigError, match=r"has 2 tokens more than its base .* with save_embedding_layers=True"):
            load_reward_model(tmp_path / "adapter")


class TestPadId:
    """Rewards are those of sequences scored alone, whatever the files say of padding."""

    def expected(self, model):
        with torch.no_grad():
            return [model(input_ids=torch.tensor([ids])).logits.item() for ids in SEQUENCES]

    @pytest.mark.parametrize("pad_token", ["[PAD]", None])
    def test_a_model_without_one(self, decoder, tmp_path, pad_token):
        shutil.copytree(decoder, tmp_path / "model")
        change_config(tmp_path / "model", pad_token_id=None)
        tokenizer = AutoTokenizer.from_pretrained(decoder)
        tokenizer.pad_token = pad_token
        tokenizer.save_pretrained(tmp_path / "model")
        model = load_reward_model(tmp_path / "model")
        pad = tokenizer.eos_token_id if pad_token is None else tokenizer.pad_token_id  # as RewardTrainer pads
        assert pad_id_of(model.config, tokenizer) == model.config.pad_token_id == pad
        np.testing.assert_allclose(
            score_sequences(model, SEQUENCES, pad), self.expected(model), atol=rounding(self.expected(model))
        )
        assert Teacher("a", str(tmp_path / "model")).pad_id(tokenizer) == pad

    def test_the_tokenizer_beside_an_adapter_knows_better_than_the_base(self, decoder, tmp_path):
        """As the configuration of its base was not changed by the training."""
        shutil.copytree(decoder, tmp_path / "base")
        change_config(tmp_path / "base", pad_token_id=17)  # which ends the last sequence
        lora(tmp_path / "adapter", tmp_path / "base", task_type="SEQ_CLS")
        model = load_reward_model(tmp_path / "adapter")
        assert model.config.pad_token_id == 0 == Teacher("a", str(tmp_path / "adapter")).pad_id(make_tokenizer("decoder"))
        found = score_sequences(model, SEQUENCES, 0)
        np.testing.assert_allclose(found, self.expected(model), atol=rounding(self.expected(model)))

    def test_no_pad_id_anywhere(self, decoder):
        tokenizer = make_tokenizer("decoder")
        tokenizer.pad_token = None
        config = AutoConfig.from_pretrained(decoder)
        config.pad_token_id = None
        with pytest.raises(ConfigError, match=r"Neither the model nor its tokenizer has a pad token.*save both"):
            pad_id_of(config, tokenizer)
