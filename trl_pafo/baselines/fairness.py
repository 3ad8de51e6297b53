"""Rewards as resources that the pairs of a batch share: fairness among pairs, which needs neither groups nor users."""

from typing import Any

import torch

from trl_pafo.baselines.trainer import BaselineTrainer, Loss
from trl_pafo.errors import ConfigError
from trl_pafo.trainer.collator import PairBatch


class FairnessRegularizedRewardTrainer(BaselineTrainer):
    r"""
    Bradley-Terry minus fairness among the pairs of a batch: `L - weight * f`, with the mean loss `L`, the shares
    `a_i = sigmoid(D_i)` and

    `f = sign(1 - tau) (sum_i (a_i / sum_j a_j)^(1 - tau))^(1 / tau) / n`

    With `tau = -1` it is Jain's index, `(sum a)^2 / (n sum a^2)`, which is 1 where all pairs are told apart equally well.

    Ouyang et al.: *Towards Reward Fairness in RLHF: From a Resource Allocation Perspective* (ACL 2025), "fairness regularization", with
    the measure of Lan et al. (2010); weight = 0.1 and tau = -1 are those of their code. What is adapted: TRL's `margin` column, where
    there is one, is taken off `D_i`.

    Args:
        *args, **kwargs:
            As for [`PAFORewardTrainer`]; no column beside the pairs is needed.
        weight (`float`, *optional*, defaults to `0.1`):
            Weight of the fairness, at least 0.
        tau (`float`, *optional*, defaults to `-1.0`):
            Which measure of the family: not 0 and not 1, where it is not defined or is 0 for all.

    Raises:
        ConfigError: If a constant is out of its range, or teachers are given.
    """

    _name = "Fairness regularization"
    _tag_names = ["trl", "reward-trainer", "reward-fairness"]
    how_trained = (
        "It was trained by the Bradley-Terry loss with fairness regularization (Ouyang et al., 2025), without groups: pairs of a batch are to be "
        "told apart equally well."
    )

    def __init__(self, *args: Any, weight: float = 0.1, tau: float = -1.0, **kwargs: Any):
        if not 0 <= weight < float("inf"):
            raise ConfigError(f"`weight` must be at least 0, got {weight}.")
        if not abs(tau) < float("inf") or tau in (0, 1):
            raise ConfigError(f"`tau` must be a number other than 0 and 1, got {tau}.")
        self.weight, self.tau = weight, tau
        super().__init__(*args, **kwargs)

    def training_loss(self, losses: torch.Tensor, batch: PairBatch) -> Loss:
        loss, fairness = self.loss_and_fairness(losses)
        return loss - self.weight * fairness, {"fairness": fairness}

    def loss_and_fairness(self, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean loss and fairness of the pairs of a batch, scalars."""
        log_share = -losses  # log sigmoid(D_i)
        terms = torch.stack([losses, log_share.exp(), (log_share * (1 - self.tau)).exp(), torch.ones_like(losses)])
        loss, total, powers, number = self.total(terms.sum(1))
        return loss / number.detach(), fairness_of(total, powers, number.detach(), self.tau)


class FairnessCoefficientRewardTrainer(FairnessRegularizedRewardTrainer):
    r"""
    Bradley-Terry times a power of the fairness among the pairs of a batch: `L * f^power`, with `L` and `f` as in
    [`FairnessRegularizedRewardTrainer`].

    "Fairness coefficient" of the same paper; power = 0.5 and tau = -1 are those of their code, as is the sign: the loss gets smaller where
    `f` does, so by itself the factor does not ask for fairness, but lowers the loss of a batch whose pairs are told apart unequally.

    Args:
        *args, **kwargs:
            As for [`PAFORewardTrainer`]; no column beside the pairs is needed.
        power (`float`, *optional*, defaults to `0.5`):
            Power of the fairness, at least 0.
        tau (`float`, *optional*, defaults to `-1.0`):
            Which measure of the family: below 1, where it is above 0, and not 0.

    Raises:
        ConfigError: If a constant is out of its range, or teachers are given.
    """

    _name = "Fairness coefficient"
    how_trained = (
        "It was trained by the Bradley-Terry loss with a fairness coefficient (Ouyang et al., 2025), without groups: the loss of a batch is "
        "multiplied by how equally its pairs are told apart."
    )

    def __init__(self, *args: Any, power: float = 0.5, tau: float = -1.0, **kwargs: Any):
        if not 0 <= power < float("inf"):
            raise ConfigError(f"`power` must be at least 0, got {power}.")
        if tau > 1:
            raise ConfigError(f"`tau` must be below 1, got {tau}: the fairness is negative above, and has no such power.")
        self.power = power
        super().__init__(*args, tau=tau, **kwargs)

    def training_loss(self, losses: torch.Tensor, batch: PairBatch) -> Loss:
        loss, fairness = self.loss_and_fairness(losses)
        return loss * fairness**self.power, {"fairness": fairness}


def fairness_of(total: torch.Tensor, powers: torch.Tensor, number: torch.Tensor, tau: float) -> torch.Tensor:
    """`f = sign(1 - tau) (sum_i (a_i / sum_j a_j)^(1 - tau))^(1 / tau) / n` of `n` shares, a scalar.

    `total` is `sum a_i`, `powers` is `sum a_i^(1 - tau)`. At most 1 for tau below 1, where it is 1 if all shares are equal.
    """
    of_shares = powers / total ** (1 - tau)
    return (1.0 if tau < 1 else -1.0) * of_shares ** (1 / tau) / number
