"""What wants a GPU, in one call: speed and memory against RewardTrainer, equality in bfloat16, and a whole run of a 0.5B-class model.

    python benchmarks/gpu.py --output gpu.json                 (one GPU; it ends within 9 minutes, see --minutes)
    python benchmarks/gpu.py --tiny --output gpu.json          (the same on tiny models, also without a GPU: does it run?)

Nothing is downloaded: models have the shapes of Qwen3-0.6B, Qwen3-1.7B and Qwen2-0.5B and random weights, and the tokenizer is
trained on the shipped corpus. Results are written and printed after each training, so that a call that is cut short leaves what it has
measured; what does not fit into memory is reported, and the next goes on. Speed comes first, each shape once, then again while time is
left; then equality; then the run.
Needs: torch with CUDA, trl, transformers, peft, accelerate, datasets, scipy, and this package; matplotlib for the part `run`.

Each training has steps that are not measured, in which kernels are compiled, and steps that are; a figure is of all of the latter.
Model FLOPs utilization counts what must be done once: 6 FLOPs a parameter and token for the matrices and 12 x width a layer for
each token that a token sees, of the tokens that remain when what both responses share is computed once; padding, recomputation
(gradient checkpointing is on, TRL's default) and what RewardTrainer does twice are not counted. The peak is that of the device, dense
bfloat16 (`--peak_tflops`).
"""

import argparse
import gc
import json
import os
import platform
import signal
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForSequenceClassification, Qwen3Config, TrainerCallback
from transformers import Qwen3ForSequenceClassification as Qwen3
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import ModelConfig, RewardConfig, RewardTrainer

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.data.sources.styles import load_styles
from trl_pafo.prefix_sharing.rows import pair_lengths

QWEN3 = {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
SHAPES = {
    "Qwen3-0.6B": {**QWEN3, "hidden_size": 1024, "intermediate_size": 3072},
    "Qwen3-1.7B": {**QWEN3, "hidden_size": 2048, "intermediate_size": 6144},
}
TINY = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 4096}
TINY |= {"hidden_size": 64, "intermediate_size": 128}
QWEN2 = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}

SIDES: dict[str, tuple[str, dict[str, Any] | None]] = {
    "RewardTrainer": ("sdpa", None),
    "PAFO, all off": ("sdpa", {"prefix_sharing": "off"}),
    "PAFO, shared rows, sdpa": ("sdpa", {"prefix_sharing": "on"}),
    "PAFO, shared rows, flex_attention": ("flex_attention", {"prefix_sharing": "on"}),
    "PAFO, everything": ("flex_attention", {"prefix_sharing": "on", "train_sampling_strategy": "group_by_length"}),
}

GRACE = 40.0
"""Seconds after `--minutes` in which the training that is going on may end."""

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":  # flex_attention has no backward pass there
    SIDES = {name: ("sdpa", own) for name, (attention, own) in SIDES.items() if "flex" not in name}


@cache
def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 4,000 tokens, trained on the shipped corpus, with a plain chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [text for prompt in load_styles() for text in (prompt.prompt, *prompt.responses.values())]
    special = ["<pad>", "<eos>", "<user>", "<assistant>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=4000, special_tokens=special, initial_alphabet=alphabet))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<eos>{% endfor %}"
    return fast


def make_pairs(length: int, num_pairs: int, share: float, vocabulary: int, seed: int = 0) -> Dataset:
    """Pairs of about `length` tokens a sequence (a fifth more or less), `share` of them in common."""
    rng = np.random.default_rng(seed)
    chosen, rejected = [], []
    for total in rng.uniform(0.8, 1.2, num_pairs) * length:
        prefix = rng.integers(4, vocabulary - 4, int(share * total)).tolist()
        for side, first in ((chosen, 2), (rejected, 3)):
            rest = max(2, int((1 - share) * total * rng.uniform(0.7, 1.3)))
            side.append([*prefix, first, *rng.integers(4, vocabulary - 4, rest - 1).tolist()])
    return Dataset.from_dict({"chosen_ids": chosen, "rejected_ids": rejected})


def needed_flops(rows: list[dict[str, list[int]]], model: torch.nn.Module) -> float:
    """FLOPs of a training step on these pairs, each shared token once: forward pass, and twice that backward."""
    config = model.config
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    width = config.num_attention_heads * config.head_dim
    total = 0
    for row in rows:
        shared, of_chosen, of_rejected = pair_lengths(row["chosen_ids"], row["rejected_ids"])
        seen = sum(n * (n + 1) // 2 for n in (shared + of_chosen, shared + of_rejected)) - shared * (shared + 1) // 2
        total += 6 * matrices * (shared + of_chosen + of_rejected) + 12 * config.num_hidden_layers * width * seen
    return float(total)


def make_model(shape: dict[str, Any], attention: str) -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(**shape, num_labels=1, pad_token_id=0, max_position_embeddings=8192, attn_implementation=attention)
    with torch.device(DEVICE):  # on a CPU, drawing the weights of the larger shapes would take most of the time
        return Qwen3(config).to(torch.bfloat16)


def make_trainer(side: str, shape: dict[str, Any], rows: Dataset, batch: int, folder: str, **changes: Any) -> RewardTrainer:
    attention, own = SIDES[side]
    args: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": batch,
        "num_train_epochs": 1,
        "max_length": None,
        "learning_rate": 1e-5,
        "bf16": False,  # the weights are bfloat16 already
        "use_cpu": DEVICE == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        **changes,
    }
    trainer_class, args_class = (RewardTrainer, RewardConfig) if own is None else (PAFORewardTrainer, PAFOConfig)
    trainer = trainer_class(
        make_model(shape, attention), args_class(**args, **(own or {})), train_dataset=rows, processing_class=make_tokenizer()
    )
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    return trainer


class Clock(TrainerCallback):
    """When each step has ended, on the device too."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def stop(*_: Any) -> None:
    """A training that has begun in time and takes longer than any before: it counts as failed, and what was measured is kept."""
    raise TimeoutError("no time left")


def measure_side(side: str, shape: dict[str, Any], length: int, options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Speed and memory of a training, of the steps after `--warmup`."""
    batch = max(1, options.tokens_per_batch // (2 * length))
    rows = make_pairs(length, batch * (options.warmup + options.steps), options.share, shape["vocab_size"])
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer = make_trainer(side, shape, rows, batch, folder)
    batches: list[list[dict[str, list[int]]]] = []
    collate = trainer.data_collator.torch_call
    trainer.data_collator.torch_call = lambda pairs: batches.append(pairs) or collate(pairs)  # type: ignore[func-returns-value]
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    pairs = [pair for each in batches[options.warmup :] for pair in each]
    seconds = clock.ends[-1] - clock.ends[options.warmup - 1]
    return {
        "pairs_per_second": len(pairs) / seconds,
        "tokens_per_second": sum(len(pair[name]) for pair in pairs for name in ("chosen_ids", "rejected_ids")) / seconds,
        "mfu": needed_flops(pairs, trainer.model) / seconds / options.peak_tflops / 1e12,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else None,
        "step_seconds": np.diff(clock.ends[options.warmup - 1 :]).tolist(),
        "batch": batch,
    }


def attempt(side: str, shape: dict[str, Any], length: int, options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """[`measure_side`], or why it failed; the device is empty afterwards."""
    start = time.perf_counter()
    try:
        found = measure_side(side, shape, length, options, folder)
    except Exception as error:  # one side that does not fit, or cannot run, must not cost the figures of the others
        found = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
    gc.collect()  # not within `except`, where the traceback holds what was made
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
    return found | {"wall_seconds": time.perf_counter() - start}


def measure_speed(
    shapes: dict[str, dict[str, Any]],
    options: argparse.Namespace,
    folder: str,
    results: dict[str, Any],
    write: Callable[[], None],
    left: Callable[[], float],
) -> None:
    """Every side of every shape once, then again while time is left, with the ratio to RewardTrainer of the same turn."""
    for _ in range(options.rounds):
        for name, shape in shapes.items():
            for length in options.lengths:
                sides = results.setdefault(f"speed {name} {length}", {side: [] for side in SIDES})
                for side, turns in sides.items():
                    last = turns[-1] if turns else {"wall_seconds": 0.0}
                    if "failed" in last:
                        continue
                    if left() <= last["wall_seconds"]:
                        print(f"{name}, {length} tokens, {side}: not measured{' again' * bool(turns)}, no time left", flush=True)
                        continue
                    found = attempt(side, shape, length, options, folder)
                    turns.append(found)
                    base = sides["RewardTrainer"][-1] if sides["RewardTrainer"] else {}
                    if "failed" not in found and "tokens_per_second" in base:
                        found["ratio"] = found["tokens_per_second"] / base["tokens_per_second"]
                    write()
                    print(f"{name}, {length} tokens, {side}: {line_of(found)}", flush=True)


def line_of(found: dict[str, Any]) -> str:
    """What was found of a training, for people."""
    if "failed" in found:
        return f"FAILED: {found['failed']}"
    memory = "" if found["peak_gib"] is None else f", peak {found['peak_gib']:.1f} GiB"
    ratio = f", {found['ratio']:.2f} x RewardTrainer" if "ratio" in found else ""
    speed = f"{found['pairs_per_second']:.2f} pairs/s, {found['tokens_per_second']:,.0f} tokens/s"
    return f"{speed}, MFU {found['mfu']:.1%}{memory}{ratio}"


def compare_in_bf16(
    shape: dict[str, Any], length: int, options: argparse.Namespace, folder: str, left: Callable[[], float]
) -> dict[str, Any]:
    """Losses of the first steps of every side against RewardTrainer's, on the same batches, in bfloat16."""
    rows = make_pairs(length, 4 * 8, options.share, shape["vocab_size"])
    losses: dict[str, list[float]] = {}
    for side in list(SIDES)[:-1]:  # the last has other batches
        if left() <= 0:
            print(f"{side}: equality not measured, no time left", flush=True)
            continue
        try:
            trainer = make_trainer(side, shape, rows, 4, folder, max_steps=8, logging_strategy="steps", logging_steps=1)
            trainer.train()
        except Exception as error:
            print(f"{side} FAILED: {type(error).__name__}: {str(error)[:300]}", flush=True)
            continue
        losses[side] = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    if "RewardTrainer" not in losses:
        return {"losses": losses, "greatest": "unknown"}
    reference = np.array(losses["RewardTrainer"])
    return {
        "losses": losses,
        "first_step": {side: abs(values[0] - reference[0]) for side, values in losses.items()},
        "greatest": {side: float(np.abs(np.array(values) - reference).max()) for side, values in losses.items()},
    }


def run_all_stages(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """`trl-pafo run` on the shipped corpus with a model of random weights: seconds of each stage."""
    from trl_pafo.evaluation import RunArguments
    from trl_pafo.pipeline import Run

    tokenizer = make_tokenizer()
    shape = TINY if options.tiny else {**QWEN2, "vocab_size": 151936}
    shape = {name: value for name, value in shape.items() if name != "head_dim"}
    config = Qwen2Config(**shape, num_labels=1, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    Qwen2ForSequenceClassification(config).to(torch.bfloat16).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    args = PAFOConfig(
        output_dir=str(folder / "run"),
        num_history=1,
        max_length=1024,
        learning_rate=1e-5,
        per_device_train_batch_size=8,
        max_steps=4 if options.tiny else -1,
        num_train_epochs=1,
        bf16=DEVICE == "cuda",
        use_cpu=DEVICE == "cpu",
        report_to="none",
        save_strategy="no",
    )
    run = RunArguments(
        source="styles",
        distill_anyway=True,
        train_users=40 if options.tiny else None,
        test_users=20 if options.tiny else None,
    )
    model = ModelConfig(model_name_or_path=str(folder / "model"), dtype="bfloat16")
    pipeline = Run(run, args, model)
    results = pipeline()
    accuracies = {method: values["overall"] for method, values in results.get("methods", {}).items() if "overall" in values}
    return {"seconds": pipeline.folder.seconds(), "accuracy": accuracies}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="gpu.json")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--share", type=float, default=0.75, help="of a sequence, in common with the other one")
    parser.add_argument("--tokens_per_batch", type=int, default=32768, help="of both sequences together")
    parser.add_argument("--warmup", type=int, default=4, help="steps of a training that are not measured")
    parser.add_argument("--steps", type=int, default=8, help="steps of a training that are measured")
    parser.add_argument("--rounds", type=int, default=3, help="at most")
    parser.add_argument("--minutes", type=float, default=8.0, help="no training begins that would end later")
    parser.add_argument("--peak_tflops", type=float, default=989.0, help="dense bfloat16 of the device: 989 for H100 and H200")
    parser.add_argument("--parts", nargs="+", default=["speed", "equality"], choices=["speed", "equality", "run"])
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if DEVICE == "cpu" and not options.tiny:
        raise SystemExit("No GPU. With --tiny the script runs on tiny models anywhere, to see that it works.")
    shapes = {"tiny": TINY} if options.tiny else SHAPES
    if options.tiny:
        options.lengths, options.tokens_per_batch, options.warmup, options.steps, options.rounds = [64], 1024, 1, 2, 1
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else platform.processor() or "CPU"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    results: dict[str, Any] = {"device": device, "versions": versions, "options": vars(options)}
    start = time.perf_counter()
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60 * options.minutes + GRACE)

    def left() -> float:
        return 60 * options.minutes - (time.perf_counter() - start)

    def write() -> None:
        Path(options.output).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as folder:
        if "speed" in options.parts:
            measure_speed(shapes, options, folder, results, write, left)
        for name, shape in shapes.items() if "equality" in options.parts else ():
            found = results[f"equality {name}"] = compare_in_bf16(shape, options.lengths[0], options, folder, left)
            write()
            print(f"{name}, greatest difference of a loss in bfloat16: {found['greatest']}", flush=True)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if "run" in options.parts:
            results["run"] = run_all_stages(options, Path(folder))
            write()
            print(f"run: {results['run']}", flush=True)
    print(f"{device}: {options.output} after {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
