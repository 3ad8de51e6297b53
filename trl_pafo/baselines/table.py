"""The lists of what is in this wing. How a run trains its methods and what can be imported follow from them."""

from importlib import import_module
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """A class by its module in this wing and its name there, so that the list loads neither torch nor transformers."""

    module: str
    name: str

    def load(self) -> Any:
        """The class."""
        return getattr(import_module(f"trl_pafo.baselines.{self.module}"), self.name)


TRAINERS: dict[str, Entry] = {
    "reweighted_bt": Entry("reweighted", "ReweightedRewardTrainer"),
    "group_dro": Entry("group_dro", "GroupDRORewardTrainer"),
    "grpo_robust": Entry("group_dro", "GroupRobustRewardTrainer"),
    "fairness_regularized": Entry("fairness", "FairnessRegularizedRewardTrainer"),
    "fairness_coefficient": Entry("fairness", "FairnessCoefficientRewardTrainer"),
    "soft_tail": Entry("soft_tail", "SoftTailRewardTrainer"),
    "mgda": Entry("mgda", "MGDARewardTrainer"),
    "p_rlhf": Entry("p_rlhf", "PRLHFRewardTrainer"),
}
"""Trainers, by the name of the method in a run."""

USER_MODELS: dict[str, Entry] = {
    "vpl": Entry("vpl", "VPL"),
    "gpo": Entry("gpo", "GPO"),
    "lore": Entry("lore", "LoRe"),
    "mrm": Entry("mrm", "MRM"),
}
"""What describes a user by a vector, from features of a model; by the name of the method in a run."""
