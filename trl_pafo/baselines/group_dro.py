"""Group DRO, and its form on another scale: the groups with the largest loss weigh most."""

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

    def group_loss(self, sums: torch.Tensor, counts: torch.Tensor) -> Loss:
        return self.weighted(mean_of_groups(sums, counts))

    def weighted(self, losses: torch.Tensor) -> Loss:
        """Move the weights, then `sum_g q_g L_g`, with the losses `L_g` of the groups, of shape `(num_groups,)`."""
        adjusted = losses.detach() + self.adjustment / self.group_sizes.to(losses).clamp(min=1).sqrt()
        weights = self.group_weights.multiply(self.eta * adjusted)
        return (weights * losses).sum(), self.named(weights)

    @property
    def group_weights(self) -> GroupWeights:
        """The weights of the groups; transformers may put others in the place of a callback when a training resumes."""
        return next(each for each in self.callback_handler.callbacks if isinstance(each, GroupWeights))


class GroupRobustRewardTrainer(GroupDRORewardTrainer):
    r"""
    Group robust preference optimization: group DRO with `L_g = (N / N_g) * sum` of the losses of the pairs of group g in the batch, for `N`
    training pairs, `N_g` of the group. A batch that is drawn evenly from them has a sum that grows with the group, which the
    factor undoes; the weights move whatever a group happens to have in a batch.

    Ramesh, Hu, Chaimalas, Mehta, Sessa, Bou Ammar and Bogunovic: *Group Robust Preference Optimization in Reward-free RLHF* (NeurIPS
    2024), Algorithm 1; eta = 5e-7 is that of their script. It is not the GRPO of group *relative* policy optimization. What is
    adapted: the loss is Bradley-Terry in the place of DPO or IPO; `sum_g q_g L_g` is divided by the number of pairs of the batch, so
    that learning rate and clipping mean what they do for `RewardTrainer`, while the weights move by `L_g` as it is; and all
    processes have the same weights.

    Args:
        *args, eta (`float`, *optional*, defaults to `5e-7`), adjustment, **kwargs:
            As for [`GroupDRORewardTrainer`].
    """

    _name = "Group robust preference optimization"
    _tag_names = ["trl", "reward-trainer", "group-robust"]
    how_trained = (
        "It was trained by group robust preference optimization (Ramesh et al., 2024) on the Bradley-Terry loss, on the pairs of all groups: "
        "the groups with the largest loss weigh most."
    )

    def __init__(self, *args: Any, eta: float = 5e-7, **kwargs: Any):
        super().__init__(*args, eta=eta, **kwargs)

    def group_loss(self, sums: torch.Tensor, counts: torch.Tensor) -> Loss:
        sizes = self.group_sizes.to(sums)
        loss, parts = self.weighted(sizes.sum() / sizes.clamp(min=1) * sums)
        return loss / counts.sum(), parts
