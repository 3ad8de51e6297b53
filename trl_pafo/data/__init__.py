"""Preference pairs, from their sources to token ids: labels, checks, histories, groups. It knows no model."""
