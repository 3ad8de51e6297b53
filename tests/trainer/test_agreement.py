"""How far teachers agree with the labels of their own groups, and that a training says so."""

import logging

import numpy as np
import pytest
from accelerate import PartialState
from helpers.parts import make_pairs, make_teachers

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.trainer.agreement import Agreement, agreement


def test_a_tie_is_half_and_each_group_is_counted_by_itself():
    found = agreement(np.array([1.0, -3.0, 0.0, 7.0], dtype=np.float32), ["a", "a", "b", "b"])
    assert found == [Agreement("a", 2, 0.5, -1.0), Agreement("b", 2, 0.75, 3.5)]
    assert found[0].logs() == {"teacher_accuracy/a": 0.5, "teacher_margin/a": -1.0}


def test_it_is_said_in_a_sentence():
    (found,) = agreement(np.array([1.0, 2.0, -6.0]), 3 * ["all"])
    assert found.logs() == {"teacher_accuracy/all": pytest.approx(2 / 3), "teacher_margin/all": -1.0}
    assert (
        str(found)
        == "The teacher of all prefers the chosen response in 66.7% of its group's 3 labeled pairs (mean margin -1.000)"
    )


def test_a_group_whose_teacher_prefers_the_rejected_responses_is_warned_of(caplog):
    PartialState(cpu=True)  # the logger asks which process this is
    with caplog.at_level(logging.WARNING):
        agreement(np.array([-1.0, 2.0]), ["a", "b"])
    (record,) = caplog.records
    assert "The teacher of a prefers the chosen response in 0.0% of its group's 1 labeled pairs" in record.getMessage()
    assert "assigned to the wrong groups" in record.getMessage()


def test_a_training_on_labels_that_its_teachers_contradict_warns_and_logs_it_once(decoder, training, tmp_path, caplog):
    rows = make_pairs(history=0)
    teachers = make_teachers("decoder", tmp_path)

    def make(rows) -> PAFORewardTrainer:
        args = PAFOConfig(str(tmp_path / "out"), num_history=0, **training)
        return PAFORewardTrainer(decoder, args, train_dataset=rows, teachers=teachers)

    prefers_chosen = np.asarray(make(rows).train_dataset["teacher_margin"]) > 0
    caplog.clear()
    swapped = [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if prefers else row
        for row, prefers in zip(rows, prefers_chosen, strict=True)
    ]
    trainer = make(rows.from_list(swapped).shuffle(seed=0))
    trainer.train()
    assert [(found.share, found.num_pairs) for found in trainer.teacher_agreement] == [(0.0, 20), (0.0, 10)]
    assert [entry["step"] for entry in trainer.state.log_history if "teacher_accuracy/minority" in entry] == [1]
    assert caplog.text.count("The teacher of majority prefers the chosen response in 0.0%") == 1
