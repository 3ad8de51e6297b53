"""Which pairs share a batch. (What a training step waits for: tests/distributed/test_mock_gpu.py)"""

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.parts import numbered_pairs
from helpers.rounding import rounding
from transformers.trainer_pt_utils import get_length_grouped_indices

from trl_pafo import DataCollatorForGroupPreference, PAFOConfig, PAFORewardTrainer
from trl_pafo.trainer.samplers import DrawnOrder, row_lengths

GROUPED = {"train_sampling_strategy": "group_by_length"}


def by_size(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("multiple", [None, 8])
def test_lengths_are_those_that_the_collator_lays_out(share, multiple):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(23):
        prefix = rng.integers(3, 20, number % 5).tolist()
        rests = (rng.integers(20, 90, 1 + rng.integers(9)).tolist() for _ in range(2))
        rows.append(dict(zip(("chosen_ids", "rejected_ids"), (prefix + rest for rest in rests), strict=True)))
    dataset = Dataset.from_list(rows).shuffle(seed=1).select(range(20))  # rows that Arrow has in another order
    collator = DataCollatorForGroupPreference(pad_token_id=0, pad_to_multiple_of=multiple, share_prefix=share)
    assert row_lengths(dataset, collator).tolist() == [collator([row])["input_ids"].shape[1] for row in dataset]
    assert row_lengths(dataset.select([]), collator).shape == (0,)


def test_order_is_that_of_transformers_for_seed_and_epoch():
    lengths = np.clip(np.random.default_rng(0).lognormal(5.8, 0.6, 1000), 20, 1024).astype(np.int64)
    sampler = DrawnOrder(1000, 5, lengths, 16)
    orders = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        torch.manual_seed(epoch)  # nothing outside may matter
        orders.append(list(sampler))
        expected = get_length_grouped_indices(lengths.tolist(), 16, generator=torch.Generator().manual_seed(5 + epoch))
        assert orders[-1] == expected
    assert orders[0] != orders[1]
    padded = sum(lengths[batch].max() * len(batch) for batch in by_size(orders[0], 16))
    assert padded < 1.15 * lengths.sum()


@pytest.fixture
def make_trainer(decoder, training, tmp_path):
    def make(**options):
        args = PAFOConfig(str(tmp_path / "out"), **{"distillation_loss": "mse", "prefix_sharing": "off", **training, **options})
        return PAFORewardTrainer(decoder, args, train_dataset=numbered_pairs())

    return make


def batches_of(trainer: PAFORewardTrainer, **resume) -> list[list[int]]:
    """The pairs of each batch of a training."""
    seen = []
    get_batches = trainer.get_batch_samples

    def watch(*args):
        batches, num_items = get_batches(*args)
        seen.extend((1000 * batch["margin"]).round().int().tolist() for batch in batches)
        return batches, num_items

    trainer.get_batch_samples = watch
    trainer.train(**resume)
    return seen


def test_a_training_that_goes_on_within_an_epoch_sees_the_same_batches_of_similar_length(make_trainer):
    options = {**GROUPED, "max_steps": -1, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 9}
    whole = make_trainer(**options)
    seen = batches_of(whole)
    sampler = DrawnOrder(30, 42, row_lengths(whole.train_dataset, whole.data_collator), 4)
    expected = by_size(list(sampler), 4)
    sampler.set_epoch(1)
    assert seen == expected + by_size(list(sampler), 4)
    rest = make_trainer(**options)
    assert batches_of(rest, resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-9") == seen[9:]
    theirs = dict(whole.model.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in rest.model.named_parameters())


def test_the_seed_of_the_data_decides(make_trainer):
    trainer = make_trainer(**GROUPED)

    def batches(seed=42, data_seed=None):
        trainer.args.seed, trainer.args.data_seed = seed, data_seed
        return [batch["margin"].tolist() for batch in trainer.get_train_dataloader()]

    assert batches() == batches()
    assert batches() != batches(seed=7)
    assert batches(seed=7, data_seed=42) == batches()


@pytest.mark.parametrize("sharing", ["off", "on"])
def test_evaluation_goes_by_length_and_predict_keeps_the_order(make_trainer, sharing):
    trainer = make_trainer(prefix_sharing=sharing, per_device_eval_batch_size=4)
    lengths = []
    trainer.model.model.embed_tokens.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    output = trainer.predict(trainer.train_dataset)
    assert lengths == sorted(row_lengths(trainer.train_dataset, trainer.data_collator), reverse=True)[::4]
    assert output.label_ids["user"].tolist() == trainer.train_dataset["user"][:]
    with torch.no_grad():
        for row, rewards in zip(trainer.train_dataset, output.predictions, strict=True):
            alone = [trainer.model(torch.tensor([row[side]])).logits.item() for side in ("chosen_ids", "rejected_ids")]
            assert rewards == pytest.approx(alone, abs=rounding(alone))
