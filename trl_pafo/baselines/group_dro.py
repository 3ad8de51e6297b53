"""Group DRO: the groups with the largest loss weigh most (Sagawa et al., 2020)."""

from typing import Any

import torch

from trl_pafo.baselines.group_weights import GroupWeights
from trl_pafo.baselines.trainer import GroupTrainer, Loss, check_above_zero, mean_of_groups
from trl_pafo.errors import ConfigError


class GroupDRORewardTrainer(GroupTrainer):
    r"""
    Group DRO: `sum_g q_g L_g`, where `L_g` is the mean Bradley-Terry loss of the pairs of group g in the batch and, before each,

    `q_g <- q_g exp(eta (L_g + C / sqrt(N_g))) / Z`

    Sagawa, Koh, Hashimoto and Liang: *Distributionally Robust Neural Networks for Group Shifts* (ICLR 2020), Algorithm 1 and, for the
    adjustment by the number `N_g` of training pairs, Eq. 5; eta = 0.01 is that of their code. Weights start equal. A group that is not
    in the batch counts with `L_g = 0`. What is adapted: the loss is Bradley-Terry, and batches are drawn as TRL draws them, not
    with the same number of pairs of each group.

    Args:
        *args, **kwargs:
            As for [`PAFORewardTrainer`]; the training dataset has the column `group` (str), and is no stream.
        eta (`float`, *optional*, defaults to `0.01`):
            Step size of the weights, per nat of loss.
        adjustment (`float`, *optional*, defaults to `0.0`):
            `C`, in nats.

    Raises:
        ConfigError: If a constant is out of its range, or teachers are given.
        DataError: If the training dataset does not tell the group of each pair.

    Example:

    ```python
    >>> from trl_pafo.baselines import GroupDRORewardTrainer

    >>> trainer = GroupDRORewardTrainer(model="Qwen/Qwen3-0.6B", train_dataset=dataset)  # with a column `group`
    >>> trainer.train()
    ```
    """

    _name = "Group DRO"
    _tag_names = ["trl", "reward-trainer", "group-dro"]
    how_trained = (
        "It was trained by group DRO (Sagawa et al., 2020) on the Bradley-Terry loss, on the pairs of all groups: the groups with the "
        "largest loss weigh most."
    )

    def __init__(self, *args: Any, eta: float = 0.01, adjustment: float = 0.0, **kwargs: Any):
        check_above_zero(eta=eta)
        if not 0 <= adjustment < float("inf"):
            raise ConfigError(f"`adjustment` must be at least 0, got {adjustment}.")
        self.eta, self.adjustment = eta, adjustment
        super().__init__(*args, **kwargs)
        self.add_callback(GroupWeights(self.group_names))

    @property
    def group_weights(self) -> GroupWeights:
        """The weights of the groups; transformers may put others in the place of a callback when a training resumes."""
        return next(each for each in self.callback_handler.callbacks if isinstance(each, GroupWeights))

    def group_loss(self, sums: torch.Tensor, counts: torch.Tensor) -> Loss:
        losses = mean_of_groups(sums, counts)
        sizes = self.group_sizes.to(losses)
        weights = self.group_weights.multiply(dro_steps(losses, sizes, self.eta, self.adjustment))
        return (weights * losses).sum(), self.named(weights)


def dro_steps(losses: torch.Tensor, sizes: torch.Tensor, eta: float, adjustment: float = 0.0) -> torch.Tensor:
    """Logarithm of what multiplies the weight of each group, `eta (L_g + C / sqrt(N_g))`, of shape `(num_groups,)`; no gradient."""
    return eta * (losses.detach() + adjustment / sizes.clamp(min=1).sqrt())
