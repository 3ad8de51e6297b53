"""Shared rows on two processes, in the wrappers of every launcher, against two rows in the same one."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import share_on_ranks as ranks
from helpers.parts import make_model
from helpers.rounding import rounding
from launcher import launch

SHARDED = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed"),
]


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("ddp", "lora"),
        pytest.param("ddp", "full", marks=pytest.mark.slow),
        pytest.param("fsdp2", "full", marks=pytest.mark.slow),
        pytest.param("fsdp2", "lora", marks=pytest.mark.slow),
        pytest.param("zero3", "full", marks=SHARDED),
        pytest.param("zero3", "lora", marks=SHARDED),
    ],
)
def test_the_same_numbers_as_with_two_rows(mode, kind, tmp_path):
    model = make_model("decoder", tmp_path / "model")
    launch(Path(ranks.__file__), 2, model, str(tmp_path), kind, mode=mode)
    for rank in range(2):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        on, off = found["on"], found["off"]
        assert (on["share"], off["share"]) == (True, False)
        assert on["rows"] == [4]  # pairs of a process, one row each
        assert off["rows"] == []
        assert len(on["logs"]) == ranks.NUM_STEPS
        for ours, theirs in zip(on["logs"], off["logs"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
            assert ours["num_tokens"] == theirs["num_tokens"]
        assert on["logs"][0]["loss"] == pytest.approx(off["logs"][0]["loss"], abs=rounding())
        np.testing.assert_allclose(on["rewards"], off["rewards"], atol=1e-3)
        assert np.ptp(off["rewards"]) > 0.1
        wrapper = {"ddp": "DistributedDataParallel", "fsdp2": "FSDPModule", "zero3": "DeepSpeedEngine"}[mode]
        assert wrapper in on["wrapper"]["classes"]
