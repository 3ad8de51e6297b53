"""On two processes, the weights of the best checkpoint by groups are the ones that stay."""

from pathlib import Path

import pytest
from helpers.parts import make_pairs
from helpers.ranks import assert_wrapped, launch, options, wrapper_of

from trl_pafo import PAFORewardTrainer

METRIC = "eval_accuracy_group_mean"
pytestmark = pytest.mark.slow


def train(out: Path, model: str) -> dict:
    more = {"best_checkpoint": "group_balanced", "save_strategy": "steps", "eval_steps": 1, "learning_rate": 3e-2}
    args = options(out / "run", max_steps=6, **more)
    trainer = PAFORewardTrainer(model, args, train_dataset=make_pairs(), eval_dataset=make_pairs(num_users=8, seed=1))
    trainer.train()
    values = {log["step"]: log[METRIC] for log in trainer.state.log_history if METRIC in log}
    expected = max(values, key=values.__getitem__)
    again = trainer.evaluate()[METRIC]
    best = trainer.state.best_global_step
    return {"best": best, "expected": expected, "again": again, "highest": values[expected], "wrapper": wrapper_of(trainer)}


@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_the_weights_of_the_best_step_stay(mode, decoder, tmp_path):
    one, other = launch(train, 2, tmp_path, decoder, mode=mode)
    assert one == other
    assert one["best"] == one["expected"] < 6
    assert one["again"] == one["highest"]
    assert_wrapped(one["wrapper"], mode)
