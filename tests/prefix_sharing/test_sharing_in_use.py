"""Training, evaluation and scoring give the same numbers with shared rows as without."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.parts import make_pairs, with_margins
from helpers.rounding import rounding
from peft import LoraConfig
from trl.trainer.reward_trainer import DataCollatorForPreference

from trl_pafo import DataCollatorForGroupPreference, PAFOConfig, PAFORewardTrainer
from trl_pafo.errors import ConfigError
from trl_pafo.models.batches import score_pairs
from trl_pafo.models.loading import load_reward_model
from trl_pafo.prefix_sharing.forward import PairHead


def pairs(**options) -> Dataset:
    rows = make_pairs(num_users=8, pairs_per_user=4, **options)
    return with_margins(rows.add_column("margin", [0.25 * (i % 3) for i in range(len(rows))]))


@pytest.fixture
def make_trainer(decoder, training, tmp_path):
    def make(sharing, train=None, evaluated=None, model=decoder, collator=None, peft=None, **options):
        args = PAFOConfig(
            str(tmp_path / sharing), **{"distillation_loss": "mse", "prefix_sharing": sharing, **training, **options}
        )
        return PAFORewardTrainer(
            model,
            args,
            collator,
            pairs() if train is None else train,
            evaluated or pairs(seed=1),
            compute_metrics=options.pop("compute_metrics", None),
            peft_config=peft,
        )

    return make


def logs(trainer) -> list[dict[str, float]]:
    timing = ("_runtime", "_per_second", "_preparation_time")
    return [{k: v for k, v in log.items() if not k.endswith(timing)} for log in trainer.state.log_history]


def assert_same_logs(found, expected, steps=0):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            # A norm is of gradients, and rounds as they do. The arithmetic that the Trainer reports is that of the tokens given.
            bound = {"grad_norm": 16 * rounding(), "total_flos": math.inf}.get(key, rounding(steps=steps))
            assert ours[key] == pytest.approx(value, abs=bound, rel=bound, nan_ok=True), key


@pytest.fixture
def seen(monkeypatch) -> list[int]:
    """How many rows the models are given, one entry a forward pass."""
    rows: list[int] = []
    forward = PairHead.__call__

    def counting(self, module, inputs, output):
        rows.append(len(output))
        return forward(self, module, inputs, output)

    monkeypatch.setattr(PairHead, "__call__", counting)
    return rows


class TestTraining:
    def test_same_curve_over_twenty_steps(self, make_trainer, seen):
        options = {"max_steps": 20, "learning_rate": 2e-3, "eval_strategy": "steps", "eval_steps": 20}
        trainers = {sharing: make_trainer(sharing, **options) for sharing in ("on", "off")}
        del seen[:]  # those of the small twin
        for trainer in trainers.values():
            trainer.train()
        assert trainers["on"].prefix_sharing.share
        assert set(seen[:5]) == {4}  # pairs, not twice as many rows
        assert not trainers["off"].prefix_sharing.share
        assert_same_logs(logs(trainers["on"]), logs(trainers["off"]), steps=8)  # no more than the weights below
        losses = [log["loss"] for log in logs(trainers["on"]) if "loss" in log]
        assert len(losses) == 20
        assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
        theirs = dict(trainers["off"].model.named_parameters())
        for name, parameter in trainers["on"].model.named_parameters():
            torch.testing.assert_close(parameter, theirs[name], atol=1e-3, rtol=1e-3)

    def test_with_other_options_and_an_adapter(self, make_trainer):
        options = {"center_rewards_coefficient": 0.1, "pad_to_multiple_of": 16, "gradient_accumulation_steps": 2}
        peft = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"])
        trainers = [make_trainer(sharing, peft=peft, gradient_checkpointing=True, **options) for sharing in ("on", "off")]
        for trainer in trainers:
            trainer.train()
        assert_same_logs(*map(logs, trainers), steps=2)

    def test_streams_share_if_asked(self, make_trainer, seen):
        trainer = make_trainer("on", pairs(history=0).to_iterable_dataset(), pairs(seed=1, history=0))
        del seen[:]
        trainer.train()
        assert set(seen) == {4}


class TestEvaluation:
    def test_same_metrics_predictions_and_inputs(self, make_trainer, seen):
        found = {}
        for sharing in ("on", "off"):
            trainer = make_trainer(sharing, include_for_metrics=["inputs", "loss"], per_device_eval_batch_size=5)
            kept = []
            trainer.compute_metrics = lambda prediction, kept=kept: kept.append(prediction) or {}
            metrics = trainer.evaluate()
            del seen[:]
            output = trainer.predict(pairs(seed=1))
            found[sharing] = (metrics, output, kept[0])
            assert sharing == "off" or max(seen) == 5
        (metrics, output, prediction), (expected_metrics, expected_output, expected_prediction) = found["on"], found["off"]
        timing = ("_runtime", "_per_second", "_preparation_time")
        assert_same_logs(*([{k: v for k, v in m.items() if not k.endswith(timing)}] for m in (metrics, expected_metrics)))
        np.testing.assert_allclose(output.predictions, expected_output.predictions, atol=rounding(output.predictions))
        np.testing.assert_allclose(prediction.losses, expected_prediction.losses, atol=rounding(prediction.losses))
        # Other pairs share a batch, so other tokens are its padding (0) and not that of shorter batches (-100).
        np.testing.assert_array_equal(np.maximum(prediction.inputs, 0), np.maximum(expected_prediction.inputs, 0))
        assert np.ptp(expected_output.predictions) > 0.1

    def test_without_a_training_set_the_evaluation_set_decides(self, decoder, training, tmp_path):
        args = PAFOConfig(str(tmp_path), **training)
        trainer = PAFORewardTrainer(decoder, args, eval_dataset={"a": pairs(seed=1)})
        assert trainer.prefix_sharing.share
        assert PAFORewardTrainer(decoder, args).prefix_sharing.reason.startswith("the lengths of the pairs are not known")
        plain = PAFORewardTrainer(
            decoder, PAFOConfig(str(tmp_path), prefix_sharing="off", **training), eval_dataset=pairs(seed=1)
        )
        assert trainer.evaluate()["eval_a_loss"] == pytest.approx(plain.evaluate()["eval_loss"], abs=rounding())


class TestChoice:
    def test_collators_of_ones_own(self, make_trainer, seen):
        plain = DataCollatorForPreference(pad_token_id=0)
        rows = pairs().remove_columns("teacher_margin")
        trainer = make_trainer("auto", train=rows, collator=plain)
        assert trainer.prefix_sharing == (False, "the data collator is not the trainer's own")
        with pytest.raises(ConfigError, match="the data collator is not the trainer's own"):
            make_trainer("on", train=rows, collator=plain)
        sharing = DataCollatorForGroupPreference(pad_token_id=0, share_prefix=True)
        trainer = make_trainer("auto", train=rows, collator=sharing)
        del seen[:]
        trainer.train()
        assert set(seen) == {4}

    def test_parallelism_inside_of_a_row(self, make_trainer, monkeypatch):
        monkeypatch.setattr(PAFORewardTrainer, "get_sp_size", lambda self: 2)
        assert "split what the reward head reads" in make_trainer("auto").prefix_sharing.reason


class TestScores:
    CHOSEN = [[7, 8, 9, 10], [7, 8, 9, 10], [11], [20, 21, 22, 23, 24, 25, 26]]
    REJECTED = [[7, 8, 9, 12, 13], [7, 8, 9, 12, 13], [14, 15], [20, 21, 22, 23]]

    def test_equal_those_of_single_sequences(self, decoder, seen):
        model, batch_size = load_reward_model(decoder), 5
        expected = score_pairs(model, self.CHOSEN, self.REJECTED, 0, batch_size=batch_size)
        model.train()
        found = score_pairs(model, self.CHOSEN, self.REJECTED, 0, batch_size=batch_size, share_prefix=True)
        assert model.training
        assert sum(seen) == 3  # equal pairs once
        assert max(seen) == 2
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == np.float32
            np.testing.assert_allclose(ours, theirs, atol=rounding(theirs))
        assert np.ptp(expected[0]) > 0.1

    def test_of_no_pair_and_of_a_broken_batch_size(self, decoder):
        model = load_reward_model(decoder)
        assert [len(rewards) for rewards in score_pairs(model, [], [], 0, share_prefix=True)] == [0, 0]
        with pytest.raises(ConfigError, match="`batch_size` must be a whole number"):
            score_pairs(model, self.CHOSEN, self.REJECTED, 0, share_prefix=True, batch_size=0)
