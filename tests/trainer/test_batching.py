"""Which pairs share a batch, and that a step follows the mean over its pairs whatever the sizes of its batches."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.parts import make_pairs
from helpers.rounding import rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import RewardConfig, RewardTrainer

from trl_pafo import DataCollatorForGroupPreference, PAFOConfig, PAFORewardTrainer
from trl_pafo.errors import ConfigError
from trl_pafo.trainer.losses import pafo_loss
from trl_pafo.trainer.samplers import (
    LengthGroupedSampler,
    TokenBudgetBatchSampler,
    check_budget,
    num_pairs,
    row_lengths,
    rows_a_pair,
)


def many_lengths(num: int) -> np.ndarray:
    return np.clip(np.random.default_rng(0).lognormal(5.8, 0.6, num), 20, 1024).astype(np.int64)


def padded_share(lengths: np.ndarray, batches: list[list[int]]) -> float:
    return sum(lengths[batch].max() * len(batch) for batch in batches) / lengths.sum()


def by_size(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


# --- lengths


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
    batches = [collator([row]) for row in dataset]
    assert row_lengths(dataset, collator).tolist() == [batch["input_ids"].shape[1] for batch in batches]
    assert {len(batch["input_ids"]) for batch in batches} == {rows_a_pair(collator)}
    assert {num_pairs(batch) for batch in batches} == {1}
    assert num_pairs(collator(rows)) == 23
    assert row_lengths(dataset.select([]), collator).shape == (0,)


# --- batches of a budget


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80),
    max_tokens=st.integers(1, 400),
    rows=st.sampled_from([1, 2]),
    max_pairs=st.sampled_from([None, 1, 7]),
    num_processes=st.integers(1, 4),
    seed=st.sampled_from([0, 3]),
)
@settings(max_examples=150, deadline=None)
def test_each_pair_is_in_one_batch_within_the_budget(lengths, max_tokens, rows, max_pairs, num_processes, seed):
    lengths = np.array(lengths)
    options = {"rows_a_pair": rows, "max_pairs": max_pairs, "num_processes": num_processes, "seed": seed}
    sampler = TokenBudgetBatchSampler(lengths, max_tokens, **options)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert sorted(pair for batch in batches for pair in batch) == list(range(len(lengths)))
        assert len(batches) == len(sampler)
        assert len(batches) % num_processes == 0 or max(map(len, batches)) == 1
        for batch in batches:
            assert len(batch) <= (max_pairs or len(lengths))
            assert len(batch) == 1 or rows * len(batch) * lengths[batch].max() <= max_tokens
        again = TokenBudgetBatchSampler(lengths, max_tokens, **options)
        again.set_epoch(epoch)
        assert list(again) == batches


def test_little_is_padding_and_most_of_the_budget_is_used():
    lengths = many_lengths(5000)
    sampler = TokenBudgetBatchSampler(lengths, 16384, rows_a_pair=1, max_pairs=64, seed=0)
    batches = list(sampler)
    assert padded_share(lengths, batches) < 1.08
    full = [batch for batch in batches if len(batch) < 64]  # the others have all the pairs they may have
    assert np.mean([lengths[batch].max() * len(batch) for batch in full]) > 0.9 * 16384
    drawn = np.random.default_rng(1).permutation(5000).tolist()
    assert padded_share(lengths, by_size(drawn, 16)) > 2


def test_every_epoch_mixes_other_pairs_and_other_batches():
    lengths = many_lengths(2000)
    sampler = TokenBudgetBatchSampler(lengths, 8192, max_pairs=32, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    same = {frozenset(batch) for batch in first} & {frozenset(batch) for batch in second}
    assert len(same) < 0.1 * len(first)  # few of the longest pairs have others of similar length
    longest = [lengths[batch].max() for batch in second]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3  # the order of the batches is drawn
    other = list(TokenBudgetBatchSampler(lengths, 8192, max_pairs=32, seed=1))
    assert other != first


def test_a_pair_over_the_budget_is_named():
    check_budget(np.array([10, 50]), 2, 100)
    with pytest.raises(
        ConfigError, match=r"longest pair takes 102 tokens \(2 rows, padding included\), more than max_tokens_per_b"
    ):
        check_budget(np.array([10, 51]), 2, 100)


# --- groups by length


def test_order_is_that_of_transformers_for_seed_and_epoch():
    lengths = many_lengths(1000)
    sampler = LengthGroupedSampler(lengths, 16, seed=5)
    orders = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        torch.manual_seed(epoch)  # nothing outside may matter
        orders.append(list(sampler))
        expected = get_length_grouped_indices(lengths.tolist(), 16, generator=torch.Generator().manual_seed(5 + epoch))
        assert orders[-1] == expected
    assert orders[0] != orders[1]
    assert padded_share(lengths, by_size(orders[0], 16)) < 1.15
    assert len(sampler) == 1000


# --- in the trainer


def numbered_pairs(**options) -> Dataset:
    """Pairs of very unequal length whose `margin` is their number, with margins of a teacher."""
    rows = make_pairs(num_users=6, pairs_per_user=5, **options)
    words = [row["chosen"] + " soup tea rain" * (3 * (i % 7)) for i, row in enumerate(rows)]
    rows = rows.remove_columns("chosen").add_column("chosen", words)
    rows = rows.add_column("margin", [i / 1000 for i in range(len(rows))])
    return rows.add_column("teacher_margin", [0.5 * (i % 5 - 1) for i in range(len(rows))])


class Steps(TrainerCallback):
    """The pairs and the gradients of each optimizer step."""

    def __init__(self, trainer):
        self.pairs: list[list[list[int]]] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        get_batches = trainer.get_batch_samples

        def watch(*args):
            batches, num_items = get_batches(*args)
            self.pairs.append([(1000 * batch["margin"]).round().int().tolist() for batch in batches])
            return batches, num_items

        trainer.get_batch_samples = watch
        trainer.add_callback(self)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


@pytest.fixture
def make_trainer(decoder, training, tmp_path):
    def make(kind=PAFORewardTrainer, rows=None, folder="out", **options):
        options = {"distillation_loss": "mse", "prefix_sharing": "off", **training, **options}
        return kind(decoder, PAFOConfig(str(tmp_path / folder), **options), train_dataset=rows or numbered_pairs())

    return make


BUDGET = {"max_tokens_per_batch": 700, "per_device_train_batch_size": 7, "max_steps": -1}
GROUPED = {"train_sampling_strategy": "group_by_length", "max_steps": -1}


def mean_gradient(trainer, rows: list[dict]) -> tuple[float, dict[str, torch.Tensor]]:
    """Of the mean loss over pairs, each sequence alone in its row."""
    model, args = trainer.model, trainer.args
    model.zero_grad()
    rewards = [torch.cat([model(torch.tensor([row[side]])).logits[0] for row in rows]) for side in ("chosen_ids", "rejected_ids")]
    loss = pafo_loss(
        rewards[0] - rewards[1],
        torch.tensor([row["teacher_margin"] for row in rows]),
        torch.ones(len(rows)),
        alpha=args.alpha,
        distillation_loss="mse",
        offset=torch.tensor([row["margin"] for row in rows]),
    ).loss
    loss = loss + args.center_rewards_coefficient * ((rewards[0] + rewards[1]) ** 2).mean()
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("sharing", ["off", "on"])
def test_a_step_follows_the_mean_over_its_pairs(make_trainer, sharing):
    options = {"num_train_epochs": 2, "gradient_accumulation_steps": 3, "max_grad_norm": 0.0, "learning_rate": 0.0}
    trainer = make_trainer(prefix_sharing=sharing, center_rewards_coefficient=0.02, optim="sgd", **{**BUDGET, **options})
    steps = Steps(trainer)
    trainer.train()
    num_batches = len(trainer.get_train_dataloader())
    assert trainer.state.global_step == trainer.state.max_steps == 2 * math.ceil(num_batches / 3) == len(steps.gradients)
    assert num_batches % 3  # so that the last step of an epoch has fewer batches
    sizes = {len(batch) for step in steps.pairs for batch in step}
    assert len(sizes) > 1
    for epoch in range(2):
        seen = [
            pair for step in steps.pairs[epoch * len(steps.pairs) // 2 :][: len(steps.pairs) // 2] for b in step for pair in b
        ]
        assert sorted(seen) == list(range(30))
    logged = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    rows = list(trainer.train_dataset)
    for step, gradients, loss in zip(steps.pairs, steps.gradients, logged, strict=True):
        expected_loss, expected = mean_gradient(trainer, [rows[pair] for batch in step for pair in batch])
        assert loss == pytest.approx(expected_loss, abs=rounding(expected_loss))
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            assert torch.allclose(gradients[name], gradient, atol=rounding(gradient), rtol=1e-3), name


def test_one_step_of_many_batches_is_one_step_of_a_large_one(make_trainer):
    options = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
    many = make_trainer(folder="a", **{**BUDGET, **options}, gradient_accumulation_steps=100)
    one = make_trainer(folder="b", **{**options, "per_device_train_batch_size": 30})
    assert len(many.get_train_dataloader()) > 4
    before = {name: p.detach().clone() for name, p in one.model.named_parameters()}
    many.train()
    one.train()
    theirs = dict(one.model.named_parameters())
    for name, parameter in many.model.named_parameters():
        torch.testing.assert_close(parameter, theirs[name], atol=rounding(parameter), rtol=0)
    assert any((p - before[name]).abs().max() > 1e-3 for name, p in many.model.named_parameters())


@pytest.mark.parametrize("options", [BUDGET, GROUPED], ids=["budget", "grouped"])
def test_batches_are_of_like_length_and_a_training_that_goes_on_sees_the_same(make_trainer, options):
    options = {**options, "num_train_epochs": 2, "save_strategy": "steps", "logging_steps": 100}
    whole = make_trainer(folder="a", **options)
    half = len(whole.get_train_dataloader())
    whole.args.save_steps = half + 1
    steps = Steps(whole)
    whole.train()
    assert whole.state.max_steps == 2 * half
    lengths = row_lengths(whole.train_dataset, whole.data_collator)
    epochs = [[batch for step in part for batch in step] for part in (steps.pairs[:half], steps.pairs[half:])]
    assert epochs[0] != epochs[1]
    if "max_tokens_per_batch" in options:
        sampler = TokenBudgetBatchSampler(lengths, 700, max_pairs=7, seed=42)
        expected = [list(sampler), sampler.set_epoch(1) or list(sampler)]
    else:
        grouped = LengthGroupedSampler(lengths, 4, seed=42)
        expected = [by_size(list(grouped), 4), grouped.set_epoch(1) or by_size(list(grouped), 4)]
    assert epochs == expected
    rest = make_trainer(folder="a", **options)
    seen = Steps(rest)
    rest.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{half + 1}")  # within the second epoch
    assert seen.pairs == steps.pairs[half + 1 :]
    theirs = dict(whole.model.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in rest.model.named_parameters())


def test_the_seed_of_the_data_decides(make_trainer):
    trainer = make_trainer(**BUDGET)

    def batches(seed=42, data_seed=None):
        trainer.args.seed, trainer.args.data_seed = seed, data_seed
        return [batch["margin"].tolist() for batch in trainer.get_train_dataloader()]

    assert batches() == batches()
    assert batches() != batches(seed=7)
    assert batches(seed=7, data_seed=42) == batches()


def test_shared_rows_let_more_pairs_into_a_batch(make_trainer):
    apart, shared = (make_trainer(prefix_sharing=mode, **{**BUDGET, "per_device_train_batch_size": 30}) for mode in ("off", "on"))
    for trainer in (apart, shared):
        for batch in trainer.get_train_dataloader():
            assert batch["input_ids"].numel() <= 700
    assert len(shared.get_train_dataloader()) < len(apart.get_train_dataloader())


def tokens_of(trainer, run) -> list[tuple[int, int]]:
    """Shapes of what the model reads."""
    shapes = []
    hook = trainer.model.model.embed_tokens.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    run()
    hook.remove()
    return shapes


@pytest.mark.parametrize("sharing", ["off", "on"])
def test_evaluation_sorts_by_length_and_predict_keeps_the_order(make_trainer, sharing):
    rows = numbered_pairs()
    trainer = make_trainer(rows=rows, prefix_sharing=sharing, per_device_eval_batch_size=4)
    outputs = []
    shapes = tokens_of(trainer, lambda: outputs.append(trainer.predict(trainer.train_dataset)))
    lengths = row_lengths(trainer.train_dataset, trainer.data_collator)
    pairs, repeat = 4, rows_a_pair(trainer.data_collator)
    assert [length for _, length in shapes] == sorted(lengths, reverse=True)[::pairs]
    assert {num for num, _ in shapes[:-1]} == {pairs * repeat}
    assert outputs[0].label_ids["user"].tolist() == rows["user"]
    with torch.no_grad():
        for row, rewards in zip(trainer.train_dataset, outputs[0].predictions, strict=True):
            alone = [trainer.model(torch.tensor([row[side]])).logits.item() for side in ("chosen_ids", "rejected_ids")]
            assert rewards == pytest.approx(alone, abs=rounding(alone))


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for the device: reading a number off it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "more", [{"prefix_sharing": "on", "max_tokens_per_batch": 700}, GROUPED, {}], ids=["budget", "grouped", "plain"]
)
def test_a_training_step_waits_for_nothing_that_the_model_does_not_wait_for(decoder, training, tmp_path, monkeypatch, more):
    """All that happens in a step, not only the loss; RewardTrainer's reads six numbers more."""
    gathers = []
    monkeypatch.setattr("accelerate.Accelerator.gather", lambda self, tensor: gathers.append(tensor) or tensor)

    def counts(kind, config, **options) -> tuple[float, float]:
        found = []
        for steps in (1, 3):
            options = {**training, **options, "max_steps": steps, "logging_steps": 100, "logging_nan_inf_filter": False}
            trainer = kind(decoder, config(str(tmp_path), **options), train_dataset=rows)
            gathers.clear()
            with Waits() as waits:
                trainer.train()
            found.append((waits.count, len(gathers)))
        return (found[1][0] - found[0][0]) / 2, (found[1][1] - found[0][1]) / 2

    chat = {side: [[{"role": "user", "content": text}] for text in numbered_pairs()[side]] for side in ("chosen", "rejected")}
    rows = Dataset.from_dict(chat)
    of_model = counts(RewardTrainer, RewardConfig)
    ours = counts(PAFORewardTrainer, PAFOConfig, **more)
    assert of_model[0] - ours[0] >= 6
    assert of_model[1] >= 3
    assert ours[1] == 0
    # Masks of transformers ask whether there is padding, once a step; shared rows need no such mask.
    assert ours[0] <= 1


def test_teacher_margins_stay_in_arrow(encoder, pairs, training, tmp_path):
    rows = pairs.add_column("teacher_margin", np.linspace(-1, 1, len(pairs)))
    trainer = PAFORewardTrainer(encoder, PAFOConfig(str(tmp_path), **training), train_dataset=rows)
    assert trainer.train_dataset.features["teacher_margin"].dtype == "float32"
    np.testing.assert_allclose(trainer.train_dataset["teacher_margin"][:], rows["teacher_margin"][:], atol=1e-7)


# --- what cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens_per_batch": 0}, "`max_tokens_per_batch` must be a whole number of at least 1"),
        ({"max_tokens_per_batch": 2.5}, "`max_tokens_per_batch` must be a whole number of at least 1"),
        ({"train_sampling_strategy": "sequential"}, "keeps their order. Choose one of them"),
        ({"train_sampling_strategy": "batch_rebalance"}, "Set `max_tokens_per_batch` in its place"),
        ({"accelerator_config": {"split_batches": True}}, "Leave `split_batches` out"),
    ],
)
def test_options_that_contradict_a_budget(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        PAFOConfig(str(tmp_path), use_cpu=True, bf16=False, **{"max_tokens_per_batch": 100, **options})


def test_a_pair_over_the_budget_and_a_stream_are_refused_before_training(make_trainer):
    with pytest.raises(ConfigError, match=r"The longest pair takes \d+ tokens .* Raise it, or lower"):
        make_trainer(max_tokens_per_batch=100)
    rows = numbered_pairs(history=0)
    with pytest.raises(ConfigError, match="a stream has no end to look for"):
        make_trainer(rows=rows.to_iterable_dataset(), max_tokens_per_batch=100)
