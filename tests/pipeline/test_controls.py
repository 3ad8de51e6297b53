"""The controls of a run: what they are trained on, for how long, and what is redone."""

import json

import numpy as np
from helpers.small_runs import train_nothing

from trl_pafo.baselines import ReweightedRewardTrainer
from trl_pafo.baselines.table import TRAINERS, USER_MODELS
from trl_pafo.evaluation.methods import RIVALS, TITLES
from trl_pafo.evaluation.rewards import score_rows
from trl_pafo.pipeline.controls import MARGINS
from trl_pafo.pipeline.prepare import load_prepared
from trl_pafo.pipeline.run import Run

ENSEMBLE = {"methods": ["personalized_bt", "distilled_ensemble"]}


def test_an_ensemble_is_distilled_and_groups_are_reweighted(run, tmp_path, monkeypatch):
    seen = {}
    train = Run._train

    def spy(self, out, title, rows, **options):
        seen[title] = rows.column_names, options
        return train(self, out, title, rows, **options)

    monkeypatch.setattr(Run, "_train", spy)
    monkeypatch.setattr("trl_pafo.pipeline.controls.NUM_MEMBERS", 2)
    results = run(methods=["personalized_bt", "reweighted_bt", "distilled_ensemble"])()
    assert set(results["verdicts"]) == {"reweighted_bt", "distilled_ensemble"}
    folder = tmp_path / "run"
    models = {path.name for path in (folder / "models").iterdir()}
    assert models > {"reweighted_bt", "distilled_ensemble", "ensemble_seed43", "ensemble_seed44"}
    for name in models - {"personalized_bt"}:
        assert json.loads((folder / f"models/{name}/trainer_state.json").read_text())["global_step"] == 2, name
    members = [folder / f"models/ensemble_seed{seed}" for seed in (43, 44)]
    different = {(model / "model.safetensors").read_bytes() for model in (*members, folder / "models/personalized_bt_x1")}
    assert len(different) == 3

    assert seen["reweighted BT"][1]["trainer"] is ReweightedRewardTrainer
    train_rows = load_prepared(folder / "data")["train"]
    mean = sum(np.subtract(*score_rows(member, train_rows), dtype=np.float64) for member in members) / 2
    np.testing.assert_allclose(np.load(folder / MARGINS), mean, rtol=1e-5, atol=1e-6)
    assert "teacher_margin" in seen["distilled ensemble"][0]
    assert seen["distilled ensemble"][1].get("teachers") is None
    log = json.loads((folder / "models/distilled_ensemble/trainer_state.json").read_text())["log_history"]
    assert log[0]["distillation_loss"] > 0
    assert "It was trained by" in (folder / "models/reweighted_bt/README.md").read_text()


def test_rivals_are_trained_on_the_pairs_of_the_reference_for_the_students_steps(run, tmp_path, monkeypatch):
    """Of one the training is real; each of them trains in tests/baselines."""
    seen, train, real = {}, Run._train, "group_dro"
    train_nothing(monkeypatch)
    nothing = Run._train

    def spy(self, out, title, rows, **options):
        seen[title] = rows["prompt"][:], rows["chat_template_kwargs"][:], options
        (train if title == TITLES[real] else nothing)(self, out, title, rows, **options)

    monkeypatch.setattr(Run, "_train", spy)
    rivals = [
        method for method in RIVALS if method not in {"maxmin", *USER_MODELS}
    ]  # these: test_rivals_in_a_run, test_user_models
    assert set(rivals) == set(TRAINERS) - {"reweighted_bt"}
    assert list(run(methods=["personalized_bt", *rivals])()["methods"]) == ["personalized_bt", *rivals]
    for method in rivals:
        trainer = TRAINERS[method].load()
        assert seen[TITLES[method]][:2] == seen["personalized BT, x1"][:2]
        assert seen[TITLES[method]][2] == {"trainer": trainer, "columns": trainer.columns, "changes": {"max_steps": 2}}
    folder = tmp_path / "run/models" / real
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    assert any("group_weight/minority" in log for log in state["log_history"])


def test_only_what_an_option_decides_is_redone(run, monkeypatch):
    trained = train_nothing(monkeypatch)
    monkeypatch.setattr("trl_pafo.pipeline.controls.score_rows", lambda folder, rows, **scoring: np.zeros((2, len(rows))))
    run(**ENSEMBLE)()
    members = [f"Ensemble, seed {seed}" for seed in range(43, 48)]
    assert trained == ["personalized BT, x1", *members, "distilled ensemble"]
    trained.clear()
    run(**ENSEMBLE, tau=0.5)()  # each pair keeps its own history
    assert trained == []
    run(**ENSEMBLE, alpha=0.5, overwrite=True)()
    assert trained == ["distilled ensemble"]
