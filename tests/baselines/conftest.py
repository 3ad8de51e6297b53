"""Trainers of baselines on tiny models."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.parts import make_pairs

from trl_pafo import PAFOConfig
from trl_pafo.trainer.collator import PairBatch


@pytest.fixture
def build(decoder, training, tmp_path) -> Callable[..., Any]:
    """A trainer of a class on 30 pairs: 20 of the majority, 10 of the minority."""

    def make(kind, rows=None, out="out", constants=None, **options):
        args = PAFOConfig(str(tmp_path / out), **{**training, **options})
        rows = make_pairs(history=0) if rows is None else rows
        return kind(decoder, args, train_dataset=rows, **(constants or {}))

    return make


@pytest.fixture
def batch_of() -> Callable[[Any, list[str]], PairBatch]:
    """A batch of pairs of the groups that are named."""
    return lambda trainer, names: PairBatch(group_id=torch.tensor([trainer.data_collator.groups.index(n) for n in names]))
