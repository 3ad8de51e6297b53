"""Bradley-Terry in which every group counts the same, whatever its number of pairs: a control for what reweighting does alone."""

import torch

from trl_pafo.baselines.trainer import GroupTrainer, Loss


class ReweightedRewardTrainer(GroupTrainer):
    """
    The Bradley-Terry loss of each pair times `N / (G * N_g)`: of `N` training pairs, `N_g` of which are of the pair's group, in `G`
    groups.

    That is 1 / N_g, scaled so that the mean over the training pairs is 1. (Not from the paper; reweighting by group size is
    common.) The arguments are those of [`PAFORewardTrainer`]; the training dataset has the column `group`, and is no stream.
    """

    _name = "Reweighted Bradley-Terry"
    _tag_names = ["trl", "reward-trainer"]
    how_trained = "It was trained by the Bradley-Terry loss alone, on the pairs of all groups, each weighed by one over the number of its group's pairs."

    def group_loss(self, sums: torch.Tensor, counts: torch.Tensor) -> Loss:
        sizes = self.group_sizes.to(sums)
        weights = sizes.sum() / (len(sizes) * sizes.clamp(min=1))
        return (weights * sums).sum() / counts.sum(), {}
