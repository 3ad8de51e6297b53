"""Groups and users of any kind give the numbers that the same groups and users give as texts."""

import math

import pytest
import torch
from datasets import ClassLabel, Dataset
from helpers.parts import make_pairs, make_teacher
from helpers.rounding import rounding

from trl_pafo import PAFOConfig, PAFORewardTrainer

NAMES = {"majority": "0", "minority": "1"}


def with_labels(kind: str) -> Dataset:
    """The pairs with the groups 0 and 1, and users that are numbers. (All kinds of columns: tests/data/test_label_columns.py)"""
    rows = make_pairs(history=0)
    group, user = [NAMES[name] for name in rows["group"]], [name.removeprefix("user-") for name in rows["user"]]
    rows = rows.remove_columns(["group", "user"])
    if kind == "names":
        rows = rows.add_column("group", [int(name) for name in group], feature=ClassLabel(names=["zero", "one"]))
        return rows.add_column("user", user)
    of = float if kind == "float" else str
    return rows.add_column("group", list(map(of, group))).add_column("user", list(map(of, user)))


@pytest.fixture
def teachers(tmp_path) -> list[str]:
    return [make_teacher("encoder", tmp_path / "teachers" / str(seed), seed=seed) for seed in (1, 2)]


@pytest.fixture
def build(encoder, training, tmp_path):
    def build(rows, evaluation=None, teachers=None, model=encoder, **more) -> PAFORewardTrainer:
        args = PAFOConfig(
            str(tmp_path / "out"), eos_token="[SEP]", distillation_loss="mse", num_history=0, **{**training, **more}
        )
        return PAFORewardTrainer(model, args, train_dataset=rows, eval_dataset=evaluation, teachers=teachers)

    return build


def logs_of(trainer: PAFORewardTrainer) -> list[dict[str, float]]:
    """What a training with an evaluation at its end logs, times left out."""
    trainer.train()
    trainer.evaluate()
    keep = ("loss", "accuracy", "bradley", "distillation", "margin", "eval_")
    return [
        {key: value for key, value in log.items() if key.startswith(keep) and not key.endswith(("runtime", "per_second"))}
        for log in trainer.state.log_history
    ]


@pytest.mark.parametrize("streams", [False, True])
def test_training_and_evaluation(build, teachers, streams):
    """Losses, margins, accuracies of groups and users: nothing depends on what kind of values the columns hold."""

    def run(kind: str, first: object, second: object) -> list[dict[str, float]]:
        rows = with_labels(kind)
        if streams:  # which no teacher can score before the training
            return logs_of(build(rows.add_column("teacher_margin", [1.0] * len(rows)).to_iterable_dataset(), rows))
        return logs_of(build(rows, rows, {first: teachers[0], second: teachers[1]}))

    expected = run("text", "0", "1")
    assert all(math.isfinite(value) for log in expected for key, value in log.items() if "accuracy/" not in key)
    assert expected[-1]["eval_count/0"] == 20
    assert expected[-1]["eval_count/1"] == 10
    assert "accuracy/0" in expected[0]
    for log, other in zip(run("float", 0, torch.tensor(1.0)), expected, strict=True):
        assert log == pytest.approx(other, rel=rounding(), abs=rounding(), nan_ok=True)
    named = run("names", "zero", "one")
    renamed = [{key.replace("/zero", "/0").replace("/one", "/1"): value for key, value in log.items()} for log in named]
    for log, other in zip(renamed, expected, strict=True):
        assert log == pytest.approx(other, rel=rounding(), abs=rounding(), nan_ok=True)
