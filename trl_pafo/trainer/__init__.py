"""The trainer of fair reward models: pairs, batches, losses, exact evaluation, checkpoints. It knows no run, no report and no source of data."""

from trl_pafo import lazily

__all__, __getattr__, __dir__ = lazily(
    __name__,
    {
        "DISTILLATION_LOSSES": "losses",
        "DataCollatorForGroupPreference": "collator",
        "ExactRewardTrainer": "evaluation",
        "PAFOConfig": "config",
        "PAFORewardTrainer": "trainer",
        "bradley_terry": "losses",
        "pafo_loss": "losses",
    },
)
