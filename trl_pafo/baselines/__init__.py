"""Rivals from other papers: trainers with a loss or weights of their own, and models that describe a user by a vector. They know no
run and no report."""

from trl_pafo import lazily
from trl_pafo.baselines.table import TRAINERS, USER_MODELS

_FEATURES = {"FeaturePairs": "features", "pair_features": "features", "UserModel": "user_model"}
__all__, __getattr__, __dir__ = lazily(
    __name__, {entry.name: entry.module for entry in (*TRAINERS.values(), *USER_MODELS.values())} | _FEATURES
)
