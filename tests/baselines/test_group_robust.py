"""Group robust preference optimization against a plain loop in float64."""

import math

import pytest
import torch

from trl_pafo.baselines import GroupRobustRewardTrainer

NAMES = ["majority", "majority", "minority", "majority"]
DIFFERENCES = [0.5, -1.0, 2.0, 0.0]
SIZES = {"majority": 20, "minority": 10}


@pytest.mark.parametrize("eta", [None, 0.05])
def test_losses_and_weights_are_those_of_a_plain_loop(build, batch_of, eta):
    trainer = build(GroupRobustRewardTrainer, constants={} if eta is None else {"eta": eta})
    eta = 5e-7 if eta is None else eta
    trainer.model.train()
    log_q = dict.fromkeys(SIZES, 0.0)
    sums = {g: sum(math.log(1 + math.exp(-d)) for d, n in zip(DIFFERENCES, NAMES, strict=True) if n == g) for g in SIZES}
    losses = {group: 30 / SIZES[group] * sums[group] for group in SIZES}
    for _ in range(50):
        log_q = {g: log_q[g] + eta * losses[g] for g in log_q}
        q = {g: math.exp(log_q[g]) / sum(map(math.exp, log_q.values())) for g in log_q}
        loss, _ = trainer.pair_loss(torch.tensor(DIFFERENCES), batch_of(trainer, NAMES))
        assert float(loss) == pytest.approx(sum(q[g] * losses[g] for g in q) / len(NAMES), rel=1e-5)
    # Steps of 5e-7 are below the precision of a weight of float32, and must add up all the same.
    odds = trainer.group_weights.log_weights.double()
    names = trainer.group_names
    expected = log_q["majority"] - log_q["minority"]
    assert float(odds[names.index("majority")] - odds[names.index("minority")]) == pytest.approx(expected, rel=1e-4)
