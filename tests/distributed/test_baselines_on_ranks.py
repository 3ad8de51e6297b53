"""Baselines on one and two processes: the same losses, weights of groups and trained weights."""

import os
from pathlib import Path

import numpy as np
import pytest
from helpers.parts import make_model, make_pairs
from helpers.ranks import assert_wrapped, launch, needs_deepspeed, options, wrapper_of
from helpers.rounding import rounding

from trl_pafo.baselines import MGDARewardTrainer, PRLHFRewardTrainer
from trl_pafo.baselines.table import TRAINERS
from trl_pafo.baselines.trainer import BaselineTrainer
from trl_pafo.errors import ConfigError

NUM_STEPS = 5
# Large steps, so that weights of groups matter within these few.
CONSTANTS = {"group_dro": {"eta": 0.5}, "grpo_robust": {"eta": 0.05}}
REFUSED = {
    MGDARewardTrainer: "MGDA needs the gradient of each group by itself",
    PRLHFRewardTrainer: "P-RLHF adds rows to the embeddings",
}
"""Trainers that only DDP launches."""


def train(out: Path, model: str, mode: str) -> dict:
    found = {}
    kinds = {method: entry.load() for method, entry in TRAINERS.items()}
    for method, kind in kinds.items():
        if not issubclass(kind, BaselineTrainer):
            continue
        if mode != "ddp" and kind in REFUSED:
            with pytest.raises(ConfigError, match=REFUSED[kind]):
                kind(model, options(out / method), train_dataset=make_pairs())
            continue
        # Two processes draw the same pairs as one: the batches of a step are dealt out in turn.
        args = options(
            out / method, max_steps=NUM_STEPS, learning_rate=1e-2, max_grad_norm=0.0, train_sampling_strategy="sequential"
        )
        rows = make_pairs(num_users=8, history=0, pairs_per_user=5).shuffle(seed=3)
        trainer = kind(model, args, train_dataset=rows, **CONSTANTS.get(method, {}))
        trainer.train()
        logs = [log for log in trainer.state.log_history if "loss" in log]
        unwrapped = trainer.accelerator.unwrap_model(trainer.model)
        found[method] = {
            "losses": [log["loss"] for log in logs],
            "group_weights": [[value for key, value in log.items() if key.startswith("group_weight/")] for log in logs],
            "wrapper": wrapper_of(trainer),
        }
        if mode == "ddp":
            found[method]["gradients"] = [log["grad_norm"] for log in logs]
            weights = np.concatenate([p.detach().double().flatten().numpy() for p in unwrapped.parameters()])
            found[method]["weights"] = weights.tolist()
    found["processes"] = int(os.environ["WORLD_SIZE"])
    return found


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param("ddp", marks=pytest.mark.slow),
        pytest.param("fsdp2", marks=pytest.mark.slow),
        pytest.param("zero2", marks=[pytest.mark.slow, needs_deepspeed]),
        pytest.param("zero3", marks=[pytest.mark.slow, needs_deepspeed]),
    ],
)
def test_losses_and_weights_are_the_same_on_any_number_of_processes(mode, tmp_path):
    model = make_model("decoder", tmp_path / "model")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (alone,) = launch(train, 1, tmp_path / "one", model, "ddp")
    first, second = launch(train, 2, tmp_path / "two", model, mode, mode=mode)
    assert (alone.pop("processes"), first.pop("processes"), second.pop("processes")) == (1, 2, 2)
    assert first.keys() == second.keys() == alone.keys() - ({"mgda", "p_rlhf"} if mode != "ddp" else set())
    for method in first:
        expected = alone[method]
        for found in (first[method], second[method]):
            assert found["losses"] == pytest.approx(expected["losses"], abs=10 * rounding()), method
            assert_wrapped(found["wrapper"], mode)
            np.testing.assert_allclose(found["group_weights"], expected["group_weights"], rtol=1e-4, err_msg=method)
            if mode == "ddp":
                assert found["gradients"] == pytest.approx(expected["gradients"], rel=1e-2), method
                np.testing.assert_allclose(found["weights"], expected["weights"], atol=2e-3, err_msg=method)
    assert len({tuple(np.round(each["losses"], 4)) for each in alone.values()}) == len(alone)
