"""The soft tail over users against a plain loop in float64."""

import math

import numpy as np
import pytest
import torch
from helpers.parts import make_pairs

from trl_pafo.baselines import SoftTailRewardTrainer
from trl_pafo.baselines.soft_tail import soft_tail
from trl_pafo.errors import ConfigError
from trl_pafo.trainer.collator import PairBatch


def naive(losses, rho, gamma):
    ordered = sorted(losses)
    place = (1 - rho) * (len(ordered) - 1)
    low = math.floor(place)
    tau = ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])
    return sum(loss / (1 + math.exp(-(loss - tau) / gamma)) for loss in losses) / len(losses)


def with_absent(losses) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of users, between two users who are not there, and who is."""
    present = torch.as_tensor(losses)
    zero = present.new_zeros(1)
    return torch.cat([zero, present, zero]), torch.tensor([False, *[True] * len(present), False])


@pytest.mark.parametrize("rho", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("losses", [[0.7], [0.2, 1.5], [0.1, 0.9, 0.4, 2.0, 0.9]])
def test_the_loss_is_that_of_a_plain_loop(losses, rho):
    found = soft_tail(torch.tensor(losses), rho, 0.5)
    assert float(found) == pytest.approx(naive(losses, rho, 0.5), rel=1e-5)
    found = soft_tail(with_absent(losses)[0], rho, 0.5, with_absent(losses)[1])
    assert float(found) == pytest.approx(naive(losses, rho, 0.5), rel=1e-5)


def test_the_gradient_goes_through_weights_and_quantile():
    losses = [0.1, 0.9, 0.4, 2.0, 0.8]
    given = torch.tensor(losses, dtype=torch.float64, requires_grad=True)
    with_others, is_there = with_absent(given)
    soft_tail(with_others, 0.5, 0.5, is_there).backward()
    h = 1e-6
    numeric = [
        (
            naive([*losses[:i], losses[i] + h, *losses[i + 1 :]], 0.5, 0.5)
            - naive([*losses[:i], losses[i] - h, *losses[i + 1 :]], 0.5, 0.5)
        )
        / (2 * h)
        for i in range(len(losses))
    ]
    np.testing.assert_allclose(given.grad.numpy(), numeric, atol=1e-8)
    assert given.grad.argmax() == 3


def test_pairs_of_a_user_are_averaged_first(build):
    trainer = build(SoftTailRewardTrainer)
    assert (trainer.rho, trainer.gamma) == (0.5, 0.5)
    numbers = trainer.data_collator.users
    assert sorted(numbers) == [f"user-{i}" for i in range(6)]
    users = ["user-0", "user-4", "user-0", "user-2"]
    differences = [1.0, -2.0, -0.5, 0.25]
    trainer.model.train()
    batch = PairBatch(user_id=torch.tensor([numbers[name] for name in users]))
    loss, parts = trainer.pair_loss(torch.tensor(differences), batch)
    of_pair = [math.log(1 + math.exp(-d)) for d in differences]
    of_users = [(of_pair[0] + of_pair[2]) / 2, of_pair[1], of_pair[3]]
    assert float(loss) == pytest.approx(naive(of_users, 0.5, 0.5), rel=1e-5)
    assert parts == {}


@pytest.mark.parametrize(
    ("constants", "match"),
    [
        ({"rho": 0.0}, "`rho` must be above 0"),
        ({"rho": 1.5}, "`rho` must be at most 1"),
        ({"gamma": 0.0}, "`gamma` must be above 0"),
    ],
)
def test_constants_out_of_range_are_refused(build, constants, match):
    with pytest.raises(ConfigError, match=match):
        build(SoftTailRewardTrainer, constants=constants)


def test_a_collator_that_knows_no_users_is_refused(decoder, training, tmp_path):
    with pytest.raises(ConfigError, match="does not tell the users"):
        SoftTailRewardTrainer("does/not-exist", None, list, make_pairs())
