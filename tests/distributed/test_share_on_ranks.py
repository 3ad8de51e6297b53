"""Shared rows on two processes, in the wrappers of every launcher, against two rows in the same one."""

from pathlib import Path

import numpy as np
import pytest
from helpers.parts import make_model, make_pairs, with_margins
from helpers.ranks import assert_wrapped, launch, lora, needs_deepspeed, options, wrapper_of
from helpers.rounding import rounding

from trl_pafo import PAFORewardTrainer
from trl_pafo.prefix_sharing.forward import PairHead

NUM_STEPS = 6


def train(out: Path, model: str, kind: str, sharing: str) -> dict:
    args = options(out / sharing, prefix_sharing=sharing, max_steps=NUM_STEPS)
    trainer = PAFORewardTrainer(
        model,
        args,
        train_dataset=with_margins(make_pairs()),
        peft_config=lora() if kind == "lora" else None,
    )
    batches: list[int] = []
    forward = PairHead.__call__

    def counting(self, module, inputs, output):
        batches.append(len(output))
        return forward(self, module, inputs, output)

    PairHead.__call__ = counting  # type: ignore[method-assign]
    try:
        trainer.train()
    finally:
        PairHead.__call__ = forward  # type: ignore[method-assign]
    output = trainer.predict(make_pairs(num_users=3, num_minority=1, pairs_per_user=3, seed=5))
    return {
        "share": trainer.prefix_sharing.share,
        "rows": sorted(set(batches)),
        "logs": [
            {k: log[k] for k in ("loss", "num_tokens", "margin", "grad_norm")} for log in trainer.state.log_history[:NUM_STEPS]
        ],
        "rewards": output.predictions.tolist(),
        "wrapper": wrapper_of(trainer),
    }


def train_both(out: Path, model: str, kind: str) -> dict:
    return {sharing: train(out, model, kind, sharing) for sharing in ("on", "off")}


SHARDED = [pytest.mark.slow, needs_deepspeed]


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        pytest.param("ddp", "lora", marks=pytest.mark.slow),
        pytest.param("ddp", "full", marks=pytest.mark.slow),
        pytest.param("fsdp2", "full", marks=pytest.mark.slow),
        pytest.param("fsdp2", "lora", marks=pytest.mark.slow),
        pytest.param("zero3", "full", marks=SHARDED),
        pytest.param("zero3", "lora", marks=SHARDED),
    ],
)
def test_the_same_numbers_as_with_two_rows(mode, kind, tmp_path):
    model = make_model("decoder", tmp_path / "model")
    for found in launch(train_both, 2, tmp_path, model, kind, mode=mode):
        on, off = found["on"], found["off"]
        assert (on["share"], off["share"]) == (True, False)
        assert on["rows"] == [4]  # pairs of a process, one row each
        assert off["rows"] == []
        assert len(on["logs"]) == NUM_STEPS
        for ours, theirs in zip(on["logs"], off["logs"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
            assert ours["num_tokens"] == theirs["num_tokens"]
        assert on["logs"][0]["loss"] == pytest.approx(off["logs"][0]["loss"], abs=rounding())
        np.testing.assert_allclose(on["rewards"], off["rewards"], atol=1e-3)
        assert np.ptp(off["rewards"]) > 0.1
        assert_wrapped(on["wrapper"], mode)
