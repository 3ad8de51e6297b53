"""VPL: a user is a latent vector that an encoder infers from past pairs, with a variational posterior."""

import math

import torch
from torch import nn
from torch.nn.functional import normalize

from trl_pafo.baselines.features import FeaturePairs
from trl_pafo.baselines.user_model import UserModel, bradley_terry, drawn, masked_mean


def attention_pool(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_there: torch.Tensor) -> torch.Tensor:
    """One attention head over the past pairs, then the mean over them, of shape `(num_rows, width)`; zeros where there are none. What each
    past pair asks for, offers and says has the shape `(num_rows, longest, width)`, which there are `(num_rows, longest)`."""
    logits = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
    weights = logits.masked_fill(~is_there[:, None], -1e9).softmax(dim=-1)
    return masked_mean(weights @ value, is_there)


def kl_to_standard_normal(mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)), summed over the last dimension."""
    return 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(dim=-1)


def cyclical_weight(progress: float, num_cycles: int = 4) -> float:
    """From 0 to 1 along a half cosine, in each of the cycles of a training, of which `progress` is the share that is done."""
    return (1 - math.cos(math.pi * (progress * num_cycles % 1))) / 2


def _mlp(num_inputs: int, width: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(num_inputs, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2)),
        nn.Linear(width, num_outputs),
    )


class VPL(UserModel):
    """
    Variational preference learning: `r = MLP([f(x, y); z])`, with z inferred from past pairs.

    Each past pair goes through an MLP of three layers (LeakyReLU .2) on `[phi(x, y+); phi(x, y-)]`, one attention head looks over the pairs,
    and their mean gives mu and log variance, both clamped to +-1. In training, `z = mu + eps exp(logvar / 2)` is scaled to the norm
    `sqrt(width)`, from 2 to 8 past pairs; when asked, **z = mu, not scaled**: their mismatch, which is kept. The loss is Bradley-Terry
    plus the KL divergence from N(0, 1) times 3e-6 (theirs for four kinds of users) and a cyclical cosine annealer. All this is the
    authors'; ours are: features of a frozen model, standardized, in place of LoRA of rank 128 on the language model and of its
    embeddings; f as one linear layer; four cycles; a batch of 64 pairs and 1,000 steps. A user without past pairs is the mean of
    the prior, z = 0.

    Args:
        num_features (`int`):
            Size of the vector of a response.
        width (`int`, *optional*, defaults to `512`):
            Of all layers and of z.
        kl_weight (`float`, *optional*, defaults to `3e-6`):
            What the KL divergence counts at the top of a cycle. The authors also use 1e-4 and 0.
    """

    learning_rate = 3e-4

    def __init__(self, num_features: int, width: int = 512, kl_weight: float = 3e-6):
        super().__init__(num_features, width=width, kl_weight=kl_weight)
        self.of_pair = _mlp(2 * num_features, width, width)
        self.attention = nn.Linear(width, 3 * width)
        self.mu, self.logvar = nn.Linear(width, width), nn.Linear(width, width)
        self.of_response = nn.Linear(num_features, width)
        self.reward = _mlp(2 * width, width, 1)

    def posterior(self, context: torch.Tensor, is_there: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """mu and log variance, each of shape `(num_rows, width)`, given past pairs; those of the prior without any."""
        query, key, value = self.attention(self.of_pair(context.flatten(2))).chunk(3, dim=-1)
        pooled = attention_pool(query, key, value, is_there)
        some = is_there.any(dim=1, keepdim=True)
        return self.mu(pooled).clamp(-1, 1) * some, self.logvar(pooled).clamp(-1, 1) * some

    def rewards_given(self, features: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Rewards of shape `(num_rows, 2)` of responses with features of shape `(num_rows, 2, num_features)`, given z of each row."""
        both = torch.cat([self.of_response(features), z[:, None].expand(-1, 2, -1)], dim=-1)
        return self.reward(both)[..., 0]

    def loss(self, pairs: FeaturePairs, rows: torch.Tensor, progress: float) -> torch.Tensor:
        context, is_there = pairs.context(rows)
        mu, logvar = self.posterior(context, drawn(is_there, 2, 8))
        z = normalize(mu + torch.randn_like(mu) * (logvar / 2).exp(), dim=-1) * math.sqrt(mu.shape[-1])
        weight = self.config["kl_weight"] * cyclical_weight(progress)
        return (bradley_terry(self.rewards_given(pairs.pairs[rows], z)) + weight * kl_to_standard_normal(mu, logvar)).mean()

    def rewards(self, pairs: FeaturePairs, rows: torch.Tensor) -> torch.Tensor:
        mu, _ = self.posterior(*pairs.context(rows))
        return self.rewards_given(pairs.pairs[rows], mu)
