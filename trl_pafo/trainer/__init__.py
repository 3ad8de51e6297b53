"""The trainer of fair reward models: pairs, batches, losses, exact evaluation, checkpoints, pushing; the teachers and their margins. It
knows no run, no report and no source of data."""

from trl_pafo import lazily

__all__, __getattr__, __dir__ = lazily(
    __name__,
    {
        "DISTILLATION_LOSSES": "losses",
        "DataCollatorForGroupPreference": "collator",
        "ExactRewardTrainer": "evaluation",
        "HubMixin": "hub_mixin",
        "PAFOConfig": "config",
        "PAFORewardTrainer": "trainer",
        "bradley_terry": "losses",
        "pafo_loss": "losses",
    },
)
