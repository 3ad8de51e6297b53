"""The one list of the trainers of this wing. Methods of a run, names for people and what can be imported follow from it."""

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from trl_pafo.baselines.trainer import BaselineTrainer


class Entry(NamedTuple):
    """A trainer by its module in this wing and its name there, so that the list loads neither torch nor transformers."""

    title: str
    """Name of the method for people."""
    module: str
    name: str

    def load(self) -> "type[BaselineTrainer]":
        """The class."""
        return getattr(import_module(f"trl_pafo.baselines.{self.module}"), self.name)


TRAINERS: dict[str, Entry] = {
    "reweighted_bt": Entry("reweighted BT", "reweighted", "ReweightedRewardTrainer"),
    "group_dro": Entry("group DRO", "group_dro", "GroupDRORewardTrainer"),
    "grpo_robust": Entry("GRPO-robust", "group_dro", "GroupRobustRewardTrainer"),
    "fairness_regularized": Entry("fairness regularization", "fairness", "FairnessRegularizedRewardTrainer"),
    "fairness_coefficient": Entry("fairness coefficient", "fairness", "FairnessCoefficientRewardTrainer"),
    "soft_tail": Entry("soft tail", "soft_tail", "SoftTailRewardTrainer"),
    "mgda": Entry("MGDA", "mgda", "MGDARewardTrainer"),
}
"""By the name of the method in a run."""
