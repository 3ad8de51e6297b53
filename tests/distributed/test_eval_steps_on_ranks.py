"""Evaluations in the middle of a training on two processes: accuracies of the groups are those of one, and the training goes on as without.

Trackers get the same keys on any number of processes.
"""

from pathlib import Path

import pytest
from helpers.parts import make_model, make_pairs
from helpers.ranks import NUM_STEPS, assert_wrapped, launch, needs_deepspeed, options, training_pairs, wrapper_of
from helpers.trackers import NAMES, logged, trackers

from trl_pafo import PAFORewardTrainer

NUM_PAIRS = 9  # an uneven last batch on one process, copies of pairs on two


def train(out: Path, model: str) -> dict:
    found = {}
    for strategy in ("steps", "no"):
        with trackers() as tracked:
            trainer = PAFORewardTrainer(
                model,
                options(out / strategy, eval_strategy=strategy, eval_steps=1, learning_rate=1e-2, report_to=[*NAMES]),
                train_dataset=training_pairs("column"),
                eval_dataset=make_pairs(num_users=3, num_minority=1, pairs_per_user=NUM_PAIRS // 3, seed=5),
            )
            trainer.train()
        logs = trainer.state.log_history
        found[strategy] = {
            "losses": [log["loss"] for log in logs if "loss" in log],
            "evaluations": [
                {name: value for name, value in log.items() if name.startswith(("eval_accuracy", "eval_margin", "eval_loss"))}
                for log in logs
                if "eval_loss" in log
            ],
            "wrapper": wrapper_of(trainer),
            "logged": logged(logs),
            "tracked": tracked,
        }
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> tuple[str, dict]:
    """A model, and what one process finds."""
    out = tmp_path_factory.mktemp("one")
    model = make_model("decoder", out / "model")
    return model, train(out, model)


def test_every_tracker_gets_every_number(one):
    _, found = one
    expected = found["steps"]["logged"]
    for key in ("train/loss", "train/accuracy/minority", "eval/accuracy/minority", "eval/accuracy_group_min"):
        assert expected[key] == NUM_STEPS
    assert found["steps"]["tracked"] == dict.fromkeys(NAMES, expected)


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param("ddp", marks=pytest.mark.slow),
        pytest.param("fsdp2", marks=pytest.mark.slow),
        pytest.param("zero3", marks=[pytest.mark.slow, needs_deepspeed]),
    ],
)
def test_groups_are_evaluated_as_by_one_process_and_the_training_goes_on(mode, one, tmp_path):
    model, alone = one
    seen = launch(train, 2, tmp_path, model, mode=mode)
    assert seen[0]["steps"]["tracked"] == alone["steps"]["tracked"]
    assert seen[1]["steps"]["tracked"] == {name: {} for name in NAMES}
    for found in seen:
        assert_wrapped(found["steps"]["wrapper"], mode)
        assert found["steps"]["losses"] == found["no"]["losses"]  # to the last bit
        assert found["steps"]["losses"] == pytest.approx(alone["steps"]["losses"], abs=1e-4)
        assert found["no"]["evaluations"] == []
        assert len(found["steps"]["evaluations"]) == NUM_STEPS
        for evaluation, expected in zip(found["steps"]["evaluations"], alone["steps"]["evaluations"], strict=True):
            accuracies = {name: value for name, value in expected.items() if name.startswith("eval_accuracy")}
            assert {"eval_accuracy/majority", "eval_accuracy/minority", "eval_accuracy_group_min"} <= accuracies.keys()
            assert {name: evaluation[name] for name in accuracies} == accuracies
            assert evaluation == pytest.approx(expected, abs=1e-3)
    changing = [evaluation["eval_accuracy/minority"] for evaluation in alone["steps"]["evaluations"]]
    assert len(set(changing)) > 1, changing  # else a model that is not the trained one would pass
