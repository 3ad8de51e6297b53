"""VPL, GPO, LoRe and MRM as methods of a run: fitted to the features of its Bradley-Terry model, judged on the test pairs as all are."""

import json

import numpy as np
import pytest
from helpers.small_runs import train_nothing

from trl_pafo.baselines import UserModel, pair_features
from trl_pafo.baselines.table import USER_MODELS
from trl_pafo.errors import DataError
from trl_pafo.metrics import pair_correctness
from trl_pafo.models.scoring import RewardScorer
from trl_pafo.pipeline import user_models
from trl_pafo.pipeline.prepare import load_prepared
from trl_pafo.pipeline.run import Run

METHODS = {"methods": ["personalized_bt", *USER_MODELS]}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(UserModel, "num_steps", 2)


def rewards_of(folder, method):
    lines = (folder / f"results/{method}.jsonl").read_text().splitlines()
    return np.array([[json.loads(line)[f"reward_{side}"] for side in ("chosen", "rejected")] for line in lines])


def test_they_are_fitted_to_features_of_bradley_terry_and_judged_as_all_are(run, tmp_path, capsys):
    results = run(**METHODS)()
    folder = tmp_path / "run"
    assert list(results["methods"]) == METHODS["methods"]
    assert set(results["verdicts"]) == set(USER_MODELS)
    data = load_prepared(folder / "data")
    scorer = RewardScorer(folder / "models/bradley_terry")
    train, test = (pair_features(scorer, data[name]) for name in ("train", "test"))
    assert any(train.past)
    for method, entry in USER_MODELS.items():
        expected = entry.load().fit(train, seed=42).score(test)
        np.testing.assert_allclose(rewards_of(folder, method), expected, atol=1e-4)
        assert results["methods"][method]["num_users"] == results["methods"]["personalized_bt"]["num_users"]
        right = pair_correctness(expected[:, 0] - expected[:, 1]).mean()
        assert results["methods"][method]["overall"]["value"] == pytest.approx(right)
        assert results["verdicts"][method]["sentence"]
        assert not (folder / "models" / method).exists()  # it is no reward model to load or push
    assert (folder / "report.html").is_file()
    assert "Features of the test pairs" in capsys.readouterr().err
    run(**METHODS)()
    assert "Features of" not in capsys.readouterr().err


def test_only_what_an_option_decides_is_redone(run, monkeypatch):
    train_nothing(monkeypatch)
    done = []

    class Model:
        num_steps = 3

        def save(self, folder):
            folder.mkdir()
            (folder / "fitted").write_text("")

        @classmethod
        def fit(cls, pairs, seed, desc):
            done.append((desc, seed))
            return cls()

    class Features:
        def save(self, path):
            path.write_text("")

    monkeypatch.setattr(user_models, "RewardScorer", lambda *args, **kwargs: None)
    monkeypatch.setattr(user_models, "pair_features", lambda *args, desc, **kwargs: done.append(desc) or Features())
    monkeypatch.setattr(user_models.FeaturePairs, "load", lambda path: None)
    monkeypatch.setattr(
        user_models, "USER_MODELS", {name: type("E", (), {"load": lambda self: Model})() for name in ("vpl", "lore")}
    )
    read = ["Features of the train pairs", "Features of the test pairs"]
    two = {"methods": ["personalized_bt", "vpl", "lore"]}
    run(**two)()
    assert done == [*read, ("VPL", 42), ("LoRe", 42)]
    done.clear()
    run(**two, num_resamples=60)()
    assert done == []
    monkeypatch.setattr(Model, "num_steps", 4)
    run(**two)()
    assert done == [("VPL", 42), ("LoRe", 42)]


def test_no_histories_are_told_before_a_training(run, monkeypatch):
    monkeypatch.setattr(Run, "_train", lambda *args, **kwargs: pytest.fail("a training was begun"))
    monkeypatch.setattr("trl_pafo.pipeline.run_checks.num_shown", lambda rows: [0] * len(rows))
    with pytest.raises(
        DataError, match="No training pair has a past pair, and VPL and GPO and LoRe and MRM learn from nothing else"
    ):
        run(**METHODS)()
