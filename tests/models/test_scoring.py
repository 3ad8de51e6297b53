"""Rewards are those of a plain loop over single sequences, and tokens those of TRL's RewardTrainer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.parts import make_adapter, make_model, make_pairs
from helpers.rounding import rounding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoTokenizer

from trl_pafo import FairRewardModel, PAFOConfig, PAFORewardTrainer
from trl_pafo.data.tokenization import tokenize_row
from trl_pafo.errors import ConfigError, DataError, TeacherError
from trl_pafo.evaluation.evaluate import evaluate_models
from trl_pafo.models import load_tokenizer
from trl_pafo.models.base_models import WHEEL_MODELS
from trl_pafo.models.safe_loading import has_tokenizer, local_folder
from trl_pafo.models.scoring import RewardScorer, load_reward_model, pool_sequences, score_pairs, score_sequences
from trl_pafo.trainer.teacher import Teacher

PAD = 0
SEQUENCES = [[7, 8, 9], [10], [11, 12, 13, 14, 15, 16, 17], [10], [9, 8, 7], [20, 21], [7, 8, 9]]


def one_at_a_time(model, sequences):
    with torch.no_grad():
        return np.array([model(input_ids=torch.tensor([list(ids)])).logits.item() for ids in sequences], dtype=np.float32)


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def lively(request, tmp_path_factory):
    return make_model(request.param, tmp_path_factory.mktemp("lively"))


@pytest.fixture
def model(lively):
    return load_reward_model(lively)


class Recorder(torch.nn.Module):
    """Records what a model is given."""

    def __init__(self, model):
        super().__init__()
        self.model, self.batches = model, []

    def forward(self, **inputs):
        self.batches.append({k: v.clone() for k, v in inputs.items() if isinstance(v, torch.Tensor)})
        return self.model(**inputs)


class TestScoreSequences:
    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.lists(st.integers(6, 40), min_size=1, max_size=12), max_size=12), st.integers(1, 5))
    def test_equals_a_plain_loop_whatever_the_order(self, model, sequences, batch_size):
        rewards = score_sequences(model, sequences, PAD, batch_size=batch_size)
        np.testing.assert_allclose(rewards, one_at_a_time(model, sequences), atol=rounding(*rewards), rtol=0)

    def test_equal_sequences_are_scored_once_and_like_lengths_together(self, model):
        model.set_attn_implementation("eager")  # with which encoders have padding too
        recorder = Recorder(model)
        score_sequences(recorder, SEQUENCES, PAD, batch_size=2)
        assert [b["input_ids"].shape for b in recorder.batches] == [(2, 7), (2, 3), (1, 1)]
        scored = [ids[mask.bool()].tolist() for b in recorder.batches for ids, mask in zip(*b.values(), strict=True)]
        assert sorted(scored) == sorted(map(list, {tuple(ids) for ids in SEQUENCES}))

    def test_the_pad_id_is_the_one_that_pooling_looks_for(self, tmp_path):
        folder = make_model("decoder", tmp_path / "model")
        config = AutoConfig.from_pretrained(folder)
        config.pad_token_id = 44  # an id of its own, far from 0
        config.save_pretrained(folder)
        model = load_reward_model(folder)
        expected = one_at_a_time(model, SEQUENCES)
        np.testing.assert_allclose(score_sequences(model, SEQUENCES, 44, batch_size=4), expected, atol=rounding(expected), rtol=0)
        recorder = Recorder(model)
        score_sequences(recorder, SEQUENCES, 44, batch_size=4)
        assert all((b["input_ids"][b["attention_mask"] == 0] == 44).all() for b in recorder.batches)
        # With another one the model would pool over padding: the test above can fail.
        assert np.abs(score_sequences(model, SEQUENCES, PAD, batch_size=4) - expected).max() > 1e-1

    def test_dropout_is_off_and_the_mode_is_given_back(self, model):
        expected = score_sequences(model, SEQUENCES, PAD)
        for training in (True, False):
            model.train(training)
            np.testing.assert_array_equal(score_sequences(model, SEQUENCES, PAD), expected)
            assert model.training is training

    def test_a_model_of_another_kind(self, model):
        with pytest.raises(ConfigError, match="one number per sequence, and this one gives no logits"):
            score_sequences(model.base_model, SEQUENCES, PAD)
        head = "score" if hasattr(model, "score") else "classifier"
        setattr(model, head, torch.nn.Linear(model.config.hidden_size, 2))
        with pytest.raises(ConfigError, match=r"and this one gives logits of shape \(\d+, 2\)"):
            score_sequences(model, SEQUENCES, PAD)

    def test_no_sequences(self, model):
        assert score_sequences(model, [], PAD).shape == (0,)
        assert [part.shape for part in score_pairs(model, [], [], PAD)] == [(0,), (0,)]

    def test_broken_weights_are_found(self, model):
        with torch.no_grad():
            next(model.parameters())[7] = float("nan")  # the embedding of token 7, in two of the five different ones
        model.train()
        with pytest.raises(TeacherError, match=r"2 of 5 rewards are NaN or infinite.*Train it again, or score it in float32"):
            score_sequences(model, SEQUENCES, PAD, batch_size=1)
        assert model.training

    def test_autocast_is_used_for_each_forward_pass(self, model):
        exact = score_sequences(model, SEQUENCES, PAD)
        rough = score_sequences(model, SEQUENCES, PAD, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
        assert 0 < np.abs(rough - exact).max() < 0.1

    def test_pairs(self, model):
        chosen, rejected = score_pairs(model, SEQUENCES[:3], SEQUENCES[2:5], PAD, batch_size=2)
        np.testing.assert_allclose(chosen, one_at_a_time(model, SEQUENCES[:3]), atol=rounding(chosen), rtol=0)
        np.testing.assert_allclose(rejected, one_at_a_time(model, SEQUENCES[2:5]), atol=rounding(rejected), rtol=0)


class TestPoolSequences:
    def test_the_head_makes_the_rewards_of_them(self, model):
        """Weights and bias of the head on the features give the reward of each sequence alone; so they are what it reads."""
        head = getattr(model, "score", None) or model.classifier
        found = pool_sequences(model, SEQUENCES, PAD, batch_size=2)
        assert found.shape == (len(SEQUENCES), model.config.hidden_size)
        bias = 0.0 if head.bias is None else head.bias.item()
        rewards = found @ head.weight[0].detach().numpy() + bias
        np.testing.assert_allclose(rewards, one_at_a_time(model, SEQUENCES), atol=rounding(*rewards), rtol=0)

    def test_they_are_the_hidden_states_of_a_plain_loop(self, model):
        found = pool_sequences(model, SEQUENCES, PAD, batch_size=3)
        for ids, features in zip(SEQUENCES, found, strict=True):
            with torch.no_grad():
                outputs = model.base_model(input_ids=torch.tensor([ids]))
            expected = outputs.last_hidden_state[0, -1] if hasattr(model, "score") else outputs.pooler_output[0]
            np.testing.assert_allclose(features, expected, atol=rounding(expected), rtol=0)

    def test_the_model_is_as_before(self, model):
        expected = score_sequences(model, SEQUENCES, PAD)
        pool_sequences(model, SEQUENCES, PAD)
        np.testing.assert_array_equal(score_sequences(model, SEQUENCES, PAD), expected)

    def test_an_adapter_has_a_head_of_its_own(self, tmp_path):
        model = load_reward_model(make_adapter(make_model("decoder", tmp_path / "base"), tmp_path / "adapter", seed=1))
        found = pool_sequences(model, SEQUENCES, PAD)
        head = dict(model.named_parameters())["base_model.model.score.modules_to_save.default.weight"]
        rewards = found @ head[0].detach().numpy()
        np.testing.assert_allclose(rewards, one_at_a_time(model, SEQUENCES), atol=rounding(*rewards), rtol=0)

    def test_no_head(self, model):
        with pytest.raises(ConfigError, match=r"has no linear reward head with one output to take features from. Use another"):
            pool_sequences(model.base_model, SEQUENCES, PAD)

    def test_no_sequences(self, model):
        assert pool_sequences(model, [], PAD).shape == (0, model.config.hidden_size)


USER = [{"role": "user", "content": "how do i sing"}]
YES, NO = ([{"role": "assistant", "content": text}] for text in ("kindly sir", "haha"))
PAST = [{"prompt": "what is red", "chosen": "the house", "rejected": "lol"}]

ROWS = {
    "text": {"prompt": "how do i sing", "chosen": " kindly sir", "rejected": " haha"},
    "text without prompt": {"chosen": "how do i sing kindly sir", "rejected": "how do i sing haha"},
    "text that ends already": {"prompt": "how ", "chosen": "kindly<|im_end|>", "rejected": "haha[SEP]"},
    "messages": {"prompt": USER, "chosen": YES, "rejected": NO},
    "messages without prompt": {"chosen": USER + YES, "rejected": USER + NO},
    "history": {"prompt": USER, "chosen": YES, "rejected": NO, "chat_template_kwargs": {"history": PAST}},
}


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

    @pytest.mark.parametrize("name", WHEEL_MODELS)
    @pytest.mark.parametrize(
        "read",
        [
            RewardScorer.from_pretrained,
            FairRewardModel.from_pretrained,
            lambda name: Teacher("minority", name).folder,
            lambda name: evaluate_models(name, make_pairs(history=0)),
        ],
        ids=["score", "FairRewardModel", "teacher", "evaluate"],
    )
    def test_a_pretrained_model_of_a_wheel_gives_no_rewards(self, name, read):
        """Its head would be random; the Hub, which may have a model of this name, is not asked."""
        with pytest.raises(ConfigError, match=f"{name} is a pretrained model, .* no reward head, .* Train it"):
            read(name)

    @pytest.mark.parametrize("source", ["no/such-model", "not a repository // name"])
    def test_what_is_not_found(self, source):
        with pytest.raises(TeacherError, match=r"No model is found at .*: no such folder, and the Hub does not give it"):
            local_folder(source)

    def test_models_are_loaded_in_evaluation_mode_and_the_number_format_asked_for(self, base_model):
        assert not load_reward_model(base_model).training
        assert next(load_reward_model(base_model).parameters()).dtype == torch.float32
        assert next(load_reward_model(base_model, torch.bfloat16).parameters()).dtype == torch.bfloat16


class TestRewardScorer:
    """(What rows may hold: tests/data/test_rendering.py and tests/evaluation/test_score_file.py)"""

    ROWS = (
        {"prompt": "how do i sing", "response": "kindly sir"},
        {"prompt": "can i run", "chosen": "yes please sir", "rejected": "no"},
    )

    def test_rewards_are_those_of_the_model(self, lively, model):
        tokenizer = AutoTokenizer.from_pretrained(lively)
        found = RewardScorer.from_pretrained(lively, device="cpu").score(self.ROWS, batch_size=2)
        assert [list(row) for row in found] == [["response"], ["chosen", "rejected"]]
        for row, rewards in zip(self.ROWS, found, strict=True):
            for side, reward in rewards.items():
                (expected,) = one_at_a_time(model, [tokenize_row(tokenizer, row, side)])
                assert reward == pytest.approx(expected, abs=rounding(expected))

    def test_rows_are_checked_before_weights_are_loaded(self, lively, monkeypatch):
        monkeypatch.setattr("trl_pafo.models.scoring.load_reward_model", None)
        scorer = RewardScorer(lively, device="cpu")
        assert scorer.positions == 256
        with pytest.raises(DataError, match="1 of 3 rows are longer than the 256 positions of the model, the first is row 2"):
            scorer.score([*self.ROWS, {"prompt": "what", "response": "red " * 300}])
