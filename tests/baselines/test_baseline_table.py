"""The list of the trainers: what can be imported, and which methods a run has."""

import subprocess
import sys

import pytest

import trl_pafo.baselines
from trl_pafo.baselines.table import TRAINERS
from trl_pafo.trainer.trainer import PAFORewardTrainer


@pytest.mark.parametrize("method", TRAINERS)
def test_every_entry_is_a_trainer_with_a_card(method):
    entry = TRAINERS[method]
    trainer = entry.load()
    assert trainer is getattr(trl_pafo.baselines, entry.name)
    assert issubclass(trainer, PAFORewardTrainer)
    assert trainer.how_trained.startswith("It was trained by ")
    assert "pafo" not in trainer._tag_names
    assert set(trainer.columns) <= {"group", "user"}


def test_titles_tell_methods_apart():
    assert len({entry.title for entry in TRAINERS.values()}) == len(TRAINERS)


def test_the_list_loads_no_heavy_library():
    code = "import sys, trl_pafo.baselines.table; assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
