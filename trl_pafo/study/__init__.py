"""Methods x data x seeds x settings, each cell a run, in one table. It knows runs and what they leave; it knows no command line."""

from trl_pafo import lazily

__all__, __getattr__, __dir__ = lazily(__name__, {"Study": "study", "StudyConfig": "config", "join_cells": "study"})
