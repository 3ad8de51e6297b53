"""Preference pairs, from their sources to token ids: labels, checks, histories, groups. It knows no model and no trainer.

The names are imported where they are first used, as in `trl_pafo`.
"""

from importlib import import_module
from typing import Any

HISTORY_FIELDS = ("prompt", "chosen", "rejected")
"""What a past pair has."""

DEFAULT_NUM_HISTORY = 3
"""Past pairs in the prompt where nothing else is said."""

_HOMES = {
    "HistoryCutter": "history",
    "InputRenderer": "rendering",
    "add_history_template": "template",
    "attach_history": "attaching",
    "assign_groups": "groups",
    "quantile_thresholds": "groups",
    "render_history": "history",
    "support_rate_by_agreement": "groups",
    "support_rate_by_type": "groups",
    "support_rate_by_weights": "groups",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
