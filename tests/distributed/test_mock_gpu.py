"""On a device other than the CPU: all is where it belongs, and a training step waits for nothing that RewardTrainer's does not."""

import gc
from collections import Counter

import numpy as np
import pytest
import torch
from helpers.mock_gpu import OnMock, mock_gpu
from helpers.parts import as_chat, losses, make_model, make_pairs, make_teachers, numbered_pairs
from transformers import TrainerCallback
from trl import RewardConfig, RewardTrainer

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.baselines.table import TRAINERS
from trl_pafo.evaluation.text_features import embed_texts
from trl_pafo.models import RewardScorer
from trl_pafo.trainer.pair_metrics import ScoredPairs

GPU = {"use_cpu": False, "max_steps": 2, "accelerator_config": {"non_blocking": True}}


class Steps(TrainerCallback):
    """Remembers what a training has waited for at the end of each step."""

    def __init__(self, gpu):
        self.gpu, self.waits = gpu, []

    def on_step_end(self, args, state, control, **kwargs):
        self.waits.append(self.gpu.waits.copy())


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    return make_model("decoder", tmp_path_factory.mktemp("models") / "small", num_hidden_layers=1)


@pytest.fixture
def train(small, training, tmp_path):
    """A training on the device, what the host waited for in its second step."""

    def run(kind, rows=None, **options):
        config = RewardConfig if kind is RewardTrainer else PAFOConfig
        args = {**training, **GPU, "logging_steps": 100, "logging_nan_inf_filter": False, **options}
        with mock_gpu() as gpu:
            steps = Steps(gpu)
            rows = as_chat(numbered_pairs()) if rows is None else rows
            trainer = kind(small, config(str(tmp_path), **args), train_dataset=rows, callbacks=[steps])
            trainer.train()
        return trainer, +(steps.waits[-1] - steps.waits[-2])

    return run


@pytest.fixture
def reward_trainer(train) -> Counter:
    """What RewardTrainer waits for in a step."""
    return train(RewardTrainer, as_chat(numbered_pairs()).select_columns(["chosen", "rejected"]))[1]


def test_a_training_step_waits_for_less_than_reward_trainer(train, reward_trainer):
    """Transformers' masks ask whether there is padding; RewardTrainer reads six numbers besides."""
    trainer, shared = train(PAFORewardTrainer, prefix_sharing="on")
    assert all(isinstance(weight, OnMock) for weight in trainer.model.parameters())
    two_rows = train(PAFORewardTrainer, prefix_sharing="off")[1]
    assert reward_trainer["number"] == two_rows["number"] + 6
    assert (shared, two_rows.keys()) == ({}, {"number"})


@pytest.mark.parametrize("name", TRAINERS)
def test_a_step_of_a_baseline_waits_for_nothing(train, name):
    """But for MGDA, whose weights of the groups are solved for on the host."""
    waits = train(TRAINERS[name].load(), prefix_sharing="on")[1]
    assert waits == ({"to the host": 2, "from the host": 1} if name == "mgda" else {})


def test_a_log_copies_each_column_once_however_many_steps_it_is_about():
    for steps in (1, 3):
        scored = ScoredPairs()
        with mock_gpu() as gpu:
            for step in range(steps):
                rewards = torch.full((2, 2), float(step), dtype=torch.bfloat16, device="mock")
                scored.add(rewards=rewards, has_label=rewards[:, 0] > 0, pair_user=["a", "b"])
            columns = scored.gather()
        assert gpu.waits == {"to the host": 2}
        assert columns["rewards"][:, 1].tolist() == [float(step) for step in range(steps) for _ in range(2)]
        assert columns["pair_user"].tolist() == ["a", "b"] * steps


def test_all_of_a_batch_is_pinned_and_moved(small, training, tmp_path):
    rows = numbered_pairs()
    with mock_gpu():
        args = PAFOConfig(str(tmp_path), **{**training, **GPU, "prefix_sharing": "on"})
        trainer = PAFORewardTrainer(small, args, train_dataset=rows, eval_dataset=rows)
        pinned = torch.utils.data._utils.pin_memory.pin_memory(trainer.data_collator([trainer.train_dataset[0]]))
        moved = [next(iter(loader)) for loader in (trainer.get_train_dataloader(), trainer.get_eval_dataloader())]
        fields = {"margin", "teacher_margin", "has_label", "group_id", "pair_lengths", "input_ids", "attention_mask"}
        assert pinned.keys() == fields
        assert all(tensor.is_pinned() for tensor in pinned.values())
    names = {"pair_number", "pair_group", "pair_user"}  # which stay on the host
    for batch in moved:
        assert {key for key, value in batch.items() if isinstance(value, OnMock)} == fields
        assert batch.keys() - fields <= names


def on_the_device() -> int:
    """Numbers that are held there."""
    gc.collect()
    return sum(thing.host.numel() for thing in gc.get_objects() if type(thing) is OnMock)


def test_teachers_score_on_the_device_and_leave_nothing_there(small, training, tmp_path):
    """And the trainer gives what it gives on the CPU, evaluation included."""
    teachers = make_teachers("decoder", tmp_path / "teachers")
    rows = make_pairs()

    def run(name, **options):
        args = {**training, "max_steps": 2, "distillation_loss": "mse", "prefix_sharing": "on", **options}
        config = PAFOConfig(str(tmp_path / name), **args)
        trainer = PAFORewardTrainer(small, config, train_dataset=rows, eval_dataset=rows, teachers=teachers)
        held = on_the_device()
        trainer.train()
        return trainer, held, trainer.evaluate()

    expected, _, metrics = run("cpu")
    with mock_gpu() as gpu:
        trainer, held, found = run("gpu", use_cpu=False)
        assert gpu.seeds[-1] == trainer.args.seed  # small twins draw from the CPU's generator alone
    own = sum(tensor.numel() for tensor in (*trainer.model.parameters(), *trainer.model.buffers()))
    assert held == own
    margins = [np.array(each.train_dataset["teacher_margin"]) for each in (expected, trainer)]
    np.testing.assert_allclose(*margins, atol=1e-4)
    assert margins[0].std() > 1
    assert losses(trainer) == pytest.approx(losses(expected), rel=1e-4)
    kept = [key for key in metrics if not key.endswith(("runtime", "per_second"))]
    assert [found[key] for key in kept] == pytest.approx([metrics[key] for key in kept], rel=1e-3)


def test_a_saved_model_scores_on_the_device(encoder, small):
    """An encoder with padding: without it, the device would be waited for."""
    pair = {"prompt": "what is the cat", "chosen": "yes kindly the cat", "rejected": "no"}
    for folder in (small, encoder):
        expected = RewardScorer(folder, device="cpu").score([pair])
        with mock_gpu():
            scorer = RewardScorer(folder)
            assert scorer.device.type == "mock"
            assert scorer.score([pair])[0] == pytest.approx(expected[0], rel=1e-5)


def test_features_of_texts_are_read_on_the_device(small):
    texts = ["what is the cat", "yes kindly the cat", "no"]
    expected = embed_texts(texts, small)
    with mock_gpu() as gpu:
        found = embed_texts(texts, small)
    assert gpu.waits["to the host"] == 1
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_encoders_are_padded_there_also_where_they_are_not_there_yet(encoder, training, tmp_path, monkeypatch):
    """As under FSDP, which moves the model when the training begins."""
    with mock_gpu():
        monkeypatch.setattr("transformers.Trainer._move_model_to_device", lambda *args: None)
        args = PAFOConfig(str(tmp_path), **{**training, **GPU, "eos_token": "[SEP]"})
        choice = PAFORewardTrainer(encoder, args, train_dataset=make_pairs()).padding_free
    assert (choice.pack, "would have to be waited for" in choice.reason) == (False, True)
