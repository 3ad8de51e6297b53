"""LoRe: every user's reward is a mixture of a few common reward functions, whose weights a new user's past pairs tell."""

import torch
from torch.nn.functional import log_softmax, softmax

from trl_pafo.baselines.features import FeaturePairs
from trl_pafo.baselines.user_model import UserModel, bradley_terry, masked_mean

SCALE = 100.0
"""What rewards are divided by."""


def mixed_rewards(features: torch.Tensor, basis: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """`phi^T V softmax(w) / 100`, of shape `(num_rows, ...)`, for phi of shape `(num_rows, ..., num_features)`, V with a reward function a
    column, `(num_features, num_basis)`, and w of the user of each row, `(num_rows, num_basis)`."""
    return torch.einsum("b...k,bk->b...", features @ basis, softmax(logits, dim=-1)) / SCALE


def fit_weights(
    past: torch.Tensor, is_there: torch.Tensor, basis: torch.Tensor, start: torch.Tensor, num_steps: int = 500, lr: float = 0.1
) -> torch.Tensor:
    """The w of users whom past pairs tell, of shape `(num_rows, num_basis)`, by Adam on the mean loss of each user's pairs, all else frozen.

    Past pairs, and which there are, are those of [`~trl_pafo.baselines.features.FeaturePairs.context`]. A user without any keeps `start`.
    """
    values = (past @ basis / SCALE).detach()
    with torch.enable_grad():
        logits = start.detach().repeat(len(past), 1).requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=lr)
        for _ in range(num_steps):
            optimizer.zero_grad()
            losses = bradley_terry(torch.einsum("bnsk,bk->bns", values, softmax(logits, dim=-1)))
            masked_mean(losses, is_there).sum().backward()  # Adam goes each number alone, so users do not meet
            optimizer.step()
    return logits.detach()


class LoRe(UserModel):
    """
    Low-rank reward modeling: `r_u = phi^T V softmax(w_u) / 100`.

    V and the w of the training users are learned together, by Adam with a learning rate of .5 in 1,000 steps on all pairs. A new user's w
    is fitted alone to past pairs, by Adam with .1 in 500 steps. All this is the authors'; ours are: features of a model of the run
    in place of theirs, standardized; the number of reward functions; that a new user starts from the mean of the training users'
    weights, which is also the answer for a user without past pairs.

    Args:
        num_features (`int`):
            Size of the vector of a response.
        num_basis (`int`, *optional*, defaults to `8`):
            Number of common reward functions.
    """

    learning_rate = 0.5
    batch_size = None

    start: torch.Tensor

    def __init__(self, num_features: int, num_basis: int = 8):
        super().__init__(num_features, num_basis=num_basis)
        self.basis = torch.nn.Parameter(torch.randn(num_features, num_basis) / num_features**0.5)
        self.users: torch.nn.Parameter | None = None
        self.register_buffer("start", torch.zeros(num_basis))

    def begin(self, pairs: FeaturePairs) -> None:
        self.users = torch.nn.Parameter(torch.zeros(pairs.num_users, self.config["num_basis"]))

    def loss(self, pairs: FeaturePairs, rows: torch.Tensor, progress: float) -> torch.Tensor:
        assert self.users is not None
        return bradley_terry(mixed_rewards(pairs.pairs[rows], self.basis, self.users[pairs.user[rows]])).mean()

    def end(self, pairs: FeaturePairs) -> None:
        assert self.users is not None
        self.start = torch.logsumexp(log_softmax(self.users.detach(), dim=-1), dim=0)  # of the mean, up to what softmax ignores
        self.users = None

    def rewards(self, pairs: FeaturePairs, rows: torch.Tensor) -> torch.Tensor:
        return mixed_rewards(pairs.pairs[rows], self.basis, fit_weights(*pairs.context(rows), self.basis, self.start))
