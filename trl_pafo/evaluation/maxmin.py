"""Pairs under the models of MaxMin-RLHF."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from trl_pafo.baselines.maxmin import serve
from trl_pafo.evaluation.mixture import score_with_past
from trl_pafo.evaluation.rewards import ScoredPairs

FACTS = "maxmin.json"
"""File beside the models: `num_users`, the training users of each, and `offset`, its mean reward on the training responses."""


def folders_of(folder: str | Path, num_models: int) -> list[Path]:
    """Where the models are."""
    return [Path(folder) / f"model_{number:02}" for number in range(1, num_models + 1)]


def score_maxmin(folder: str | Path, rows: Dataset, **scoring: Any) -> ScoredPairs:
    """Score each row under the model that explains its history best, and without a history by the least reward of all
    ([`~trl_pafo.baselines.maxmin.serve`]). Rows are those of `trl-pafo prepare`, `scoring` as for
    [`~trl_pafo.evaluation.mixture.score_alone`].
    """
    offset = json.loads((Path(folder) / FACTS).read_text(encoding="utf-8"))["offset"]
    models = {path.name: str(path) for path in folders_of(folder, len(offset))}
    scored, past_margins, past = score_with_past(models, rows, **scoring)
    rewards = np.stack([np.stack(pairs, axis=1) for pairs in scored], axis=2)
    return ScoredPairs(*serve(rewards, past_margins, past, offset).T)
