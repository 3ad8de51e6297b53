"""Saved models: where they are, how they are loaded safely, and the rewards that they give. It knows no groups and no training.

The names are imported where they are first used, as in `trl_pafo`.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "RewardScorer": "scoring",
    "fast_bf16": "base_models",
    "load_reward_model": "scoring",
    "load_tokenizer": "base_models",
    "materialize_model": "base_models",
    "score_pairs": "scoring",
    "score_sequences": "scoring",
    "set_threads": "base_models",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
