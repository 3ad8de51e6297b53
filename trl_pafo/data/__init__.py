"""Preference pairs, from their sources to token ids: labels, checks, histories, groups. It knows no model."""

HISTORY_FIELDS = ("prompt", "chosen", "rejected")
"""What a past pair has."""

DEFAULT_NUM_HISTORY = 3
"""Past pairs in the prompt where nothing else is said."""
