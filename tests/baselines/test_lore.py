"""LoRe against plain loops in float64."""

import math

import numpy as np
import torch
from helpers.vectors import pairs_of_two_tastes

from trl_pafo.baselines.lore import LoRe, fit_weights, mixed_rewards
from trl_pafo.baselines.user_model import bradley_terry


def naive_softmax(logits):
    powers = [math.exp(value) for value in logits]
    return [power / sum(powers) for power in powers]


def test_rewards_are_mixed_and_a_hundredth():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64) * 100
    basis = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    logits = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    found = mixed_rewards(features, basis, logits)
    losses = bradley_terry(found)
    for row in range(5):
        share = naive_softmax(logits[row].tolist())
        rewards = [
            sum(share[k] * sum(float(features[row, side, d] * basis[d, k]) for d in range(3)) for k in range(4)) / 100
            for side in range(2)
        ]
        np.testing.assert_allclose(found[row], rewards)
        np.testing.assert_allclose(losses[row], math.log(1 + math.exp(rewards[1] - rewards[0])))


def naive_adam(start, differences, basis, num_steps, lr):
    """w of one user, by Adam with its own constants, and gradients by central differences."""

    def loss(w):
        share = naive_softmax(w)
        margins = [sum(share[k] * float(d @ basis[:, k]) for k in range(len(w))) / 100 for d in differences]
        return sum(math.log(1 + math.exp(-margin)) for margin in margins) / len(margins)

    w, first, second = list(start), [0.0] * len(start), [0.0] * len(start)
    for step in range(1, num_steps + 1):
        gradient = []
        for k in range(len(w)):
            up, down = ([*w[:k], w[k] + sign * 1e-5, *w[k + 1 :]] for sign in (1, -1))
            gradient.append((loss(up) - loss(down)) / 2e-5)
        for k, slope in enumerate(gradient):
            first[k] = 0.9 * first[k] + 0.1 * slope
            second[k] = 0.999 * second[k] + 0.001 * slope**2
            w[k] -= lr * (first[k] / (1 - 0.9**step)) / (math.sqrt(second[k] / (1 - 0.999**step)) + 1e-8)
    return w


def test_a_new_user_fits_the_weights_alone():
    generator = torch.Generator().manual_seed(0)
    past = torch.randn(3, 2, 2, 3, generator=generator, dtype=torch.float64) * 100
    is_there = torch.tensor([[True, True], [True, False], [False, False]])
    basis = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    start = torch.tensor([0.3, -0.2], dtype=torch.float64)
    found = fit_weights(past, is_there, basis, start, num_steps=20)
    for row in range(2):
        differences = [past[row, n, 0] - past[row, n, 1] for n in range(2) if is_there[row, n]]
        np.testing.assert_allclose(found[row], naive_adam(start.tolist(), differences, basis, 20, 0.1), atol=1e-4)
        assert (found[row] - start).abs().max() > 0.5
    np.testing.assert_array_equal(found[2], start)


def test_the_start_is_the_mean_of_the_users_weights():
    pairs = pairs_of_two_tastes(6)[0]
    kept = {}

    class Seen(LoRe):
        def end(self, pairs):
            kept["users"] = self.users.detach().clone()
            super().end(pairs)

    model = Seen.fit(pairs, num_steps=30, num_basis=3)
    shares = [naive_softmax(row) for row in kept["users"].tolist()]
    assert np.std(shares, axis=0).max() > 0.05
    np.testing.assert_allclose(model.start.softmax(dim=-1), np.mean(shares, axis=0), atol=1e-6)
    assert "users" not in model.state_dict()
