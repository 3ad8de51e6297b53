"""Reweighting by 1 / pairs of a group, against a plain loop."""

import math

import pytest
import torch
from helpers.parts import make_pairs

from trl_pafo import PAFOConfig
from trl_pafo.errors import DataError
from trl_pafo.trainer.collator import PairBatch
from trl_pafo.trainer.reweighted import ReweightedRewardTrainer


@pytest.fixture
def trainer(decoder, training, tmp_path):
    """30 pairs: 20 of the majority, 10 of the minority."""
    return ReweightedRewardTrainer(
        decoder, PAFOConfig(str(tmp_path), **{**training, "max_steps": 2}), train_dataset=make_pairs(history=0)
    )


def batch_of(trainer, names):
    groups = trainer.data_collator.groups
    return PairBatch(group_id=torch.tensor([groups.index(name) for name in names]))


def test_the_loss_is_that_of_a_plain_loop(trainer):
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


def test_evaluation_is_not_reweighted(trainer):
    trainer.model.eval()
    difference = torch.tensor([0.5, -1.0])
    loss, _ = trainer.pair_loss(difference, batch_of(trainer, ["majority", "minority"]))
    assert float(loss) == pytest.approx(float(-torch.nn.functional.logsigmoid(difference).mean()))


def test_it_trains_with_these_weights(trainer):
    seen = []
    pair_loss = trainer.pair_loss

    def spy(difference, batch):
        loss, parts = pair_loss(difference, batch)
        seen.append((loss.item(), batch.group_id.tolist()))
        return loss, parts

    trainer.pair_loss = spy
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx([loss for loss, _ in seen], rel=1e-3)
    assert {group for _, groups in seen for group in groups} <= {0, 1}


def test_groups_of_unknown_size_are_refused(decoder, training, tmp_path):
    rows = make_pairs(history=0).remove_columns("group")
    with pytest.raises(DataError, match="must have the column `group`"):
        ReweightedRewardTrainer(decoder, PAFOConfig(str(tmp_path), **training), train_dataset=rows)
