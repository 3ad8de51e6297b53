"""Saved models on preference pairs: rewards, group and user fairness, the use of histories. It knows no training.

The names are imported where they are first used, as in `trl_pafo`.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "RunArguments": "methods",
    "evaluate_models": "evaluate",
    "inspect_run": "history_effect",
    "score_rows": "rewards",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
