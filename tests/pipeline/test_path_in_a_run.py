"""The path of personalized Bradley-Terry in a run: how long each point is trained, what is redone, and what is made of the best point."""

import json
import re

import numpy as np
import pytest
from helpers.parts import StoppedAfter, make_pairs, make_teachers
from helpers.small_runs import train_nothing

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.errors import DataError, RunFolderError
from trl_pafo.evaluation.reference_path import value_of
from trl_pafo.pipeline import run as stages
from trl_pafo.pipeline import trainings
from trl_pafo.pipeline.run import Run
from trl_pafo.pipeline.run_options import optimizer_steps

PATH = {"methods": ["personalized_bt"], "validation_share": 0.3}


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 5},
        {"num_train_epochs": 1.5, "gradient_accumulation_steps": 3},
        {"num_train_epochs": 2, "dataloader_drop_last": True},
        {"num_train_epochs": 1, "gradient_accumulation_steps": 50, "train_sampling_strategy": "group_by_length"},
    ],
)
def test_steps_are_counted_as_the_trainer_counts_them(decoder, training, options, tmp_path):
    args = PAFOConfig(str(tmp_path), **{**training, "max_steps": -1, **options})
    trainer = PAFORewardTrainer(decoder, args, train_dataset=make_pairs(history=0))
    trainer.add_callback(StoppedAfter(0))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.max_steps == optimizer_steps(30, args)


def test_each_training_has_multiples_of_the_steps_of_one_row_a_showing(run, monkeypatch, tmp_path):
    found = {}
    teachers = make_teachers("encoder", tmp_path)

    def remember(trainer, out, title):
        assert trainer.args.run_name == f"run: {title}"  # in a tracker each training has a name of its own
        found[title] = trainer.args.max_steps

    monkeypatch.setattr(trainings, "train_and_save", remember)
    real = Run._train
    train_nothing(monkeypatch)
    monkeypatch.setattr(Run, "_train", real)
    # 40 pairs in batches of 4: 15 steps.
    run(reference_steps=[0.3, 1, 2], max_steps=-1, num_train_epochs=1.5, teachers=teachers)()
    path = {"personalized BT, x0.3": 5, "personalized BT, x1": 15, "personalized BT, x2": 30}
    assert found == {"Bradley-Terry": 15, **path, "PAFO": 15}


def test_pairs_that_are_too_long_are_not_counted(run, monkeypatch, tmp_path):
    train_nothing(monkeypatch)
    options = {**PATH, "max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 1, "history_max_tokens": 100}
    run(**options)()
    with np.load(tmp_path / "run/data/lengths.npz") as lengths:
        number, middle = len(lengths["train"]), int(np.median(lengths["train"]))
        short = int((lengths["train"] <= middle).sum())
    assert short < number
    steps = []
    for max_length in (256, middle):
        made = run(max_length=max_length, overwrite=True, **options)
        made()
        steps.append(made._steps)
    assert steps == [number, short]


def test_another_multiple_trains_itself_alone(run, monkeypatch, tmp_path):
    trained = train_nothing(monkeypatch)
    run(**PATH, reference_steps=[1, 2])()
    assert trained == ["personalized BT, x1", "personalized BT, x2"]
    run(**PATH, reference_steps=[4, 2, 1])()
    run(**PATH, reference_steps=[1, 4])()
    assert trained[2:] == ["personalized BT, x4"]
    kept = {path.name for path in (tmp_path / "run/models").iterdir()}
    assert kept == {"personalized_bt", *(f"personalized_bt_x{multiple}" for multiple in (1, 2, 4))}
    with pytest.raises(RunFolderError, match=r"'personalized_bt@1' of another run \(max_steps: 2 -> 3\)"):
        run(**PATH, reference_steps=[1, 4], max_steps=3)()


def test_what_is_chosen_follows_the_rule_and_the_points(run, monkeypatch, tmp_path, capsys):
    options = {**PATH, "methods": ["personalized_bt", "worst_group_bt", "pafo"], "reference_steps": [1, 2, 4]}
    trained = train_nothing(monkeypatch, group_balanced=2.0, worst_group=4.0)
    run(**options)()
    models = tmp_path / "run/models"
    assert weights(models / "personalized_bt") == b"personalized BT, x2"
    assert weights(models / "worst_group_bt") == b"personalized BT, x4"
    files = [models / name / "model.safetensors" for name in ("personalized_bt", "personalized_bt_x2")]
    assert files[0].samefile(files[1])  # it takes no room
    assert "The reference is chosen." in capsys.readouterr().out
    trained.clear()
    again = train_nothing(monkeypatch, group_balanced=4.0)
    run(**{**options, "methods": options["methods"][::2]}, num_resamples=60)()  # decides no training
    assert weights(models / "personalized_bt") == b"personalized BT, x4"
    assert trained == again == []


def test_best_checkpoint_says_by_which_rule(run, monkeypatch, tmp_path):
    trained = train_nothing(monkeypatch, group_balanced=1.0, overall=2.0)
    options = {**PATH, "reference_steps": [1, 2], "save_strategy": "steps"}
    for rule, chosen in ((None, 1), ("overall", 2)):
        made = run(**options, best_checkpoint=rule)
        made()
        assert weights(tmp_path / "run/models/personalized_bt").decode() == f"personalized BT, x{chosen}"
        assert made.args.eval_strategy == "no"
        assert not made.args.load_best_model_at_end
    assert trained == ["personalized BT, x1", "personalized BT, x2"]  # it decides no training
    assert "best_checkpoint: overall" in (tmp_path / "run/run.yaml").read_text()


def test_held_out_pairs_choose_the_reference_of_all_verdicts(run, tmp_path, capsys):
    results = run(
        methods=["personalized_bt", "worst_group_bt"],
        validation_share=0.3,
        reference_steps=[0.5, 1, 4],
    )()
    folder = tmp_path / "run"
    path = results["path"]
    assert [(point["multiple"], point["steps"]) for point in path["points"]] == [(0.5, 1), (1, 2), (4, 8)]
    for point in path["points"]:
        state = json.loads((folder / f"models/personalized_bt_x{point['multiple']:g}/trainer_state.json").read_text())
        assert state["global_step"] == state["max_steps"] == point["steps"]
        assert {"accuracy/majority", "accuracy/minority"} <= state["log_history"][0].keys()
        rates = [log["learning_rate"] for log in state["log_history"] if "learning_rate" in log]
        assert rates == pytest.approx(
            [0.01 * (1 - step / point["steps"]) for step in range(point["steps"])]
        )  # a schedule of its own
    balanced = {point["multiple"]: value_of("group_balanced", point["validation"]) for point in path["points"]}
    assert balanced[path["chosen"]] == max(balanced.values())
    assert weights(folder / "models/personalized_bt") == weights(folder / f"models/personalized_bt_x{path['chosen']:g}")
    chosen = next(point["test"] for point in path["points"] if point["multiple"] == path["chosen"])
    assert chosen["accuracy/minority"] == results["methods"]["personalized_bt"]["accuracy/minority"]
    assert len({json.dumps(point["test"]) for point in path["points"]}) > 1
    worst = path["best"]["worst_group"]
    assert weights(folder / "models/worst_group_bt") == weights(folder / f"models/personalized_bt_x{worst:g}")
    assert (results["verdicts"]["worst_group_bt"]["verdict"] == "same") is (worst == path["chosen"])
    said = capsys.readouterr().out
    written = [said, *((folder / name).read_text() for name in ("results/results.md", "report.html"))]
    sentence = path["sentence"].split(" (")[0]
    for text in written:
        assert sentence in re.sub("&#39;", "'", text)
    assert "| learning\\_rate | 0.01 |" in (folder / "models/personalized_bt/README.md").read_text()


def test_held_out_pairs_that_no_point_could_read_are_told_before_any_training(run, monkeypatch):
    trained = train_nothing(monkeypatch)
    check = stages.check_run_data

    def longer(data, lengths, *args):
        check(data, {**lengths, "validation": lengths["validation"] + 1000}, *args)

    monkeypatch.setattr(stages, "check_run_data", longer)
    with pytest.raises(DataError, match="pairs of the validation data are longer than the 256 positions of the model"):
        run(**PATH)()
    assert trained == []
