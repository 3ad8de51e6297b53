"""The lists of the wing: what can be imported, and which methods a run has."""

import subprocess
import sys

import pytest

import trl_pafo.baselines
from trl_pafo.baselines.table import TRAINERS, USER_MODELS
from trl_pafo.baselines.user_model import UserModel
from trl_pafo.evaluation.methods import RIVALS, TITLES
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


@pytest.mark.parametrize("method", USER_MODELS)
def test_every_other_entry_is_fitted_to_features(method):
    entry = USER_MODELS[method]
    assert issubclass(entry.load(), UserModel)
    assert entry.load() is getattr(trl_pafo.baselines, entry.name)


def test_every_entry_is_a_method_and_every_rival_is_an_entry():
    assert {*TRAINERS, *USER_MODELS} <= set(TITLES)
    assert set(RIVALS) <= {*TRAINERS, *USER_MODELS, "maxmin"}
    assert len(set(TITLES.values())) == len(TITLES)


def test_the_list_loads_no_heavy_library():
    code = "import sys, trl_pafo.baselines.table; assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
