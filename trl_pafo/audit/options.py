"""What an audit is asked to do, beside the data."""

from dataclasses import dataclass
from typing import Any

from trl_pafo.data import DEFAULT_NUM_HISTORY
from trl_pafo.data.sources.arguments import DataArguments, option
from trl_pafo.errors import ConfigError
from trl_pafo.evaluation.options import RewardModelArguments

_OF_PROBES = ("embedding_model", "probe_pairs", "num_history")
_LEAST = {"probe_pairs": 50, "num_history": 0, "seed": 0}


@dataclass
class AuditArguments(RewardModelArguments, DataArguments):
    """What an audit looks at, beside the data: reward models, too, where some are given; each option is described by its `help`.

    Raises:
        ConfigError: If an option cannot be used, or has no effect.
    """

    embedding_model: str = option("minilm", "Frozen features of the probes: Hub id, folder, minilm or smollm2.")
    output_dir: str | None = option(
        None, "Folder for audit.json, audit.md, groups.csv and pictures; a new folder, or one with an earlier audit."
    )
    probes: bool = option(True, "Fit probes. Without them, nothing is embedded.")
    probe_pairs: int = option(2000, "Maximum number of pairs for the probes: all of some users, groups in their proportions.")
    num_history: int = option(DEFAULT_NUM_HISTORY, "Past pairs that the probes see.")
    seed: int = option(0, "Seed of everything that the audit draws.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score_columns and self.source != "files":
            raise ConfigError(f"--score_columns: no effect on the source {self.source!r}, which is no table. Leave it out.")
        if self.validation_share != DataArguments.validation_share:
            raise ConfigError("--validation_share: no effect on an audit, which holds nothing out for a training. Leave it out.")
        if self.infer_groups:
            if not self.probes:
                raise ConfigError(
                    "--infer_groups: groups are found in features, which --probes false does without. Leave one out."
                )
            if self.embedding_model not in (AuditArguments.embedding_model, self.infer_groups):
                raise ConfigError(
                    "--embedding_model: no effect beside --infer_groups, which names the model of the features. Leave it out."
                )
            self.embedding_model = self.infer_groups
        unused = [f"--{name}" for name in _OF_PROBES if getattr(self, name) != getattr(AuditArguments, name)]
        if unused and not self.probes:
            raise ConfigError(f"{', '.join(unused)}: no effect without probes. Leave it out, or leave --probes on.")
        for name, bound in _LEAST.items():
            value = getattr(self, name)
            if value < bound:
                raise ConfigError(f"`{name}` must be at least {bound}, got {value}.")

    def table_options(self) -> dict[str, Any]:
        return {"scores": self.score_columns or (), "keep_others": bool(self.reward_function)}
