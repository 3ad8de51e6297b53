"""Batches on two processes: each pair once an epoch, and steps that follow the mean over the pairs of all processes."""

import json
from importlib.util import find_spec
from pathlib import Path

import batches_on_ranks as ranks
import pytest
import torch
from helpers.parts import make_model
from launcher import launch
from transformers import AutoModelForSequenceClassification

from trl_pafo import PAFORewardTrainer
from trl_pafo.trainer.losses import pafo_loss

SHARDED = [pytest.mark.slow, pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed")]


def by_hand(model: str, out: Path, steps: list[list[int]]) -> tuple[torch.nn.Module, list[float]]:
    """Gradient descent on the mean loss over the pairs of each step, each sequence alone; the model and the losses."""
    trainer = PAFORewardTrainer(model, ranks.options(out / "rows", 1), train_dataset=ranks.numbered_pairs())
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
                    parameter -= ranks.RATE * parameter.grad
    return student, losses


@pytest.mark.parametrize(
    ("mode", "ways"),
    [
        ("ddp", ["shared", "grouped", "random"]),
        pytest.param("fsdp2", ["grouped"], marks=pytest.mark.slow),
        pytest.param("zero2", ["grouped"], marks=SHARDED),
        pytest.param("zero3", ["grouped"], marks=SHARDED),
    ],
)
def test_steps_follow_the_mean_over_the_pairs_of_all_processes(mode, ways, tmp_path):
    model = make_model("decoder", tmp_path / "model")
    launch(Path(ranks.__file__), 2, model, str(tmp_path), *ways, mode=mode)
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
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
        wrapper = {
            "ddp": "DistributedDataParallel",
            "fsdp2": "FSDPModule",
            "zero2": "DeepSpeedEngine",
            "zero3": "DeepSpeedEngine",
        }
        assert wrapper[mode] in first["wrapper"]["classes"]
