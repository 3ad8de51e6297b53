"""MRM: common reward functions and starting weights that one step on a new user's past pairs makes the user's own."""

import torch
from torch.nn.functional import softmax

from trl_pafo.baselines.features import FeaturePairs
from trl_pafo.baselines.soft_tail import soft_tail
from trl_pafo.baselines.user_model import UserModel, bradley_terry, masked_mean


def inner_step(
    weights: torch.Tensor, differences: torch.Tensor, is_there: torch.Tensor, basis: torch.Tensor, lr: float
) -> torch.Tensor:
    """`w - lr * dL/dw`, of shape `(num_rows, num_basis)`, with L the mean Bradley-Terry loss of a user's past pairs; written out, so that it
    can be differentiated again. Without past pairs it is w, of shape `(num_basis,)`.

    Of past pairs there are the features of the chosen less those of the rejected response, of shape `(num_rows, longest, num_features)`,
    and which are there, `(num_rows, longest)`; the basis B has the shape `(num_basis, num_features)`.
    """
    share = softmax(weights, dim=-1)
    of_basis = differences @ basis.T
    margin = of_basis @ share
    by_share = masked_mean(-torch.sigmoid(-margin)[..., None] * of_basis, is_there)  # dL / d softmax(w)
    gradient = share * (by_share - (by_share * share).sum(dim=-1, keepdim=True))
    return weights - lr * gradient


class MRM(UserModel):
    """
    Meta reward modeling: `r_u = softmax(w_u)^T B phi`, where w_u is one gradient step from a common w on the user's past pairs.

    B and w are learned through that step, so that the pairs of a user are judged right after it. Of the losses L_u of the users of a batch
    the worst count most: `sigmoid((L_u - tau) / gamma) L_u`, tau their median (rho = gamma = .5), summed over users. That is the authors' form; ours
    are: features of a frozen model of the run, standardized; 8 reward functions; an inner learning rate of 5; Adam with .003
    outside, batches of 256 pairs and 1,000 steps; that each pair has a support set of its own, its history, and L_u is the mean over
    the user's pairs in the batch; and the mean over users in the place of their sum. A user without past pairs has the common w.

    Args:
        num_features (`int`):
            Size of the vector of a response.
        num_basis (`int`, *optional*, defaults to `8`):
            Number of common reward functions.
        inner_lr (`float`, *optional*, defaults to `5.0`):
            Learning rate of the step on past pairs.
        rho (`float`, *optional*, defaults to `0.5`), gamma (`float`, *optional*, defaults to `0.5`):
            Share of the users that count most, and how gradual that is, in units of the loss.
    """

    learning_rate = 3e-3
    batch_size = 256

    def __init__(self, num_features: int, num_basis: int = 8, inner_lr: float = 5.0, rho: float = 0.5, gamma: float = 0.5):
        super().__init__(num_features, num_basis=num_basis, inner_lr=inner_lr, rho=rho, gamma=gamma)
        self.basis = torch.nn.Parameter(torch.randn(num_basis, num_features) / num_features**0.5)
        self.weights = torch.nn.Parameter(torch.zeros(num_basis))

    def rewards(self, pairs: FeaturePairs, rows: torch.Tensor) -> torch.Tensor:
        context, is_there = pairs.context(rows)
        adapted = inner_step(self.weights, context[:, :, 0] - context[:, :, 1], is_there, self.basis, self.config["inner_lr"])
        return torch.einsum("bsk,bk->bs", pairs.pairs[rows] @ self.basis.T, softmax(adapted, dim=-1))

    def loss(self, pairs: FeaturePairs, rows: torch.Tensor, progress: float) -> torch.Tensor:
        losses = bradley_terry(self.rewards(pairs, rows))
        _, user = pairs.user[rows].unique(return_inverse=True)
        total = losses.new_zeros(int(user.max()) + 1).index_add(0, user, losses)
        return soft_tail(total / user.bincount(), self.config["rho"], self.config["gamma"])
