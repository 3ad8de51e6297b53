"""Groups and users of any kind give the numbers that the same groups and users give as texts."""

import pytest
import torch
from helpers.parts import make_pairs, make_teacher
from helpers.rounding import rounding

from trl_pafo import PAFOConfig, PAFORewardTrainer

NAMES = {"majority": "0", "minority": "1"}


def test_training_and_evaluation(encoder, training, tmp_path):
    """Losses, margins, accuracies of groups and users. (All kinds of columns: tests/data/test_label_columns.py)"""
    teachers = [make_teacher("encoder", tmp_path / "teachers" / str(seed), seed=seed) for seed in (1, 2)]

    def logs(kind: type, first: object, second: object) -> list[dict[str, float]]:
        rows = make_pairs(history=0)
        group, user = ([kind(n) for n in names] for names in (map(NAMES.get, rows["group"]), (u[-1] for u in rows["user"])))
        rows = rows.remove_columns(["group", "user"]).add_column("group", group).add_column("user", user)
        args = PAFOConfig(str(tmp_path / "out"), eos_token="[SEP]", distillation_loss="mse", num_history=0, **training)
        given = {first: teachers[0], second: teachers[1]}
        trainer = PAFORewardTrainer(encoder, args, train_dataset=rows, eval_dataset=rows, teachers=given)
        trainer.train()
        trainer.evaluate()
        times = ("runtime", "per_second", "preparation_time")
        return [{k: v for k, v in log.items() if not k.endswith(times)} for log in trainer.state.log_history]

    expected = logs(str, "0", "1")
    assert expected[-1]["eval_count/0"] == 20
    assert expected[-1]["eval_count/1"] == 10
    assert "accuracy/0" in expected[0]
    for log, other in zip(logs(float, 0, torch.tensor(1.0)), expected, strict=True):
        assert log == pytest.approx(other, rel=rounding(), abs=rounding(), nan_ok=True)
