"""MRM: its step against finite differences, its losses against plain loops."""

import math

import numpy as np
import torch
from helpers.vectors import pairs_of_two_tastes

from trl_pafo.baselines.mrm import MRM, inner_step


def naive_loss(weights, differences, basis):
    """Mean Bradley-Terry loss of a user's pairs, by loops."""
    powers = [math.exp(value) for value in weights]
    losses = []
    for difference in differences:
        margin = sum(power / sum(powers) * float(row @ difference) for power, row in zip(powers, basis, strict=True))
        losses.append(math.log(1 + math.exp(-margin)))
    return sum(losses) / len(losses)


def small():
    generator = torch.Generator().manual_seed(0)
    differences = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    is_there = torch.tensor([[True] * 4, [True, False, False, True], [False] * 4])
    basis = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    weights = torch.randn(3, generator=generator, dtype=torch.float64)
    return weights, differences, is_there, basis


def test_the_step_is_along_the_gradient():
    weights, differences, is_there, basis = small()
    found = inner_step(weights, differences, is_there, basis, lr=2.0)
    for row in range(2):
        own = [differences[row, n] for n in range(4) if is_there[row, n]]
        for k in range(3):
            up, down = weights.clone(), weights.clone()
            up[k] += 1e-6
            down[k] -= 1e-6
            slope = (naive_loss(up.tolist(), own, basis) - naive_loss(down.tolist(), own, basis)) / 2e-6
            np.testing.assert_allclose(found[row, k], weights[k] - 2.0 * slope, atol=1e-8)
    np.testing.assert_array_equal(found[2], weights)


def test_it_is_differentiated_through():
    """Weights and basis are learned through the step, so gradients must be those of the whole."""
    weights, differences, is_there, basis = small()

    def step(w, b):
        return inner_step(w, differences, is_there, b, 2.0)

    assert torch.autograd.gradcheck(step, (weights.requires_grad_(), basis.requires_grad_()))


def test_the_loss_is_over_users_after_their_step():
    pairs = pairs_of_two_tastes(3)[0]
    torch.manual_seed(0)
    model = MRM(4, num_basis=2).double()
    pairs = pairs.standardized(torch.zeros(4).double(), torch.ones(4).double())
    with torch.no_grad():
        model.weights.normal_()
    rows = torch.tensor([0, 1, 2, 6, 12, 13])  # three pairs of the first user, one of the second, two of the third
    by_user = []
    for own in ((0, 1, 2), (6,), (12, 13)):
        losses = []
        for row in own:
            past = pairs.past_pairs[pairs.past[row]]
            slopes = []
            for k in range(2):
                sides = []
                for sign in (1, -1):
                    w = model.weights.detach().clone()
                    w[k] += sign * 1e-6
                    sides.append(naive_loss(w.tolist(), past[:, 0] - past[:, 1], model.basis.detach()))
                slopes.append((sides[0] - sides[1]) / 2e-6)
            adapted = [model.weights[k].item() - 5.0 * slopes[k] for k in range(2)]
            losses.append(naive_loss(adapted, [pairs.pairs[row, 0] - pairs.pairs[row, 1]], model.basis.detach()))
        by_user.append(sum(losses) / len(losses))
    expected = sum(loss / (1 + math.exp(-(loss - np.median(by_user)) / 0.5)) for loss in by_user) / 3
    np.testing.assert_allclose(model.loss(pairs, rows, 0.0).item(), expected, rtol=1e-7)
