"""Bradley-Terry in which every group counts the same, whatever its number of pairs: a control for what reweighting does alone."""

from typing import Any

import torch
from datasets import Dataset

from trl_pafo.data.groups import count_by_group
from trl_pafo.errors import DataError
from trl_pafo.trainer.collator import PairBatch
from trl_pafo.trainer.losses import bradley_terry
from trl_pafo.trainer.trainer import PAFORewardTrainer


class ReweightedRewardTrainer(PAFORewardTrainer):
    """
    The Bradley-Terry loss of each pair times `N / (G * N_g)`: of `N` training pairs, `N_g` of which are of the pair's group, in `G`
    groups.

    That is 1 / N_g, scaled so that the mean over the training pairs is 1. (Not from the paper; reweighting by group size is
    common.) The arguments are those of [`PAFORewardTrainer`]; the training dataset has the column `group`, and is no stream.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        rows = self.train_dataset
        if not isinstance(rows, Dataset) or "group" not in rows.column_names:
            raise DataError(
                "The training dataset must have the column `group` and be no stream: the weights are 1 / pairs of a group."
            )
        counts = count_by_group(rows)
        self._weight = torch.tensor([len(rows) / (len(counts) * counts[group]) for group in self.data_collator.groups])

    def pair_loss(self, difference: torch.Tensor, batch: PairBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if not self.model.training:
            return super().pair_loss(difference, batch)
        weight = self._weight.to(difference)[batch.group_id]
        return (weight * bradley_terry(difference, 0.0 if batch.margin is None else batch.margin)).mean(), {}
