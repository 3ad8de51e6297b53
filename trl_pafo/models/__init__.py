"""Saved models: where they are, how they are loaded safely, and rewards of token sequences. It knows no pairs' groups and no training.

Names are imported where they are first used, so that `import trl_pafo.models` loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl_pafo.models.base_models import load_tokenizer, materialize_model
    from trl_pafo.models.scoring import RewardScorer, load_reward_model, score_pairs, score_sequences

_HOMES = {
    "RewardScorer": "scoring",
    "load_reward_model": "scoring",
    "load_tokenizer": "base_models",
    "materialize_model": "base_models",
    "score_pairs": "scoring",
    "score_sequences": "scoring",
}

__all__ = ["RewardScorer", "load_reward_model", "load_tokenizer", "materialize_model", "score_pairs", "score_sequences"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
