"""Speed of reward training: PAFORewardTrainer against TRL's RewardTrainer on the same pairs, model, batch and precision.

    OMP_NUM_THREADS=2 python benchmarks/reward_training.py --source dsp --data_path DSP_FILE      personalized pairs
    OMP_NUM_THREADS=2 python benchmarks/reward_training.py --plain                               nothing is shared
    OMP_NUM_THREADS=2 python benchmarks/reward_training.py --model minilm --layers 3             an encoder, without padding
    OMP_NUM_THREADS=2 python benchmarks/reward_training.py --curve 50                            the losses of 50 steps

All sides train one epoch over the same pairs, in turn, so that whatever else the machine does hits all of them alike; ratios
are taken within a turn, of the time that passes and of that of the processor. Pairs are tokenized before the clock starts. Peak memory is that of a process of its own a side.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from datasets import Dataset
from measuring import common_parser, forget_peak, peak_memory, silence, training_options
from scipy.stats import bootstrap
from transformers import TrainerCallback
from trl import RewardConfig, RewardTrainer

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.data import HistoryCutter, attach_history, render_history
from trl_pafo.data.messages import content_text
from trl_pafo.data.sources import DataArguments, load_source
from trl_pafo.models import load_tokenizer, materialize_model
from trl_pafo.prefix_sharing.choice import attention_weight, count_work, how_rows_attend
from trl_pafo.prefix_sharing.forward import reward_model
from trl_pafo.prefix_sharing.rows import dataset_lengths

SIDES: dict[str, dict[str, Any] | None] = {
    "RewardTrainer": None,
    "all off": {"prefix_sharing": "off", "padding_free": "off"},
    "prefix sharing": {"padding_free": "off"},
    "padding free": {"prefix_sharing": "off"},
    "length grouping": {"prefix_sharing": "off", "padding_free": "off", "train_sampling_strategy": "group_by_length"},
    "everything": {"train_sampling_strategy": "group_by_length"},
}
"""Options of each side; RewardTrainer has none of its own."""


class Clock(TrainerCallback):
    """Seconds of the loop over the batches: those that pass, and those of the processor."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.perf_counter(), time.process_time()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.seconds = time.perf_counter() - self.start[0], time.process_time() - self.start[1]


def make_rows(options: argparse.Namespace) -> Dataset:
    """Pairs with `--history` past pairs of their users in the prompt; `--plain`: responses alone, which share no prefix."""
    data = DataArguments(source=options.source, data_path=options.data_path, max_words=options.max_words)
    rows = load_source(data)["train"].shuffle(seed=options.seed)
    if options.plain:
        rows = rows.select(range(options.pairs)).select_columns(["chosen", "rejected"])
        return rows.map(lambda row: {side: content_text(row[side]) for side in ("chosen", "rejected")})
    rows = attach_history(rows, num_history=options.history, past_only=False).select(range(options.pairs))
    tokenizer = load_tokenizer(options.model)
    return render_history(rows, HistoryCutter(tokenizer)).select_columns(["prompt", "chosen", "rejected", "chat_template_kwargs"])


def make_trainer(side: str, base: str, rows: Dataset, options: argparse.Namespace, folder: str, **changes: Any) -> RewardTrainer:
    args = {**training_options(options, folder), "seed": options.seed, **changes}
    tokenizer = load_tokenizer(options.model)
    HistoryCutter(tokenizer).remember()
    own = SIDES[side]
    if own is None:
        return RewardTrainer(base, RewardConfig(**args), train_dataset=rows, processing_class=tokenizer)
    return PAFORewardTrainer(base, PAFOConfig(**args, **own), train_dataset=rows, processing_class=tokenizer)


def train(trainer: RewardTrainer) -> tuple[float, float]:
    clock = Clock()
    silence(trainer).add_callback(clock)
    trainer.train()
    return clock.seconds


def measure(base: str, rows: Dataset, options: argparse.Namespace, folder: str) -> dict[str, list[tuple[float, float]]]:
    """Seconds of an epoch ([`Clock`]), by side and turn; before the first turn each side takes two steps that do not count."""
    seconds: dict[str, list[tuple[float, float]]] = {side: [] for side in options.sides}
    for side in options.sides:
        train(make_trainer(side, base, rows, options, folder, max_steps=2))
    for turn in range(options.rounds):
        for place in range(len(options.sides)):
            side = options.sides[(place + turn) % len(options.sides)]
            trainer = make_trainer(side, base, rows, options, folder, max_steps=options.steps or -1)
            seconds[side].append(train(trainer))
            print(f"turn {turn + 1} of {options.rounds}, {side}: {seconds[side][-1][0]:.1f} s", file=sys.stderr, flush=True)
    return seconds


def peak_of(side: str, base: str) -> float:
    """GiB at the peak of the training in a process that trains this side alone."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory_of", side, base]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def compare_losses(base: str, rows: Dataset, options: argparse.Namespace, folder: str) -> None:
    """Print how far the losses of every side are from RewardTrainer's, over the same steps on the same batches."""
    logs: dict[str, np.ndarray] = {}
    for side in options.sides:
        if (SIDES[side] or {}).get("train_sampling_strategy"):
            continue  # other batches, so other losses
        trainer = make_trainer(
            side, base, rows, options, folder, max_steps=options.curve, logging_strategy="steps", logging_steps=1
        )
        train(trainer)
        logs[side] = np.array([log["loss"] for log in trainer.state.log_history if "loss" in log])
    reference = logs.pop("RewardTrainer")
    print(
        f"RewardTrainer: loss {reference[0]:.4f} at step 1, {reference[-5:].mean():.4f} in the mean of the last 5 of {options.curve}"
    )
    for side, losses in logs.items():
        print(f"{side}: greatest difference of a step's loss {np.abs(losses - reference).max():.2e}")


def work_lines(rows: Dataset, batch: int, config: Any) -> list[str]:
    """What is computed, padding included, over what must be: in tokens, and in arithmetic, that of attention included."""
    lengths = dataset_lengths(rows)
    attention = how_rows_attend(config, lengths)
    like = lengths[np.argsort(lengths.sum(axis=1))]
    # Alone in its batch, and looking at what it must look at only.
    needed = count_work(lengths, 1, "flex_attention")[1]
    two, shared = count_work(lengths, batch, attention)
    grouped = count_work(like, batch, attention)[1]
    weight = np.array([[1.0, 0.0], [1.0, attention_weight(config)]]).T
    over = [work @ weight / (needed @ weight) for work in (two, shared, grouped)]
    names = ("two rows", "shared rows", "shared rows of similar length")
    return [
        f"{what} computed over what must be: " + ", ".join(f"{n} {o[i]:.2f}" for n, o in zip(names, over, strict=True))
        for i, what in enumerate(("tokens", "arithmetic"))
    ]


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """What is trained on what."""
    parser = common_parser(description)
    parser.add_argument("--plain", action="store_true", help="responses without prompts: nothing to share")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=0, help="train so many steps in a turn, in the place of an epoch")
    parser.add_argument("--rounds", type=int, default=5, help="0 only counts tokens and arithmetic")
    parser.add_argument("--curve", type=int, default=0, help="compare the losses of so many steps instead")
    parser.add_argument("--memory_of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    rows = make_rows(options)
    if options.memory_of:
        side, base = options.memory_of
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(side, base, rows, options, folder)
            forget_peak()
            train(trainer)
            print(peak_memory())
        return
    with tempfile.TemporaryDirectory() as folder:
        base = str(Path(folder) / "base")
        materialize_model(options.model, Path(base), options.layers, options.seed)
        if options.curve:
            compare_losses(base, rows, options, folder)
            return
        trainer = make_trainer("all off", base, rows, options, folder)
        tokens = sum(map(len, [*trainer.train_dataset["chosen_ids"][:], *trainer.train_dataset["rejected_ids"][:]]))
        print(f"{len(rows)} pairs, {tokens / len(rows) / 2:.0f} tokens a sequence in the mean; {json.dumps(vars(options))}")
        if reward_model(trainer.model) is not None:
            print(*work_lines(trainer.train_dataset, options.batch, trainer.model.config), sep="\n", flush=True)
        if not options.rounds:
            return
        seconds = measure(base, rows, options, folder)
        share = options.steps * options.batch / len(rows) if options.steps else 1
        report(seconds, len(rows) * share, tokens * share, base)


def report(seconds: dict[str, list[tuple[float, float]]], num_pairs: float, tokens: float, base: str) -> None:
    """The table; each peak of memory is that of a process of its own."""
    print(
        "\n| side | pairs/s | tokens/s | ratio to RewardTrainer: median [least, greatest] | 95 % of the median | of CPU time "
        "| peak memory, GiB |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for side, times in seconds.items():
        ratios, of_cpu = (np.array(seconds["RewardTrainer"]) / np.array(times)).T.tolist()
        passed = median(wall for wall, _ in times)
        print(
            f"| {side} | {num_pairs / passed:.2f} | {tokens / passed:,.0f} | {median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] "
            f"| {interval_of(ratios)} | {median(of_cpu):.2f} | {peak_of(side, base):.2f} |",
            flush=True,
        )


def interval_of(ratios: list[float]) -> str:
    """95 % interval of the median over turns, by bootstrap; few turns say nothing about it."""
    if len(ratios) < 8 or len(set(ratios)) == 1:
        return ""
    found = bootstrap((ratios,), np.median, method="percentile", rng=0).confidence_interval
    return f"{found.low:.3f} to {found.high:.3f}"


if __name__ == "__main__":
    main()
