"""Preference pairs, from their sources to token ids: labels, checks, histories, groups. It knows no model and no trainer."""

from trl_pafo import lazily

HISTORY_FIELDS = ("prompt", "chosen", "rejected")
"""What a past pair has."""

DEFAULT_NUM_HISTORY = 3
"""Past pairs in the prompt where nothing else is said."""

__all__, __getattr__, __dir__ = lazily(
    __name__,
    {
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
    },
)
