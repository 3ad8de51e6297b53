"""The lists of what is in this wing. Methods of a run, names for people and what can be imported follow from them."""

from importlib import import_module
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """A class by its module in this wing and its name there, so that the list loads neither torch nor transformers."""

    title: str
    """Name of the method for people."""
    module: str
    name: str

    def load(self) -> Any:
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
    "p_rlhf": Entry("P-RLHF", "p_rlhf", "PRLHFRewardTrainer"),
}
"""Trainers, by the name of the method in a run."""

USER_MODELS: dict[str, Entry] = {
    "vpl": Entry("VPL", "vpl", "VPL"),
    "gpo": Entry("GPO", "gpo", "GPO"),
    "lore": Entry("LoRe", "lore", "LoRe"),
    "mrm": Entry("MRM", "mrm", "MRM"),
}
"""What describes a user by a vector, from features of a reward model; by the name of the method in a run."""
