"""Rivals from other papers, each a trainer with a loss or weights of its own. They know no run and no report."""

from trl_pafo import lazily
from trl_pafo.baselines.table import TRAINERS

__all__, __getattr__, __dir__ = lazily(__name__, {entry.name: entry.module for entry in TRAINERS.values()})
