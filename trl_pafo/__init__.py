"""Reward models that are fair to every user, as a plug-in to TRL.

The names are imported where they are first used, so that ``import trl_pafo`` and ``trl-pafo --help`` load neither
torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl_pafo.errors import TrlPafoError
    from trl_pafo.trainer.collator import DataCollatorForGroupPreference
    from trl_pafo.trainer.config import PAFOConfig
    from trl_pafo.trainer.trainer import PAFORewardTrainer
    from trl_pafo.versions import __version__

_HOMES = {
    "DataCollatorForGroupPreference": "trl_pafo.trainer.collator",
    "PAFOConfig": "trl_pafo.trainer.config",
    "PAFORewardTrainer": "trl_pafo.trainer.trainer",
    "TrlPafoError": "trl_pafo.errors",
    "__version__": "trl_pafo.versions",
}

__all__ = ["DataCollatorForGroupPreference", "PAFOConfig", "PAFORewardTrainer", "TrlPafoError", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in ("TrlPafoError", "__version__"):  # the others are built on trl and transformers
        import_module("trl_pafo.versions").check_versions()
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
