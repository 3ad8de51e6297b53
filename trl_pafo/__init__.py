"""Reward models that are fair to every user, as a plug-in to TRL.

The names are imported where they are first used, so that ``import trl_pafo`` and ``trl-pafo --help`` load neither
torch nor transformers.
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl_pafo.errors import TrlPafoError
    from trl_pafo.models.fair_reward_model import FairRewardModel
    from trl_pafo.storage.versions import __version__
    from trl_pafo.trainer.collator import DataCollatorForGroupPreference
    from trl_pafo.trainer.config import PAFOConfig
    from trl_pafo.trainer.trainer import PAFORewardTrainer


def lazily(package: str, homes: dict[str, str]) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` of a package; `homes` says in which of its modules each name lives."""
    names = sorted(homes)

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if homes[name].startswith("trainer"):  # built on trl and transformers
            import_module("trl_pafo.storage.versions").check_versions()
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return names, get, lambda: names


__all__ = ["DataCollatorForGroupPreference", "FairRewardModel", "PAFOConfig", "PAFORewardTrainer", "TrlPafoError", "__version__"]
_, __getattr__, __dir__ = lazily(
    __name__,
    {
        "DataCollatorForGroupPreference": "trainer.collator",
        "FairRewardModel": "models.fair_reward_model",
        "PAFOConfig": "trainer.config",
        "PAFORewardTrainer": "trainer.trainer",
        "TrlPafoError": "errors",
        "__version__": "storage.versions",
    },
)
