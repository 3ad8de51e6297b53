"""The users with the largest loss weigh most, whatever their group: the outer loss of MRM."""

from typing import Any

import torch

from trl_pafo.baselines.trainer import BaselineTrainer, Loss, check_above_zero, mean_of_groups
from trl_pafo.errors import ConfigError
from trl_pafo.trainer.collator import PairBatch


class SoftTailRewardTrainer(BaselineTrainer):
    r"""
    The soft tail over users: the mean over the users u of a batch of

    `sigmoid((L_u - tau) / gamma) * L_u`, `tau` the quantile `1 - rho` of the `L_u`,

    where `L_u` is the mean Bradley-Terry loss of the user's pairs in the batch. It knows no groups.

    *Meta Reward Modeling* (MRM; SIGIR 2026), the outer loss of its training; rho = gamma = 0.5 are those of their code, in which the
    gradient goes through weights and quantile, as here. What is adapted: the loss alone is taken, without their basis of rewards and
    their inner step on past pairs (our models read those in the prompt); it is the mean over users in the place of the sum, so that
    learning rate and clipping mean what they do for `RewardTrainer`; and a batch holds the pairs that TRL draws, often one a
    user, in the place of the query pairs of 64 users.

    Args:
        *args, **kwargs:
            As for [`PAFORewardTrainer`]; the training dataset has the column `user` (str), and is no stream.
        rho (`float`, *optional*, defaults to `0.5`):
            Share of users in the tail, in (0, 1].
        gamma (`float`, *optional*, defaults to `0.5`):
            Width of the border of the tail, in nats.

    Raises:
        ConfigError: If a constant is out of its range, or teachers are given.
        DataError: If the training dataset does not tell the user of each pair.
    """

    _name = "Soft tail over users"
    _tag_names = ["trl", "reward-trainer", "soft-tail"]
    columns = ("user",)
    how_trained = (
        "It was trained by the soft-tail loss over users of Meta Reward Modeling on the Bradley-Terry loss, without groups: the users with "
        "the largest loss weigh most."
    )

    def __init__(self, *args: Any, rho: float = 0.5, gamma: float = 0.5, **kwargs: Any):
        check_above_zero(rho=rho, gamma=gamma)
        if rho > 1:
            raise ConfigError(f"`rho` must be at most 1, got {rho}.")
        self.rho, self.gamma = rho, gamma
        super().__init__(*args, **kwargs)
        if self.train_dataset is not None:
            self.data_collator.users = {name: number for number, name in enumerate(sorted(self.train_dataset.unique("user")))}

    def training_loss(self, losses: torch.Tensor, batch: PairBatch) -> Loss:
        sums, counts = self.sums(losses, batch.user_id, len(self.data_collator.users))
        return soft_tail(mean_of_groups(sums, counts), self.rho, self.gamma, counts > 0), {}


def soft_tail(losses: torch.Tensor, rho: float, gamma: float, is_there: torch.Tensor | None = None) -> torch.Tensor:
    """The mean of `sigmoid((L_u - tau) / gamma) L_u` over the users who are there, by default all, a scalar.

    `losses` are those of the users, 0 where a user is not there, and `is_there` says who is, both of shape `(num_users,)`; `tau` is
    the quantile `1 - rho` of those who are, linear between two of them. It does not wait for the device.
    """
    if is_there is None:
        is_there = torch.ones_like(losses, dtype=torch.bool)
    tau = torch.nanquantile(losses.masked_fill(~is_there, float("nan")), 1 - rho)
    return (torch.sigmoid((losses - tau) / gamma) * losses).sum() / is_there.sum()
