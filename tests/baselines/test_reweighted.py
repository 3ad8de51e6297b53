"""Reweighting by 1 / pairs of a group, against a plain loop."""

import math

import pytest
import torch

from trl_pafo.baselines import ReweightedRewardTrainer


def test_the_loss_is_that_of_a_plain_loop(build, batch_of):
    trainer = build(ReweightedRewardTrainer)
    names = trainer.train_dataset["group"][:]
    difference = torch.linspace(-2, 3, len(names))
    trainer.model.train()
    loss, parts = trainer.pair_loss(difference, batch_of(trainer, names))
    counts = {name: names.count(name) for name in names}
    assert counts == {"majority": 20, "minority": 10}
    raw = [1 / counts[name] for name in names]
    weights = [w * len(raw) / sum(raw) for w in raw]
    assert sum(weights) / len(weights) == pytest.approx(1)
    of_pair = [w * math.log(1 + math.exp(-d)) for w, d in zip(weights, difference.tolist(), strict=True)]
    assert float(loss) == pytest.approx(sum(of_pair) / len(of_pair))
    assert parts == {}
    of_groups = {
        n: [math.log(1 + math.exp(-d)) for d, g in zip(difference.tolist(), names, strict=True) if g == n] for n in counts
    }
    means = [sum(losses) / len(losses) for losses in of_groups.values()]
    assert float(loss) == pytest.approx(sum(means) / 2)  # each group counts the same
