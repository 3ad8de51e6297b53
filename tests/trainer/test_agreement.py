"""How far teachers agree with the labels of their own groups, and that a training says so."""

import numpy as np
from helpers.parts import make_pairs

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.trainer.agreement import Agreement, agreement


def test_a_tie_is_half_and_each_group_is_counted_by_itself():
    found = agreement(np.array([1.0, -3.0, 0.0, 7.0], dtype=np.float32), ["a", "a", "b", "b"])
    assert found == [Agreement("a", 2, 0.5, -1.0), Agreement("b", 2, 0.75, 3.5)]
    assert found[0].logs() == {"teacher_accuracy/a": 0.5, "teacher_margin/a": -1.0}


def test_a_training_on_labels_that_its_teachers_contradict_warns_and_logs_it_once(decoder, training, tmp_path, caplog):
    rows = make_pairs().add_column("teacher_margins", [{"majority": -1.0, "minority": 0.5}] * 30)
    trainer = PAFORewardTrainer(decoder, PAFOConfig(str(tmp_path), **training), train_dataset=rows)
    trainer.train()
    assert trainer.teacher_agreement == [Agreement("majority", 20, 0.0, -1.0), Agreement("minority", 10, 1.0, 0.5)]
    assert [entry["step"] for entry in trainer.state.log_history if "teacher_accuracy/minority" in entry] == [1]
    said = "The teacher of majority prefers the chosen response in 0.0% of its group's 20 labeled pairs (mean margin -1.000)"
    assert caplog.text.count(said) == caplog.text.count("contradicts the labels") == 1
