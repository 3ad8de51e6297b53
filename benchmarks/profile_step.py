"""Where the time of a training step goes: kernels by kind, for RewardTrainer and for PAFORewardTrainer with everything on.

    OMP_NUM_THREADS=2 python benchmarks/profile_step.py --source dsp --data_path DSP_FILE --pairs 32

`torch.profiler` over a few steps of each side, on the same pairs, model and batch as `benchmarks/reward_training.py`.
"""

import argparse
import re
import tempfile
from collections import Counter
from pathlib import Path

import datasets
import transformers
from measuring import silence
from reward_training import make_parser, make_rows, make_trainer
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from trl_pafo.models import materialize_model

KINDS = {
    "attention": r"attention|softmax|bmm",
    "matrices": r"mm$|linear",
    "optimizer, norm of the gradient": r"adam|Optimizer|norm|foreach",
    "embeddings": r"embedding|index",
    "copies": r"copy_|cat$|clone|contiguous|fill_|zero_|slice|split",
    "other kernels": r"^aten::",
}
"""Kinds of kernels, by the first pattern that a name matches; what is left is Python and the profiler."""


class FromSecondStep(TrainerCallback):
    """Begins to profile when the first step is done, which sets up what later ones use."""

    def __init__(self, profiler: profile):
        self.profiler = profiler

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == 1:
            self.profiler.start()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.profiler.stop()


def seconds_by_kind(side: str, base: str, rows: datasets.Dataset, options: argparse.Namespace, folder: str) -> Counter[str]:
    trainer = silence(make_trainer(side, base, rows, options, folder, max_steps=options.steps + 1))
    profiler = profile(activities=[ProfilerActivity.CPU])
    trainer.add_callback(FromSecondStep(profiler))
    trainer.train()
    found: Counter[str] = Counter()
    for event in profiler.key_averages():
        kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, event.key)), "the rest")
        found[kind] += event.self_cpu_time_total / 1e6 / options.steps
    return found


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=3)
    parser.set_defaults(sides=["RewardTrainer", "prefix sharing", "everything"], pairs=32)
    options = parser.parse_args()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    rows = make_rows(options)
    with tempfile.TemporaryDirectory() as folder:
        base = str(Path(folder) / "base")
        materialize_model(options.model, base, options.layers, options.seed)
        found = {side: seconds_by_kind(side, base, rows, options, folder) for side in options.sides}
    print("\n| seconds a step | " + " | ".join(found) + " |\n| --- |" + " ---: |" * len(found))
    for kind in [*KINDS, "the rest"]:
        print(f"| {kind} | " + " | ".join(f"{seconds[kind]:.2f}" for seconds in found.values()) + " |")
    print("| **all** | " + " | ".join(f"**{sum(seconds.values()):.2f}**" for seconds in found.values()) + " |")


if __name__ == "__main__":
    main()
