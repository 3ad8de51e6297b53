"""What each process does in test_batches_on_ranks.py: train by length and at random, and go on within an epoch.

Arguments: folder of the model, output folder, names of the ways to make batches.
"""

import json
import os
import sys
from pathlib import Path

from launcher import leave

sys.path.insert(0, str(Path(__file__).parents[1]))  # helpers

from datasets import Dataset
from helpers.parts import make_pairs
from train_on_ranks import options, wrapper_of

from trl_pafo import PAFOConfig, PAFORewardTrainer

WAYS = {
    "shared": {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 3, "prefix_sharing": "on"},
    "grouped": {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 3},
    "random": {"per_device_train_batch_size": 3},
}
RATE = 0.05


def numbered_pairs() -> Dataset:
    """Pairs of unequal length whose `margin` is their number, with margins of a teacher."""
    rows = make_pairs()
    words = [row["chosen"] + " soup tea rain" * (3 * (i % 7)) for i, row in enumerate(rows)]
    rows = rows.remove_columns("chosen").add_column("chosen", words)
    rows = rows.add_column("margin", [i / 1000 for i in range(len(rows))])
    return rows.add_column("teacher_margin", [0.5 * (i % 5 - 1) for i in range(len(rows))])


def arguments(out: Path, num_processes: int, way: str) -> PAFOConfig:
    more = {"max_steps": -1, "num_train_epochs": 2, "optim": "sgd", "learning_rate": RATE, "lr_scheduler_type": "constant"}
    more |= {"max_grad_norm": 0.0, "prefix_sharing": "off", "logging_steps": 1, **WAYS[way]}
    return options(out / way, num_processes, **more)


def train(model: str, args: PAFOConfig, **kwargs) -> tuple[PAFORewardTrainer, list]:
    """The trainer after training, and the numbers of the pairs of each batch, step by step."""
    trainer = PAFORewardTrainer(model, args, train_dataset=numbered_pairs())
    steps = []
    get_batches = trainer.get_batch_samples

    def watch(*given):
        batches, num_items = get_batches(*given)
        steps.append([(1000 * batch["margin"]).round().int().tolist() for batch in batches])
        return batches, num_items

    trainer.get_batch_samples = watch
    trainer.train(**kwargs)
    return trainer, steps


def main(model: str, out: Path, way: str, goes_on: bool) -> dict:
    num_processes = int(os.environ["WORLD_SIZE"])
    args = arguments(out, num_processes, way)
    if goes_on:
        args.save_strategy, args.save_steps = "steps", 1
    trainer, steps = train(model, args)
    found = {
        "steps": steps,
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        "max_steps": trainer.state.max_steps,
        "wrapper": wrapper_of(trainer),
    }
    trainer.save_model(str(out / way / "trained"))
    if goes_on:
        half = trainer.state.max_steps // 2
        args = arguments(out, num_processes, way)
        found["again"] = train(model, args, resume_from_checkpoint=f"{args.output_dir}/checkpoint-{half + 1}")[1]
    return found


if __name__ == "__main__":
    goes_on = "ACCELERATE_TORCH_DEVICE" not in os.environ
    out = Path(sys.argv[2])
    found = {way: main(sys.argv[1], out, way, goes_on) for way in sys.argv[3:]}
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))
    leave()
