"""A training on two processes that resumes from a checkpoint has the losses and weights of the unbroken one."""

from pathlib import Path

import pytest
import torch
from helpers.parts import make_model, make_pairs
from helpers.ranks import assert_wrapped, launch, options, wrapper_of
from transformers import TrainerCallback

from trl_pafo import PAFORewardTrainer
from trl_pafo.trainer.checkpoints import last_checkpoint

STEPS, KEPT_AFTER = 7, 5  # of 4 steps an epoch: it goes on within the second


class Stop(TrainerCallback):
    """Ends the training as a killed process would, but on all processes at once."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == KEPT_AFTER + 1:
            raise KeyboardInterrupt


def train(model: str, out: Path, *callbacks: TrainerCallback, resume: Path | None = None) -> dict:
    args = options(
        out,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=KEPT_AFTER,
        learning_rate=1e-2,
        disable_dropout=False,  # losses depend on the random numbers of each process
        eos_token="[SEP]",
    )
    rows = make_pairs()
    rows = rows.add_column("teacher_margins", [{"majority": 0.1 * i, "minority": 1 - 0.2 * i} for i in range(len(rows))])
    trainer = PAFORewardTrainer(model, args, train_dataset=rows)
    assert trainer._shown is not None  # histories are drawn anew in each epoch
    for callback in callbacks:
        trainer.add_callback(callback)
    try:
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    except KeyboardInterrupt:
        return {}
    unwrapped = trainer.accelerator.unwrap_model(trainer.model)
    return {
        "wrapper": wrapper_of(trainer),
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        "weights": [parameter.double().sum().item() for parameter in unwrapped.parameters()],
    }


def interrupt_and_resume(out: Path, model: str) -> dict:
    found = {"unbroken": train(model, out / "unbroken")}
    train(model, out / "killed", Stop())
    checkpoint = out / f"killed/checkpoint-{KEPT_AFTER}"
    files = sorted(path.name for path in checkpoint.rglob("*") if path.is_file())
    found |= {"files": files, "last": str(last_checkpoint(out / "killed"))}
    found["resumed"] = train(model, out / "killed", resume=checkpoint)
    # Without the state of the random numbers: what the losses would be if it were not restored.
    if torch.distributed.get_rank() == 0:
        for path in checkpoint.glob("rng_state*"):
            path.unlink()
    torch.distributed.barrier()
    found["forgetful"] = train(model, out / "forgetful", resume=checkpoint)
    return found


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["ddp", "zero2"])
def run(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)
    model = make_model("encoder", out / "model")
    return request.param, launch(interrupt_and_resume, 2, out, model, mode=request.param)


def test_losses_and_weights_are_those_of_the_unbroken_training(run):
    _, seen = run
    for rank in seen:
        assert len(set(rank["unbroken"]["losses"])) == STEPS
        assert rank["resumed"]["losses"] == rank["unbroken"]["losses"]
        assert rank["resumed"]["weights"] == rank["unbroken"]["weights"]


def test_they_depend_on_the_random_numbers(run):
    """Else the test above could not fail."""
    _, seen = run
    kept = KEPT_AFTER
    assert seen[0]["forgetful"]["losses"][:kept] == seen[0]["unbroken"]["losses"][:kept]
    assert seen[0]["forgetful"]["losses"][kept:] != seen[0]["unbroken"]["losses"][kept:]


def test_a_checkpoint_is_complete_with_the_parts_of_all_processes(run):
    mode, seen = run
    for rank in seen:
        assert Path(rank["last"]).name == f"checkpoint-{KEPT_AFTER}"
        assert {"rng_state_0.pth", "rng_state_1.pth", "model.safetensors"} <= set(rank["files"])
        parts = [name for name in rank["files"] if name.endswith("optim_states.pt")]
        assert len(parts) == (2 if mode == "zero2" else 0)


def test_it_really_was_this_mode(run):
    mode, seen = run
    for rank in seen:
        for training in ("unbroken", "resumed"):
            assert_wrapped(rank[training]["wrapper"], mode)
