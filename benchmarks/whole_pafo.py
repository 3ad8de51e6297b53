"""What all of PAFO costs: groups, teachers, margins and student against one RewardTrainer run of as many steps as the student.

    OMP_NUM_THREADS=2 python benchmarks/whole_pafo.py --source dsp --data_path DSP_FILE

Both sides start from the same personalized pairs (three past pairs in the prompt) and the same model, and save what they have
trained; teachers are trained as long on the pairs of their groups, without histories. Each side runs in a process of its own, in turn,
so that its peak memory is its own; the clock leaves out imports and the loading of the data, and counts tokenization. Ratios are taken
within a turn.
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
import transformers
from datasets import Dataset
from measuring import common_parser, forget_peak, peak_memory, silence, training_options
from trl import RewardConfig, RewardTrainer

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.data import HistoryCutter, attach_history, render_history
from trl_pafo.data.sources import DataArguments, load_source
from trl_pafo.models import load_tokenizer, materialize_model
from trl_pafo.trainer.config import CONDITIONINGS

SIDES = ("RewardTrainer", "PAFO")


def finish(trainer: RewardTrainer, folder: Path) -> int:
    """Train and save; the number of steps."""
    silence(trainer).train()
    trainer.save_model(str(folder))
    return trainer.state.global_step


def plain(rows: Dataset, base: str, options: argparse.Namespace, folder: Path) -> tuple[dict[str, float], int]:
    tokenizer = load_tokenizer(options.model)
    cutter = HistoryCutter(tokenizer)
    start = time.perf_counter()
    rows = render_history(rows, cutter).select_columns(["prompt", "chosen", "rejected", "chat_template_kwargs"])
    args = RewardConfig(**training_options(options, folder / "args") | {"num_train_epochs": options.epochs})
    steps = finish(RewardTrainer(base, args, train_dataset=rows, processing_class=tokenizer), folder / "model")
    return {"model": time.perf_counter() - start}, steps


def pafo(rows: Dataset, base: str, options: argparse.Namespace, folder: Path) -> tuple[dict[str, float], int]:
    seconds: dict[str, float] = {}
    common = training_options(options, folder / "args") | {"num_train_epochs": options.epochs}
    common |= {"train_sampling_strategy": "group_by_length", "prefix_sharing": "auto"}
    start = time.perf_counter()

    def done(stage: str) -> None:
        seconds[stage] = time.perf_counter() - start - sum(seconds.values())

    group = np.asarray(rows["group"][:])
    parts = {name: np.flatnonzero(group == name) for name in np.unique(group)}
    done("groups")
    teachers = {str(name): str(folder / f"teacher-{name}") for name in parts}
    for name, places in parts.items():
        part, args = rows.select(places).remove_columns("group"), PAFOConfig(**common, num_history=0)
        trainer = PAFORewardTrainer(base, args, train_dataset=part, processing_class=load_tokenizer(options.model))
        finish(trainer, Path(teachers[str(name)]))
        done(f"teacher of {name}")
    del trainer
    args = PAFOConfig(**common, conditioning=options.conditioning)
    student = PAFORewardTrainer(base, args, train_dataset=rows, processing_class=load_tokenizer(options.model), teachers=teachers)
    done("margins")
    steps = finish(student, folder / "student")
    done("student")
    return seconds, steps


def run_side(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """One side in this process: its seconds by stage, and its peak memory."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    data = DataArguments(source=options.source, data_path=options.data_path, max_words=options.max_words)
    rows = attach_history(load_source(data)["train"].shuffle(seed=0), num_history=options.history, past_only=False)
    rows = rows.select(range(options.pairs))
    with tempfile.TemporaryDirectory() as folder:
        forget_peak()
        work = plain if side == "RewardTrainer" else pafo
        seconds, steps = work(rows, options.base, options, Path(folder))
    return {"seconds": seconds, "steps": steps, "peak": peak_memory()}


def main() -> None:
    parser = common_parser(__doc__)
    parser.add_argument("--conditioning", default="counterfactual", choices=CONDITIONINGS)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--base", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run_side(options.side, options)))
        return
    print(json.dumps(vars(options)))
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as base:
        materialize_model(options.model, base, options.layers, 0)
        for turn in range(options.rounds):
            for side in SIDES[:: 1 if turn % 2 == 0 else -1]:
                command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--base", base]
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
                results[side].append(json.loads(done.stdout.strip().splitlines()[-1]))
                print(f"turn {turn + 1} of {options.rounds}, {side}: {results[side][-1]}", file=sys.stderr, flush=True)
    total = {side: [sum(result["seconds"].values()) for result in results[side]] for side in SIDES}
    for side in SIDES:
        stages = results[side][0]["seconds"]
        by_stage = ", ".join(f"{stage} {median(r['seconds'][stage] for r in results[side]):.1f}" for stage in stages)
        steps, peak = results[side][0]["steps"], median(r["peak"] for r in results[side])
        print(f"{side}, {steps} steps: {median(total[side]):.1f} s ({by_stage}), peak {peak:.2f} GiB")
    ratios = [ours / theirs for theirs, ours in zip(total["RewardTrainer"], total["PAFO"], strict=True)]
    peaks = [b["peak"] / a["peak"] for a, b in zip(results["RewardTrainer"], results["PAFO"], strict=True)]
    print(f"time: {median(ratios):.2f} x [{min(ratios):.2f}, {max(ratios):.2f}]; peak memory: {median(peaks):.2f} x")


if __name__ == "__main__":
    main()
