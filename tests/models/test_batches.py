"""Rewards are those of a plain loop over single sequences."""

import numpy as np
import pytest
import torch
from helpers.parts import make_adapter, make_model
from helpers.rounding import rounding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from trl_pafo.errors import ConfigError, TeacherError
from trl_pafo.models.batches import pool_sequences, score_pairs, score_sequences
from trl_pafo.models.loading import load_reward_model

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


class TestPoolSequences:
    def test_they_are_the_hidden_states_of_a_plain_loop(self, model):
        found = pool_sequences(model, SEQUENCES, PAD, batch_size=3)
        for ids, features in zip(SEQUENCES, found, strict=True):
            with torch.no_grad():
                outputs = model.base_model(input_ids=torch.tensor([ids]))
            expected = outputs.last_hidden_state[0, -1] if hasattr(model, "score") else outputs.pooler_output[0]
            np.testing.assert_allclose(features, expected, atol=rounding(expected), rtol=0)

    def test_the_model_is_as_before_and_of_nothing_there_is_nothing(self, model):
        expected = score_sequences(model, SEQUENCES, PAD)
        pool_sequences(model, SEQUENCES, PAD)
        np.testing.assert_array_equal(score_sequences(model, SEQUENCES, PAD), expected)
        assert pool_sequences(model, [], PAD).shape == (0, model.config.hidden_size)
        assert [part.shape for part in score_pairs(model, [], [], PAD)] == [(0,), (0,)]

    def test_an_adapter_has_a_head_of_its_own(self, tmp_path):
        model = load_reward_model(make_adapter(make_model("decoder", tmp_path / "base"), tmp_path / "adapter", seed=1))
        found = pool_sequences(model, SEQUENCES, PAD)
        head = dict(model.named_parameters())["base_model.model.score.modules_to_save.default.weight"]
        rewards = found @ head[0].detach().numpy()
        np.testing.assert_allclose(rewards, one_at_a_time(model, SEQUENCES), atol=rounding(*rewards), rtol=0)

    def test_no_head(self, model):
        with pytest.raises(ConfigError, match=r"has no linear reward head with one output to take features from. Use another"):
            pool_sequences(model.base_model, SEQUENCES, PAD)
