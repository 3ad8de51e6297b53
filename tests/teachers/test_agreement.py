"""How far teachers agree with the labels of their own groups: numbers, the warning, and where they are kept."""

import logging
import math

import numpy as np
import pytest
import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from helpers.parts import make_model, make_pairs
from helpers.rounding import rounding
from transformers import AutoModelForSequenceClassification

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.teachers.agreement import Agreement, TeacherAgreement


def test_only_labeled_pairs_of_the_own_group_count():
    agreement = TeacherAgreement(["a", "b", "c"])
    agreement.add(
        torch.tensor([1.0, -3.0, 0.0, 5.0, 7.0]),
        torch.tensor([True, True, True, False, True]),
        torch.tensor([0, 0, 1, 1, -1]),
    )
    logs = agreement.reduce()
    assert agreement.found[:2] == [Agreement("a", 2, 0.5, -1.0), Agreement("b", 1, 0.5, 0.0)]  # a tie is half
    assert agreement.found[2].num_pairs == 0
    assert math.isnan(logs.pop("teacher_accuracy/c"))
    assert math.isnan(logs.pop("teacher_margin/c"))
    assert logs == {"teacher_accuracy/a": 0.5, "teacher_margin/a": -1.0, "teacher_accuracy/b": 0.5, "teacher_margin/b": 0.0}


def test_without_groups_all_rows_are_counted_together():
    agreement = TeacherAgreement()
    agreement.add(torch.tensor([1.0, 2.0, -6.0]))
    assert agreement.reduce() == {"teacher_accuracy": pytest.approx(2 / 3), "teacher_margin": -1.0}
    assert str(agreement.found[0]) == (
        "The teacher margins prefer the chosen response in 66.7% of all 3 labeled pairs (mean margin -1.000)"
    )


def test_sums_of_all_processes_are_added_up_and_each_group_is_told_once(caplog):
    PartialState(cpu=True)  # the logger asks which process this is
    agreement = TeacherAgreement(["a"])
    agreement.add(torch.tensor([-1.0]), group_id=torch.tensor([0]))
    other = torch.tensor([[3.0, 3.0, 6.0]], dtype=torch.float64)  # on another process
    with caplog.at_level(logging.WARNING):
        assert agreement.reduce(lambda sums: torch.cat([sums, other])) == {"teacher_accuracy/a": 0.75, "teacher_margin/a": 1.25}
        assert not caplog.records
        agreement.reduce()
        agreement.reduce()
    (record,) = caplog.records
    assert "The teacher of a prefers the chosen response in 0.0% of its group's 1 labeled pairs" in record.getMessage()
    assert "given to one another's groups" in record.getMessage()


@pytest.fixture
def teachers(tmp_path) -> dict[str, AutoModelForSequenceClassification]:
    return {
        g: AutoModelForSequenceClassification.from_pretrained(make_model("decoder", tmp_path / g, seed=s))
        for s, g in enumerate(["majority", "minority"], 1)
    }


@pytest.fixture
def labeled(decoder, training, teachers, tmp_path) -> Dataset:
    """Pairs whose labels are those of the teachers of their groups."""
    rows = make_pairs(history=0)
    trainer = PAFORewardTrainer(
        decoder, PAFOConfig(str(tmp_path / "label"), num_history=0, **training), train_dataset=rows, teachers=teachers
    )
    margins = np.asarray(trainer.train_dataset["teacher_margin"][:])
    texts = {
        side: [rows[row][side if margins[row] > 0 else other] for row in range(len(rows))]
        for side, other in (("chosen", "rejected"), ("rejected", "chosen"))
    }
    for side, column in texts.items():
        rows = rows.remove_columns(side).add_column(side, column)
    return rows


@pytest.fixture
def train(decoder, training, tmp_path):
    def run(rows, teachers=None, resume=None, **more) -> PAFORewardTrainer:
        args = PAFOConfig(str(tmp_path / "out"), **{**training, "num_history": 0, "max_steps": 3, "logging_steps": 1, **more})
        trainer = PAFORewardTrainer(decoder, args, train_dataset=rows, teachers=teachers)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def logged(trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_swapped_teachers_are_told_before_the_training(labeled, teachers, train, caplog):
    """The labels of each group are those of its own teacher."""
    right = train(labeled, teachers)
    assert [found.share for found in right.teacher_agreement] == [1.0, 1.0]
    assert logged(right, "teacher_accuracy/minority") == [1.0]  # once: it does not change
    assert logged(right, "teacher_margin/minority")[0] > 0
    assert "Likely causes" not in caplog.text
    margins = np.asarray(right.train_dataset["teacher_margin"][:])
    minority = np.asarray(labeled["group"][:]) == "minority"
    assert right.teacher_agreement[1].margin == pytest.approx(margins[minority].mean(), abs=rounding(margins))
    flipped = labeled.rename_columns({"chosen": "rejected", "rejected": "chosen"})
    wrong = train(flipped, teachers)
    assert [found.share for found in wrong.teacher_agreement] == [0.0, 0.0]
    for group in ("majority", "minority"):
        assert f"The teacher of {group} prefers the chosen response in 0.0% of its group's" in caplog.text
    swapped = train(labeled, {"majority": teachers["minority"], "minority": teachers["majority"]})
    assert min(found.share for found in swapped.teacher_agreement) < 1.0


def test_margins_of_a_column_are_judged_too(train, caplog):
    rows = make_pairs(history=0)
    groups = np.asarray(rows["group"][:])
    margins = np.where(groups == "minority", -2.0, 1.0)
    trainer = train(rows.add_column("teacher_margin", margins))
    assert [(found.group, found.share, found.margin) for found in trainer.teacher_agreement] == [
        ("majority", 1.0, 1.0),
        ("minority", 0.0, -2.0),
    ]
    assert "The teacher of minority prefers" in caplog.text
    assert "The teacher of majority prefers" not in caplog.text


def test_a_stream_is_judged_by_what_was_scored(labeled, teachers, train, caplog):
    flipped = labeled.rename_columns({"chosen": "rejected", "rejected": "chosen"}).shuffle(seed=0)
    trainer = train(flipped.to_iterable_dataset(), teachers)
    shares = [logged(trainer, f"teacher_accuracy/{group}") for group in ("majority", "minority")]
    assert len(shares[0]) == 4  # three steps and the end
    assert all(share == 0.0 or math.isnan(share) for series in shares for share in series)
    counted = sum(found.num_pairs for found in trainer.teacher_agreement)
    assert counted == 3 * trainer.args.per_device_train_batch_size
    assert caplog.text.count("The teacher of majority prefers") == 1


def test_a_stream_of_margins(train):
    rows = make_pairs(history=0)
    rows = rows.remove_columns("group").add_column("teacher_margin", [1.0] * len(rows))
    trainer = train(rows.to_iterable_dataset())
    assert isinstance(trainer.train_dataset, IterableDataset)
    assert [(found.group, found.share) for found in trainer.teacher_agreement] == [(None, 1.0)]


def test_a_resumed_training_does_not_say_it_twice(labeled, teachers, train, tmp_path):
    train(labeled, teachers, max_steps=2, save_steps=2, save_strategy="steps")
    trainer = train(labeled, teachers, resume=str(tmp_path / "out/checkpoint-2"), max_steps=4)
    assert [entry["step"] for entry in trainer.state.log_history if "teacher_accuracy/majority" in entry] == [1]
    assert trainer.state.global_step == 4
    swapped = {"majority": teachers["minority"], "minority": teachers["majority"]}
    trainer = train(labeled, swapped, resume=str(tmp_path / "out/checkpoint-2"), max_steps=4)
    assert [entry["step"] for entry in trainer.state.log_history if "teacher_accuracy/majority" in entry] == [1, 3]
    assert logged(trainer, "teacher_margin/majority")[-1] == trainer.teacher_agreement[0].margin


def test_nothing_is_said_where_nothing_is_distilled(train):
    trainer = train(make_pairs(history=0))
    assert trainer.teacher_agreement == []
    assert not logged(trainer, "teacher_accuracy")
