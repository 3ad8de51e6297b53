"""GPO: who attends to whom, and its likelihood."""

import numpy as np
import torch
from helpers.vectors import pairs_of_two_tastes
from scipy.stats import norm

from trl_pafo.baselines.gpo import GPO


def naive_layer(layer, tokens, seen):
    """A transformer layer on tokens of shape `(num_tokens, width)`, each of which attends to the `seen` ones, in float64, by loops."""
    width, heads = tokens.shape[1], layer.self_attn.num_heads
    weight, bias = layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias
    query, key, value = (tokens @ weight.T + bias).split(width, dim=1)
    size = width // heads
    mixed = torch.zeros_like(tokens)
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        for token in range(len(tokens)):
            logits = torch.stack([query[token, own] @ key[other, own] / size**0.5 for other in seen])
            mixed[token, own] = sum(
                w * value[other, own] for w, other in zip(logits.exp() / logits.exp().sum(), seen, strict=True)
            )
    hidden = layer.norm1(tokens + layer.self_attn.out_proj(mixed))
    return layer.norm2(hidden + layer.linear2(torch.relu(layer.linear1(hidden))))


def test_all_tokens_attend_to_the_context_alone():
    torch.manual_seed(0)
    model = GPO(3, width=8, num_layers=2, num_heads=2).double()
    features, context = torch.randn(2, 2, 3).double(), torch.randn(2, 3, 2, 3).double()
    is_there = torch.tensor([[True, False, True], [False, False, False]])
    for is_training in (True, False):  # which are two paths of torch
        model.train(is_training)
        with torch.no_grad():
            found = torch.stack(model.predict(features, context, is_there), dim=-1)
            for row in range(2):
                tokens = [model.always]
                for pair in range(3):
                    if is_there[row, pair]:
                        for y, side in ((1.0, 0), (0.0, 1)):
                            tokens.append(model.token(torch.cat([context[row, pair, side], torch.tensor([y])])))
                seen = range(len(tokens))
                for side in range(2):
                    own = torch.stack([*tokens, model.token(torch.cat([features[row, side], torch.zeros(1)]))])
                    for layer in model.transformer.layers:
                        own = naive_layer(layer, own, seen)
                    mean, raw = model.answer(own[-1])
                    expected = [float(mean), 0.05 + 0.95 * float(torch.log(1 + raw.exp()))]
                    np.testing.assert_allclose(found[row, side], expected, atol=1e-9)


def test_the_loss_is_that_of_1_for_chosen_and_0_for_rejected_and_the_mean_is_the_reward(monkeypatch):
    pairs = pairs_of_two_tastes(4)[0]
    model = GPO.fit(pairs, num_steps=1, width=8, num_layers=1, num_heads=2)
    limits = []  # from none to all past pairs are in the context
    monkeypatch.setattr("trl_pafo.baselines.gpo.drawn", lambda is_there, *own: limits.append(own) or is_there)
    rows = torch.arange(24)
    with torch.no_grad():
        mean, std = model.predict(pairs.pairs[rows], *pairs.context(rows))
        loss = float(model.loss(pairs, rows, 0.0))
    expected = -(norm.logpdf(1.0, mean[:, 0], std[:, 0]).mean() + norm.logpdf(0.0, mean[:, 1], std[:, 1]).mean()) / 2
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert limits == [(0, 3)]
    standard = pairs.standardized(model.mean, model.scale)
    with torch.no_grad():
        np.testing.assert_allclose(model.score(pairs), model.predict(standard.pairs, *standard.context(rows))[0], atol=1e-6)
