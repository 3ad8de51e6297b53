"""Batches on two processes: each pair once an epoch, and steps that follow the mean over the pairs of all processes."""

import os
from pathlib import Path

import pytest
import torch
from helpers.parts import make_model, numbered_pairs
from helpers.ranks import assert_wrapped, launch, needs_deepspeed, options, wrapper_of
from transformers import AutoModelForSequenceClassification

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.trainer.losses import pafo_loss

WAYS = {
    "shared": {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 3, "prefix_sharing": "on"},
    "grouped": {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 3},
    "random": {"per_device_train_batch_size": 3},
}
RATE = 0.05


def arguments(out: Path, way: str) -> PAFOConfig:
    more = {"max_steps": -1, "num_train_epochs": 2, "optim": "sgd", "learning_rate": RATE, "lr_scheduler_type": "constant"}
    more |= {"max_grad_norm": 0.0, "prefix_sharing": "off", "logging_steps": 1, **WAYS[way]}
    return options(out / way / "run", **more)


def train(model: str, args: PAFOConfig, **kwargs) -> tuple[PAFORewardTrainer, list]:
    """The trainer after training, and the numbers of the pairs of each batch, step by step."""
    trainer = PAFORewardTrainer(model, args, train_dataset=numbered_pairs())
    steps = []
    get_batches = trainer.get_batch_samples

    def watch(*given):
        batches, num_items = get_batches(*given)
        steps.append([(1000 * batch["margin"]).round().int().tolist() for batch in batches])
        return batches, num_items

    trainer.get_batch_samples = watch
    trainer.train(**kwargs)
    return trainer, steps


def train_all(out: Path, model: str, *ways: str) -> dict:
    """In several ways to make batches; without a wrapper for GPUs, again from a checkpoint within the second epoch."""
    resumes = "ACCELERATE_TORCH_DEVICE" not in os.environ
    found = {}
    for way in ways:
        args = arguments(out, way)
        if resumes:
            args.save_strategy, args.save_steps = "steps", 1
        trainer, steps = train(model, args)
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        found[way] = {"steps": steps, "losses": losses, "max_steps": trainer.state.max_steps, "wrapper": wrapper_of(trainer)}
        trainer.save_model(str(out / way / "trained"))
        if resumes:
            half = trainer.state.max_steps // 2
            args = arguments(out, way)
            found[way]["again"] = train(model, args, resume_from_checkpoint=f"{args.output_dir}/checkpoint-{half + 1}")[1]
    return found


SHARDED = [pytest.mark.slow, needs_deepspeed]


def by_hand(model: str, out: Path, steps: list[list[int]]) -> tuple[torch.nn.Module, list[float]]:
    """Gradient descent on the mean loss over the pairs of each step, each sequence alone; the model and the losses."""
    trainer = PAFORewardTrainer(model, options(out / "rows"), train_dataset=numbered_pairs())
    dataset, alpha = list(trainer.train_dataset), trainer.args.alpha
    student = AutoModelForSequenceClassification.from_pretrained(model).eval()
    losses = []
    for step in steps:
        rows = [dataset[pair] for pair in step]
        sides = [torch.cat([student(torch.tensor([row[f"{s}_ids"]])).logits[0] for row in rows]) for s in ("chosen", "rejected")]
        teacher = torch.tensor([row["teacher_margin"] for row in rows])
        offset = torch.tensor([row["margin"] for row in rows])
        margin, labels = sides[0] - sides[1], torch.ones(len(rows))
        loss = pafo_loss(margin, teacher, labels, alpha=alpha, distillation_loss="mse", offset=offset).loss
        student.zero_grad()
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for parameter in student.parameters():
                if parameter.grad is not None:
                    parameter -= RATE * parameter.grad
    return student, losses


@pytest.mark.parametrize(
    ("mode", "ways"),
    [
        pytest.param("ddp", ["shared", "grouped", "random"], marks=pytest.mark.slow),
        pytest.param("fsdp2", ["grouped"], marks=pytest.mark.slow),
        pytest.param("zero2", ["grouped"], marks=SHARDED),
        pytest.param("zero3", ["grouped"], marks=SHARDED),
    ],
)
def test_steps_follow_the_mean_over_the_pairs_of_all_processes(mode, ways, tmp_path):
    model = make_model("decoder", tmp_path / "model")
    found = launch(train_all, 2, tmp_path, model, *ways, mode=mode)
    for way in ways:
        first, second = (seen[way] for seen in found)
        assert len(first["steps"]) == len(second["steps"]) == first["max_steps"] == second["max_steps"]
        steps = [
            [pair for batch in ours + theirs for pair in batch]
            for ours, theirs in zip(first["steps"], second["steps"], strict=True)
        ]
        half = len(steps) // 2
        for epoch in (steps[:half], steps[half:]):
            pairs = [pair for step in epoch for pair in step]
            assert sorted(pairs) == list(range(30)), way
        assert steps[:half] != steps[half:]
        student, losses = by_hand(model, tmp_path, steps)
        assert first["losses"] == pytest.approx(losses, rel=1e-4)
        trained = dict(AutoModelForSequenceClassification.from_pretrained(tmp_path / way / "trained").named_parameters())
        before = dict(AutoModelForSequenceClassification.from_pretrained(model).named_parameters())
        for name, parameter in student.named_parameters():
            torch.testing.assert_close(trained[name], parameter, atol=2e-5, rtol=2e-4)
        assert max(float((trained[name] - p).detach().abs().max()) for name, p in before.items()) > 1e-2
        if mode == "ddp":  # from a checkpoint within the second epoch
            assert [seen[way]["again"] for seen in found] == [seen[way]["steps"][half + 1 :] for seen in found], way
        assert_wrapped(first["wrapper"], mode)
