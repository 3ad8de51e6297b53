"""Which folders are reward models, and how they are loaded."""

from pathlib import Path

import pytest
import torch
from helpers.parts import make_model, make_pairs
from peft import PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification

from trl_pafo import FairRewardModel, PAFOConfig, PAFORewardTrainer
from trl_pafo.errors import ConfigError, TeacherError
from trl_pafo.evaluation.evaluate import evaluate_models
from trl_pafo.models import load_tokenizer
from trl_pafo.models.loading import load_reward_model, positions_of, table_positions
from trl_pafo.models.safe_loading import has_tokenizer, local_folder
from trl_pafo.models.scoring import RewardScorer
from trl_pafo.trainer.teacher import Teacher


class TestFolders:
    def test_a_folder_is_taken_as_it_is(self, encoder, tmp_path):
        assert str(local_folder(encoder)) == encoder
        assert has_tokenizer(local_folder(encoder))
        assert not has_tokenizer(tmp_path)
        (tmp_path / "vocab.txt").touch()
        assert has_tokenizer(tmp_path)

    def test_a_model_without_its_tokenizer_is_refused(self, tmp_path):
        """Transformers makes one to which all words are unknown, and all responses of one length get one reward."""
        folder = make_model("encoder", tmp_path / "model")
        for file in Path(folder).glob("tokenizer*"):
            file.unlink()
        with pytest.raises(ConfigError, match=r"model holds no vocabulary, .* Save the tokenizer .* tokenizer\.save_pretrained"):
            RewardScorer.from_pretrained(folder)
        with pytest.raises(ConfigError, match="model holds no vocabulary"):
            load_tokenizer(folder)
        with pytest.raises(ConfigError, match="model holds no vocabulary"):
            PAFORewardTrainer(folder, PAFOConfig(str(tmp_path / "out"), use_cpu=True), train_dataset=make_pairs(history=0))

    def test_the_file_in_place_of_its_folder(self, encoder):
        with pytest.raises(TeacherError, match=f"is a file. Give the folder of the saved model: {encoder}"):
            local_folder(f"{encoder}/model.safetensors")

    def test_a_pretrained_model_of_a_wheel_gives_no_rewards(self):
        """Its head would be random; the Hub, which may have a model of this name, is not asked."""
        evaluate = lambda name: evaluate_models(name, make_pairs(history=0))  # noqa: E731
        for read in (FairRewardModel.from_pretrained, lambda name: Teacher("minority", name).folder, evaluate):
            with pytest.raises(ConfigError, match=r"minilm is a pretrained model, .* no reward head, .* Train it"):
                read("minilm")

    @pytest.mark.parametrize("source", ["no/such-model", "not a repository // name"])
    def test_what_is_not_found(self, source):
        with pytest.raises(TeacherError, match=r"No model is found at .*: no such folder, and the Hub does not give it"):
            local_folder(source)

    def test_models_are_loaded_in_evaluation_mode_and_the_number_format_asked_for(self, base_model):
        assert not load_reward_model(base_model).training
        assert next(load_reward_model(base_model).parameters()).dtype == torch.float32
        assert next(load_reward_model(base_model, torch.bfloat16).parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["albert", "bert", "camembert", "gpt2", "markuplm", "mpnet", "roberta", "xlm-roberta"])
def test_as_many_positions_as_the_model_can_use(name):
    """Those of RoBERTa's family begin after its pad id: one token more, and the forward pass fails."""
    sizes = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = AutoConfig.for_model(name, max_position_embeddings=20, **sizes)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    longest = positions_of(config)
    assert table_positions(model) == longest
    assert model(input_ids=torch.full((1, longest), 5)).logits.isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, longest + 1), 5))


def test_positions_that_are_computed_and_virtual_tokens(encoder, decoder):
    model = AutoModelForSequenceClassification.from_pretrained(decoder)
    assert (positions_of(model.config), table_positions(model)) == (256, None)
    prompted = get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(encoder), PromptTuningConfig("SEQ_CLS", num_virtual_tokens=20)
    )
    assert table_positions(prompted) == 256 - 20
