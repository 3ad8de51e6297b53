"""What each process does in test_resume_on_ranks.py: train with checkpoints, go on from one, and write down what it saw.

Arguments: folder of the model, output folder.
"""

import json
import os
import sys
from pathlib import Path

import torch
from launcher import leave

sys.path.insert(0, str(Path(__file__).parents[1]))  # helpers

from helpers.parts import make_pairs
from transformers import TrainerCallback

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.trainer.checkpoints import last_checkpoint

STEPS, KEPT_AFTER = 6, 3


class Stop(TrainerCallback):
    """Ends the training as a killed process would, but on all processes at once."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == KEPT_AFTER + 1:
            raise KeyboardInterrupt


def train(model: str, out: Path, *callbacks: TrainerCallback, resume: Path | None = None) -> dict:
    rows = make_pairs(history=0)
    args = PAFOConfig(
        str(out),
        max_steps=STEPS,
        save_steps=KEPT_AFTER,
        per_device_train_batch_size=3,
        logging_steps=1,
        learning_rate=1e-2,
        max_length=256,
        disable_dropout=False,  # losses depend on the random numbers of each process
        use_cpu="ACCELERATE_TORCH_DEVICE" not in os.environ,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        eos_token="[SEP]",
        counterfactual_share=0.0,
    )
    margins = [0.5 * (i % 5 - 1) for i in range(len(rows))]
    trainer = PAFORewardTrainer(model, args, train_dataset=rows.add_column("teacher_margin", margins))
    for callback in callbacks:
        trainer.add_callback(callback)
    try:
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    except KeyboardInterrupt:
        return {}
    unwrapped = trainer.accelerator.unwrap_model(trainer.model)
    return {
        "wrapper": [kind.__name__ for kind in type(trainer.model_wrapped).__mro__],
        "stage": getattr(trainer.model_wrapped, "zero_optimization_stage", lambda: None)(),
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        "weights": [parameter.double().sum().item() for parameter in unwrapped.parameters()],
    }


def main(model: str, out: Path) -> dict:
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


if __name__ == "__main__":
    result = main(sys.argv[1], Path(sys.argv[2]))
    (Path(sys.argv[2]) / f"rank{os.environ['RANK']}.json").write_text(json.dumps(result))
    leave()
