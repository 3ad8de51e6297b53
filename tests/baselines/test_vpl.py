"""VPL against plain loops in float64."""

import math

import numpy as np
import torch
from helpers.vectors import pairs_of_two_tastes
from scipy.integrate import quad
from scipy.stats import norm

from trl_pafo.baselines.vpl import VPL, attention_pool, cyclical_weight, kl_to_standard_normal


def test_attention_and_mean_over_the_pairs_that_are_there():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    is_there = torch.tensor([[True, True, True, True], [True, False, True, False], [False] * 4])
    found = attention_pool(query, key, value, is_there)
    for row in range(3):
        own = [n for n in range(4) if is_there[row, n]]
        seen = []
        for asking in own:
            powers = [math.exp(float(query[row, asking] @ key[row, other]) / math.sqrt(5)) for other in own]
            seen.append(sum(p / sum(powers) * value[row, o].numpy() for p, o in zip(powers, own, strict=True)))
        np.testing.assert_allclose(found[row], np.mean(seen, axis=0) if own else np.zeros(5), atol=1e-12)


def test_the_divergence_is_the_integral():
    mu, logvar = [0.7, -1.0, 0.0], [0.5, -1.0, 0.0]

    def integral(m, v):
        own = norm(m, math.exp(v / 2))
        return quad(lambda x: own.pdf(x) * (own.logpdf(x) - norm.logpdf(x)), -15, 15)[0]

    found = kl_to_standard_normal(torch.tensor([mu], dtype=torch.float64), torch.tensor([logvar], dtype=torch.float64))
    np.testing.assert_allclose(found, [sum(map(integral, mu, logvar))], atol=1e-7)


def test_the_weight_of_the_divergence_rises_in_each_cycle():
    np.testing.assert_allclose([cyclical_weight(p) for p in (0.0, 0.125, 0.25, 0.375, 0.75)], [0, 0.5, 0, 0.5, 0], atol=1e-12)
    assert cyclical_weight(0.2499) > 0.99
    assert cyclical_weight(0.05) < 0.11  # along a cosine, not a line


def test_mu_and_log_variance_are_clamped_and_the_prior_is_the_answer_to_nothing():
    torch.manual_seed(0)
    model = VPL(4, width=8)
    with torch.no_grad():
        for layer in (model.mu, model.logvar):
            layer.weight.mul_(100)
    context, is_there = torch.randn(6, 3, 2, 4), torch.ones(6, 3, dtype=torch.bool)
    is_there[0] = False
    for found in model.posterior(context, is_there):
        assert (found[0] == 0).all()
        assert found[1:].abs().max() == 1


def test_z_is_drawn_and_scaled_in_training_and_mu_as_it_is_when_asked(monkeypatch):
    pairs = pairs_of_two_tastes(4)[0]
    model = VPL.fit(pairs, num_steps=2, width=8)
    seen = []
    given = VPL.rewards_given
    monkeypatch.setattr(VPL, "rewards_given", lambda self, features, z: seen.append(z.detach()) or given(self, features, z))
    rows = torch.arange(24)
    torch.manual_seed(1)
    model.loss(pairs, rows, 0.1)
    model.loss(pairs, rows, 0.1)
    model.score(pairs)
    first, second, asked = seen
    np.testing.assert_allclose(first.norm(dim=-1), math.sqrt(8), atol=1e-5)
    assert (first - second).abs().max() > 0.1
    standard = pairs.standardized(model.mean, model.scale)
    with torch.no_grad():
        np.testing.assert_array_equal(asked, model.posterior(*standard.context(rows))[0])
    assert (asked.norm(dim=-1) - math.sqrt(8)).abs().min() > 0.1


def test_the_loss_is_bradley_terry_and_the_divergence(monkeypatch):
    pairs, eps, limits = pairs_of_two_tastes(4)[0], torch.randn(24, 8), []
    monkeypatch.setattr("trl_pafo.baselines.vpl.drawn", lambda is_there, *own: limits.append(own) or is_there)
    monkeypatch.setattr(torch, "randn_like", lambda mu: eps)
    found = []
    for weight in (0.0, 2.0):
        torch.manual_seed(0)
        model = VPL(4, width=8, kl_weight=weight)
        found.append(model.loss(pairs, torch.arange(24), 0.125).item())  # half of the weight
    with torch.no_grad():
        mu, logvar = model.posterior(*pairs.context(torch.arange(24)))
        z = mu + eps * (logvar / 2).exp()
        rewards = model.rewards_given(pairs.pairs, z / z.norm(dim=-1, keepdim=True) * math.sqrt(8))
    np.testing.assert_allclose(found[0], np.log1p(np.exp(rewards[:, 1] - rewards[:, 0])).mean(), rtol=1e-5)
    assert limits == [(2, 8)] * 2  # past pairs that are shown
    np.testing.assert_allclose(found[1] - found[0], kl_to_standard_normal(mu, logvar).mean(), rtol=1e-4)
