"""GPO: a transformer that reads a user's past pairs in context and predicts what the user thinks of new responses."""

import torch
from torch import nn
from torch.distributions import Normal
from torch.nn.functional import softplus

from trl_pafo.baselines.features import FeaturePairs
from trl_pafo.baselines.user_model import UserModel, drawn

_LEAST_STD = 0.05


class GPO(UserModel):
    """
    Group preference optimization: a neural process over tokens `[phi(x, y); y]`, y = 1 for a chosen response, 0 for a rejected one.

    Tokens go through an MLP and a transformer encoder of width 128 with 6 layers and 4 heads, in which **all attend only to the context**,
    that is to the past pairs. It gives a mean and a standard deviation of y of each new response, and is trained by the Gaussian
    negative log likelihood, with Adam at 3e-4. The mean is the reward: the softmax over the two responses of a pair is a
    Bradley-Terry score. All this is the authors'; ours are: y of pairs in place of shares of answers; standardized features of a frozen
    model; a learned token that is always in the context, so that a user without past pairs has an answer; that each training pair
    has from none to all of its past pairs in the context, drawn anew each time; a standard deviation of at least .05, without which the
    likelihood of 0 and 1 has no bound; no dropout; a batch of 64 pairs and 1,000 steps.

    Args:
        num_features (`int`):
            Size of the vector of a response.
        width (`int`, *optional*, defaults to `128`):
            Of all layers.
        num_layers (`int`, *optional*, defaults to `6`), num_heads (`int`, *optional*, defaults to `4`):
            Of the transformer.
    """

    learning_rate = 3e-4

    def __init__(self, num_features: int, width: int = 128, num_layers: int = 6, num_heads: int = 4):
        super().__init__(num_features, width=width, num_layers=num_layers, num_heads=num_heads)
        self.token = nn.Sequential(nn.Linear(num_features + 1, width), nn.ReLU(), nn.Linear(width, width))
        self.always = nn.Parameter(torch.randn(width) / width**0.5)
        layer = nn.TransformerEncoderLayer(width, num_heads, width, dropout=0.0, batch_first=True)
        # Tokens that nobody attends to are what is asked for, and not padding that may be left out.
        self.transformer = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.answer = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def predict(self, features: torch.Tensor, context: torch.Tensor, is_there: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation, each of shape `(num_rows, 2)`, of y of both responses of each row, with features of shape
        `(num_rows, 2, num_features)`, given past pairs ([`~trl_pafo.baselines.features.FeaturePairs.context`])."""
        known = context.new_tensor([1.0, 0.0])[:, None].expand(*context.shape[:-1], 1)
        seen = self.token(torch.cat([context, known], dim=-1).flatten(1, 2))
        asked = self.token(torch.cat([features, features.new_zeros(*features.shape[:-1], 1)], dim=-1))
        tokens = torch.cat([self.always.expand(len(features), 1, -1), seen, asked], dim=1)
        hidden = torch.cat([is_there.new_zeros(len(features), 1), ~is_there.repeat_interleave(2, dim=1)], dim=1)
        hidden = torch.cat([hidden, is_there.new_ones(len(features), 2)], dim=1)
        mean, raw = self.answer(self.transformer(tokens, src_key_padding_mask=hidden)[:, -2:]).unbind(dim=-1)
        return mean, _LEAST_STD + (1 - _LEAST_STD) * softplus(raw)

    def loss(self, pairs: FeaturePairs, rows: torch.Tensor, progress: float) -> torch.Tensor:
        context, is_there = pairs.context(rows)
        mean, std = self.predict(pairs.pairs[rows], context, drawn(is_there, 0, is_there.shape[1]))
        return -Normal(mean, std).log_prob(mean.new_tensor([1.0, 0.0])).mean()

    def rewards(self, pairs: FeaturePairs, rows: torch.Tensor) -> torch.Tensor:
        return self.predict(pairs.pairs[rows], *pairs.context(rows))[0]
