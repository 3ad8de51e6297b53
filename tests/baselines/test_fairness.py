"""Fairness among pairs against plain loops in float64."""

import math

import numpy as np
import pytest
import torch
from helpers.parts import make_pairs

from trl_pafo.baselines import FairnessCoefficientRewardTrainer, FairnessRegularizedRewardTrainer
from trl_pafo.baselines.fairness import fairness_of
from trl_pafo.errors import ConfigError
from trl_pafo.metrics.inequality import jain
from trl_pafo.trainer.collator import PairBatch

DIFFERENCES = [2.0, -1.5, 0.25, 0.5, -3.0]


def naive(differences, tau):
    """Mean loss and fairness."""
    shares = [1 / (1 + math.exp(-d)) for d in differences]
    terms = [(a / sum(shares)) ** (1 - tau) for a in shares]
    fairness = math.copysign(1, 1 - tau) * sum(terms) ** (1 / tau) / len(shares)
    return sum(-math.log(a) for a in shares) / len(shares), fairness


def of_shares(shares, tau):
    shares = torch.tensor(shares, dtype=torch.float64)
    return float(fairness_of(shares.sum(), (shares ** (1 - tau)).sum(), torch.tensor(float(len(shares))), tau))


@pytest.mark.parametrize("tau", [-5.0, -1.0, 0.5, 2.0])
def test_the_measure_is_that_of_a_plain_loop(tau):
    shares = [1 / (1 + math.exp(-d)) for d in DIFFERENCES]
    assert of_shares(shares, tau) == pytest.approx(naive(DIFFERENCES, tau)[1])
    assert abs(of_shares([0.3] * 4, tau)) == pytest.approx(1)
    assert of_shares([0.3, 0.3, 0.3, 0.9], tau) < of_shares([0.3] * 4, tau)
    if tau == -1:
        assert of_shares(shares, tau) == pytest.approx(float(jain(shares)))


@pytest.mark.parametrize(
    ("kind", "constants", "expected"),
    [
        (FairnessRegularizedRewardTrainer, {}, lambda loss, f: loss - 0.1 * f),
        (FairnessRegularizedRewardTrainer, {"weight": 2.0, "tau": 0.5}, lambda loss, f: loss - 2 * f),
        (FairnessRegularizedRewardTrainer, {"tau": 2.0}, lambda loss, f: loss - 0.1 * f),
        (FairnessCoefficientRewardTrainer, {}, lambda loss, f: loss * f**0.5),
        (FairnessCoefficientRewardTrainer, {"power": 3.0, "tau": -2.0}, lambda loss, f: loss * f**3),
    ],
)
def test_the_loss_and_its_gradient_are_those_of_a_plain_loop(build, kind, constants, expected):
    trainer = build(kind, constants=constants)
    tau = constants.get("tau", -1.0)
    trainer.model.train()
    given = torch.tensor(DIFFERENCES, requires_grad=True)
    loss, parts = trainer.pair_loss(given, PairBatch())
    assert loss.item() == pytest.approx(expected(*naive(DIFFERENCES, tau)), rel=1e-5)
    assert parts["fairness"].item() == pytest.approx(naive(DIFFERENCES, tau)[1], rel=1e-5)
    loss.backward()
    h = 1e-6
    moved = [[[*DIFFERENCES[:i], d + s * h, *DIFFERENCES[i + 1 :]] for s in (1, -1)] for i, d in enumerate(DIFFERENCES)]
    numeric = [(expected(*naive(up, tau)) - expected(*naive(down, tau))) / (2 * h) for up, down in moved]
    np.testing.assert_allclose(given.grad.numpy(), numeric, atol=1e-5)


def test_a_margin_is_taken_off(build):
    trainer = build(FairnessRegularizedRewardTrainer)
    trainer.model.train()
    plain, _ = trainer.pair_loss(torch.tensor([1.0, 0.0]), PairBatch())
    shifted, _ = trainer.pair_loss(torch.tensor([1.5, 0.5]), PairBatch(margin=torch.tensor([0.5, 0.5])))
    assert float(shifted) == pytest.approx(float(plain))


def test_a_stream_without_groups_is_trained_on_and_fairness_is_logged(build):
    rows = make_pairs(history=0).remove_columns(["group", "user"]).to_iterable_dataset()
    trainer = build(FairnessCoefficientRewardTrainer, rows)
    trainer.train()
    assert trainer.state.global_step == 4
    assert all(0.25 <= entry["fairness"] <= 1 for entry in trainer.state.log_history if "loss" in entry)


@pytest.mark.parametrize(
    ("kind", "constants", "match"),
    [
        (FairnessRegularizedRewardTrainer, {"weight": -0.1}, "`weight` must be at least 0"),
        (FairnessRegularizedRewardTrainer, {"tau": 1.0}, "`tau` must be a number other than 0 and 1, got 1.0"),
        (FairnessCoefficientRewardTrainer, {"tau": 2.0}, "`tau` must be below 1, got 2.0"),
        (FairnessCoefficientRewardTrainer, {"power": -1.0}, "`power` must be at least 0"),
    ],
)
def test_constants_out_of_range_are_refused(build, kind, constants, match):
    with pytest.raises(ConfigError, match=match):
        build(kind, constants=constants)
