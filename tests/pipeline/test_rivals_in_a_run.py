"""P-RLHF and MaxMin-RLHF in a run: on what and for how long they are trained, whom they serve how, and what an interruption costs."""

import json
import math

import numpy as np
import pytest
from helpers.parts import files_of

from trl_pafo.data.history import rows_as_messages, without_history
from trl_pafo.evaluation.rewards import score_rows
from trl_pafo.pipeline.maxmin import FACTS, score_maxmin
from trl_pafo.pipeline.prepare import load_prepared
from trl_pafo.pipeline.run import Run
from trl_pafo.trainer.checkpoints import train_and_save

MAXMIN = {"methods": ["maxmin"], "reference": "maxmin", "max_steps": 4}
TRAININGS = [f"MaxMin-RLHF, round {number}, model {model}" for number in (1, 2, 3) for model in (1, 2)]


@pytest.fixture
def trainings(monkeypatch):
    """Titles of the trainings of MaxMin-RLHF, users and starts of each, as they begin; the one in the place `stop_at` does not end."""
    seen, train = [], Run._train

    def spy(self, out, title, rows, start=None, **options):
        if title.startswith("MaxMin"):
            seen.append((title, len(rows), start, options))
            if len(seen) == stop_at[0]:
                raise KeyboardInterrupt
        return train(self, out, title, rows, start=start, **options)

    stop_at = [None]
    monkeypatch.setattr(Run, "_train", spy)
    return seen, stop_at


def test_models_are_trained_in_turn_on_their_users(run, trainings, tmp_path):
    run(**MAXMIN)()
    seen, _ = trainings
    assert [title for title, *_ in seen] == TRAININGS
    assert all(options["changes"] == {"max_steps": 2} for *_, options in seen)  # a third of 4, rounded up
    assert not any(options["with_history"] for *_, options in seen)
    assert [rows for _, rows, *_ in seen[:2]] == [20, 20]  # half of 10 users with 4 pairs each
    assert [sum(rows for _, rows, *_ in seen[place : place + 2]) for place in (2, 4)] == [40, 40]
    assert [start is None for _, _, start, _ in seen] == [True, True, False, False, False, False]
    folder = tmp_path / "run/models/maxmin"
    assert {path.name for path in folder.iterdir()} == {"model_01", "model_02", FACTS}
    facts = json.loads((folder / FACTS).read_text())
    train = load_prepared(tmp_path / "run/data")["train"]
    scored = [score_rows(folder / name, without_history(train)) for name in ("model_01", "model_02")]
    assert facts["offset"] == pytest.approx([np.concatenate(pairs).mean() for pairs in scored], abs=1e-5)
    best = {}
    for number, user in enumerate(train["user"]):
        of_models = best.setdefault(user, [0.0, 0.0])
        for model, pairs in enumerate(scored):
            of_models[model] -= math.log1p(math.exp(float(pairs.rejected[number]) - float(pairs.chosen[number])))
    assert facts["num_users"] == [sum(own[m] == max(own) for own in best.values()) for m in range(2)]


@pytest.mark.slow
def test_users_with_past_pairs_get_the_model_of_these_and_others_the_least(run, tmp_path):
    run(**MAXMIN)()
    folder = tmp_path / "run/models/maxmin"
    test = load_prepared(tmp_path / "run/data")["test"]
    with_past, none = score_maxmin(folder, test), score_maxmin(folder, without_history(test))
    offset = json.loads((folder / FACTS).read_text())["offset"]
    models = [folder / "model_01", folder / "model_02"]
    scored = [np.stack(score_rows(model, without_history(test))) - zero for model, zero in zip(models, offset, strict=True)]
    np.testing.assert_allclose(np.stack(none), np.minimum(*scored), atol=1e-5)
    for number, row in enumerate(test):
        (past,) = row["history"][:1]  # one is shown
        entry = rows_as_messages(test.select([number]).map(lambda _, past=past: past, remove_columns=test.column_names))
        alone = entry.add_column("chat_template_kwargs", [{"history": []}])
        margins = [float(np.subtract(*score_rows(model, alone))[0]) for model in models]
        own = margins.index(max(margins))  # log sigmoid rises
        assert [with_past.chosen[number], with_past.rejected[number]] == pytest.approx(scored[own][:, number], abs=1e-5)
    lines = (tmp_path / "run/results/maxmin.jsonl").read_text().splitlines()
    assert [json.loads(line)["reward_chosen"] for line in lines] == pytest.approx(with_past.chosen, abs=1e-5)


@pytest.mark.slow
def test_an_interruption_costs_one_training(run, trainings, tmp_path):
    seen, stop_at = trainings
    stop_at[0] = 4
    with pytest.raises(KeyboardInterrupt):
        run(**MAXMIN)()
    assert not (tmp_path / "run/models/maxmin").exists()
    seen.clear()
    stop_at[0] = None
    run(**MAXMIN)()
    assert [title for title, *_ in seen] == TRAININGS[3:]
    resumed = files_of(tmp_path / "run/models/maxmin")
    (tmp_path / "run").rename(tmp_path / "resumed")
    run(**MAXMIN)()
    whole = files_of(tmp_path / "run/models/maxmin")
    assert {name for name in whole if "trainer_state" not in name and "training_args" not in name}
    for name in whole:
        if name.endswith((".safetensors", FACTS)):
            assert whole[name] == resumed[name], name


def test_p_rlhf_in_a_run_serves_new_users_as_the_generic_one_with_their_past_pairs(run, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "trl_pafo.pipeline.trainings.train_and_save",
        lambda made, out, title: (seen.setdefault(title, made), train_and_save(made, out, title)),
    )
    results = run(methods=["p_rlhf"], reference="p_rlhf")()
    trainer = seen["P-RLHF"]
    train, test = (load_prepared(tmp_path / "run/data")[split] for split in ("train", "test"))
    assert trainer.users == sorted(set(train["user"]))
    assert trainer.state.global_step == 2
    assert not set(test["user"]) & set(trainer.users)
    folder = tmp_path / "run/models/p_rlhf"
    with_past, without = score_rows(folder, test), score_rows(folder, without_history(test))
    assert np.abs(with_past.chosen - without.chosen).min() > 0
    assert results["methods"]["p_rlhf"]["num_users/majority"] > 0
    lines = (tmp_path / "run/results/p_rlhf.jsonl").read_text().splitlines()
    assert [json.loads(line)["reward_chosen"] for line in lines] == pytest.approx(with_past.chosen, abs=1e-5)
    assert "tokens of its own" in (folder / "README.md").read_text()
