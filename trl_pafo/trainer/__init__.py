"""The trainer of fair reward models: pairs, batches, losses, exact evaluation, checkpoints. It knows no run, no report and no source of data.

The names are imported where they are first used, as in `trl_pafo`.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "DISTILLATION_LOSSES": "losses",
    "DataCollatorForGroupPreference": "collator",
    "ExactRewardTrainer": "evaluation",
    "PAFOConfig": "config",
    "PAFORewardTrainer": "trainer",
    "bradley_terry": "losses",
    "pafo_loss": "losses",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
