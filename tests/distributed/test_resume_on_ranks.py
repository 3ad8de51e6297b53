"""A training on two processes that goes on from a checkpoint has the losses and weights of the unbroken one."""

import json
from pathlib import Path

import pytest
import resume_on_ranks as ranks
from helpers.parts import make_model
from launcher import launch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["ddp", "zero2"])
def run(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)
    launch(Path(ranks.__file__), 2, make_model("encoder", out / "model"), str(out), mode=request.param, timeout=600)
    return request.param, [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_losses_and_weights_are_those_of_the_unbroken_training(run):
    _, seen = run
    for rank in seen:
        assert len(set(rank["unbroken"]["losses"])) == ranks.STEPS
        assert rank["resumed"]["losses"] == rank["unbroken"]["losses"]
        assert rank["resumed"]["weights"] == rank["unbroken"]["weights"]


def test_they_depend_on_the_random_numbers(run):
    """Else the test above could not fail."""
    _, seen = run
    kept = ranks.KEPT_AFTER
    assert seen[0]["forgetful"]["losses"][:kept] == seen[0]["unbroken"]["losses"][:kept]
    assert seen[0]["forgetful"]["losses"][kept:] != seen[0]["unbroken"]["losses"][kept:]


def test_a_checkpoint_is_complete_with_the_parts_of_all_processes(run):
    mode, seen = run
    for rank in seen:
        assert Path(rank["last"]).name == f"checkpoint-{ranks.KEPT_AFTER}"
        assert {"rng_state_0.pth", "rng_state_1.pth", "model.safetensors"} <= set(rank["files"])
        parts = [name for name in rank["files"] if name.endswith("optim_states.pt")]
        assert len(parts) == (2 if mode == "zero2" else 0)


def test_it_really_was_this_mode(run):
    mode, seen = run
    wanted = {"ddp": ("DistributedDataParallel", None), "zero2": ("DeepSpeedEngine", 2)}[mode]
    for rank in seen:
        for training in ("unbroken", "resumed"):
            assert wanted[0] in rank[training]["wrapper"]
            assert rank[training]["stage"] == wanted[1]
