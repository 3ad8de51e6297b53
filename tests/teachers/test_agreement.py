"""How far teachers agree with the labels of their own groups. (When it is logged: test_margins.py)"""

import logging
import math

import numpy as np
import pytest
import torch
from accelerate import PartialState
from helpers.parts import make_model, make_pairs
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


def test_sums_of_all_processes_are_added_up_and_each_group_is_warned_of_once(caplog):
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
    assert "assigned to the wrong groups" in record.getMessage()


@pytest.mark.parametrize("streams", [False, True])
def test_a_training_on_labels_that_its_teachers_contradict_warns_and_logs_it(decoder, training, tmp_path, caplog, streams):
    rows = make_pairs(history=0)
    teachers = {
        group: AutoModelForSequenceClassification.from_pretrained(make_model("decoder", tmp_path / group, seed=seed))
        for seed, group in enumerate(["majority", "minority"], 1)
    }

    def make(rows) -> PAFORewardTrainer:
        args = PAFOConfig(str(tmp_path / "out"), num_history=0, **training)
        return PAFORewardTrainer(decoder, args, train_dataset=rows, teachers=teachers)

    prefers_chosen = np.asarray(make(rows).train_dataset["teacher_margin"]) > 0
    caplog.clear()
    swapped = [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if prefers else row
        for row, prefers in zip(rows, prefers_chosen, strict=True)
    ]
    rows = rows.from_list(swapped).shuffle(seed=0)
    trainer = make(rows.to_iterable_dataset() if streams else rows)
    trainer.train()
    assert [found.share for found in trainer.teacher_agreement] == [0.0, 0.0]
    assert sum(found.num_pairs for found in trainer.teacher_agreement) == (16 if streams else 30)
    logged = [entry["step"] for entry in trainer.state.log_history if "teacher_accuracy/minority" in entry]
    assert logged == ([1, 2, 3, 4, 4] if streams else [1])
    assert caplog.text.count("The teacher of majority prefers the chosen response in 0.0%") == 1
