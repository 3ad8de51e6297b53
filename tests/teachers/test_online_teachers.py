"""Teachers of a stream give each row the margin that they would have given it before training."""

import gc
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers.parts import make_pairs, make_teacher
from helpers.rounding import rounding
from transformers import AutoTokenizer
from trl.trainer.reward_trainer import DataCollatorForPreference

import trl_pafo.teachers.loaded
from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.models.scoring import load_reward_model
from trl_pafo.teachers.loaded import TeacherModels
from trl_pafo.teachers.online import OnlineTeachers, TeacherRows
from trl_pafo.teachers.teacher import as_teachers
from trl_pafo.trainer.collator import PairBatch


@pytest.fixture
def teachers(tmp_path) -> dict[str, str]:
    return {g: make_teacher("encoder", tmp_path / "teachers" / g, seed=s) for s, g in enumerate(["majority", "minority"], 1)}


@pytest.fixture
def train(encoder, training, teachers, tmp_path):
    """A trainer on the pairs as a stream or as they are."""

    def build(rows, collator=None, teachers=teachers, **more):
        args = PAFOConfig(
            str(tmp_path / "out"), eos_token="[SEP]", distillation_loss="mse", num_history=0, **{**training, **more}
        )
        return PAFORewardTrainer(encoder, args, collator, train_dataset=rows, teachers=teachers)

    return build


def margins_of_batches(trainer, num_batches: int = 3) -> list[float]:
    found = []
    for batch, _ in zip(trainer.get_train_dataloader(), range(num_batches), strict=False):
        found.extend(trainer._margins.of_batch(PairBatch.pop_from(batch)).tolist())
    return found


def test_margins_are_those_of_the_precompute(train, teachers, encoder, tmp_path):
    rows = make_pairs(history=0)
    kept = train(rows).train_dataset["teacher_margin"][:]
    trainer = train(rows.to_iterable_dataset())
    got = margins_of_batches(trainer)
    np.testing.assert_allclose(got, kept[: len(got)], atol=rounding(kept))
    assert len(set(np.round(got, 4))) > 6


def test_a_stream_trains_like_its_rows(train):
    rows = make_pairs(history=0)
    stream = train(rows.to_iterable_dataset())
    stream.train()
    # The same rows in the same order, with margins from before the training.
    plain = train(train(rows).train_dataset.to_iterable_dataset(), teachers=None)
    plain.train()
    losses = [[log["loss"] for log in trainer.state.log_history if "loss" in log] for trainer in (stream, plain)]
    # The margins come from other batches, and four steps of training carry their rounding on.
    assert losses[0] == pytest.approx(losses[1], abs=rounding(losses[1], steps=4))
    assert "accuracy/minority" in stream.state.log_history[0]


def test_teachers_are_loaded_for_the_training_and_freed_after_it(train, monkeypatch):
    models = []

    def spy(*args, **kwargs):
        model = load_reward_model(*args, **kwargs)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(trl_pafo.teachers.loaded, "load_reward_model", spy)
    trainer = train(make_pairs(history=0).to_iterable_dataset())
    assert models == []
    for times in (1, 2):
        trainer.train()
        gc.collect()
        assert len(models) == 2 * times
        assert not any(model() for model in models)
    assert sum(isinstance(value, torch.nn.Module) for value in vars(trainer).values()) <= 2


@pytest.mark.parametrize("workers", [0, 1])
def test_any_collator_and_workers_will_do(train, workers):
    collator = DataCollatorForPreference(pad_token_id=0)
    trainer = train(make_pairs(history=0).to_iterable_dataset(), collator, dataloader_num_workers=workers)
    trainer.train()
    assert "distillation_loss" in trainer.state.log_history[0]
    assert trainer.data_collator is collator


def test_a_teacher_without_rows_scores_all_the_same(teachers, encoder, monkeypatch):
    """Sharded weights need every process, so each teacher takes one forward pass a batch whoever's rows are there."""
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    load = partial(TeacherModels, tokenizer=tokenizer, accelerator=Accelerator(cpu=True))
    online = OnlineTeachers(as_teachers(teachers), load)
    calls = []
    forward = trl_pafo.teachers.loaded.TeacherModels.forward
    monkeypatch.setattr(
        trl_pafo.teachers.loaded.TeacherModels, "forward", lambda self, *args: calls.append(args) or forward(self, *args)
    )
    margins = online.margins(TeacherRows(["minority"] * 2, [[7, 8, 9], [7]], [[10], [11, 12]]))
    assert [group for group, _ in calls] == ["majority", "minority"]
    model = load_reward_model(teachers["minority"])
    with torch.no_grad():
        first = model(torch.tensor([[7, 8, 9]])).logits.item() - model(torch.tensor([[10]])).logits.item()
    assert margins.tolist()[0] == pytest.approx(first, abs=rounding(first))
    online.close()
