"""All that wants a GPU, in one call: speed against RewardTrainer, equality in bfloat16, and a whole run of a 0.5B-class model.

    python benchmarks/gpu.py --output gpu.json                 (one GPU; about 20 minutes)
    python benchmarks/gpu.py --tiny --output gpu.json          (the same on tiny models, also without a GPU: does it run?)

Nothing is downloaded: models have the shapes of Qwen3-0.6B, Qwen3-1.7B and Qwen2-0.5B and random weights, and the tokenizer is
trained on the shipped corpus. Results are written after each part, so that a call that is cut short leaves what it has measured.
Needs: torch with CUDA, trl, transformers, peft, accelerate, datasets, and this package.

Model FLOPs utilization counts what must be done once: 6 FLOPs a parameter and token for the matrices and 12 x width a layer for
each token that a token sees, of the tokens that remain when what both responses share is computed once; padding, recomputation
and what RewardTrainer does twice are not counted. The peak is that of the device, dense bfloat16 (`--peak_tflops`).
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset, disable_progress_bars
from reward_training import Clock
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForSequenceClassification, Qwen3Config
from transformers import Qwen3ForSequenceClassification as Qwen3
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import ModelConfig, RewardConfig, RewardTrainer

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.data.sources.styles import load_styles
from trl_pafo.evaluation import RunArguments
from trl_pafo.pipeline import Run

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

if not torch.cuda.is_available():  # flex_attention has no backward pass on a CPU
    SIDES = {name: ("sdpa", own) for name, (attention, own) in SIDES.items() if "flex" not in name}


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


def needed_flops(rows: Dataset, model: torch.nn.Module) -> float:
    """FLOPs of a training epoch over the rows, each shared token once."""
    config = model.config
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    width = config.num_attention_heads * config.head_dim
    total = 0.0
    for row in rows:
        chosen, rejected = row["chosen_ids"], row["rejected_ids"]
        common = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), 0)
        tokens = len(chosen) + len(rejected) - common
        seen = (len(chosen) ** 2 + len(rejected) ** 2 - common**2) / 2
        total += 6 * matrices * tokens + 12 * config.num_hidden_layers * width * seen
    return total


def make_model(shape: dict[str, Any], attention: str) -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(**shape, num_labels=1, pad_token_id=0, max_position_embeddings=8192, attn_implementation=attention)
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
        "use_cpu": not torch.cuda.is_available(),
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "pad_token": "<pad>",
        **changes,
    }
    trainer_class, args_class = (RewardTrainer, RewardConfig) if own is None else (PAFORewardTrainer, PAFOConfig)
    trainer = trainer_class(
        make_model(shape, attention), args_class(**args, **(own or {})), train_dataset=rows, processing_class=make_tokenizer()
    )
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    return trainer


def measure_speed(shape: dict[str, Any], length: int, options: argparse.Namespace, folder: str) -> dict[str, Any]:
    batch = max(1, options.tokens_per_batch // (2 * length))
    rows = make_pairs(length, batch * options.steps, options.share, shape["vocab_size"])
    num_tokens = sum(map(len, rows["chosen_ids"])) + sum(map(len, rows["rejected_ids"]))
    result: dict[str, Any] = {"batch": batch, "pairs": len(rows), "tokens": num_tokens, "sides": {}}
    failed: dict[str, str] = {}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    peaks: dict[str, float] = {}
    flops = 0.0
    for turn in range(options.rounds + 1):
        for side in SIDES:
            if side in failed:
                continue
            try:
                trainer = make_trainer(side, shape, rows, batch, folder, **({} if turn else {"max_steps": 2}))
                flops = flops or needed_flops(rows, trainer.model)
                clock = Clock()
                trainer.add_callback(clock)
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
                trainer.train()
            except Exception as error:  # one side that cannot run must not cost the figures of the others
                failed[side] = f"{type(error).__name__}: {str(error)[:300]}"
                continue
            if torch.cuda.is_available():
                peaks[side] = torch.cuda.max_memory_allocated() / 2**30
            if turn:
                seconds[side].append(clock.seconds)
            del trainer
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    for side in SIDES:
        if side in failed:
            result["sides"][side] = {"failed": failed[side]}
            continue
        ratios = [theirs / own for theirs, own in zip(seconds["RewardTrainer"], seconds[side], strict=False)]
        best = median(seconds[side])
        result["sides"][side] = {
            "pairs_per_second": len(rows) / best,
            "tokens_per_second": num_tokens / best,
            "mfu": flops / best / options.peak_tflops / 1e12,
            "ratio": median(ratios) if ratios else None,
            "ratios": ratios,
            "peak_gib": peaks.get(side),
        }
        print(f"  {side}: {result['sides'][side]}", flush=True)
    return result


def compare_in_bf16(shape: dict[str, Any], length: int, options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Losses of the first steps of every side against RewardTrainer's, on the same batches, in bfloat16."""
    rows = make_pairs(length, 4 * 8, options.share, shape["vocab_size"])
    losses: dict[str, list[float]] = {}
    for side in list(SIDES)[:-1]:  # the last has other batches
        trainer = make_trainer(side, shape, rows, 4, folder, max_steps=8, logging_strategy="steps", logging_steps=1)
        trainer.train()
        losses[side] = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    reference = np.array(losses["RewardTrainer"])
    return {
        "losses": losses,
        "first_step": {side: abs(values[0] - reference[0]) for side, values in losses.items()},
        "greatest": {side: float(np.abs(np.array(values) - reference).max()) for side, values in losses.items()},
    }


def run_all_stages(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """`trl-pafo run` on the shipped corpus with a model of random weights: seconds of each stage."""
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
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
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
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak_tflops", type=float, default=989.0, help="dense bfloat16 of the device: 989 for H100 and H200")
    parser.add_argument("--parts", nargs="+", default=["equality", "speed", "run"], choices=["equality", "speed", "run"])
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        raise SystemExit("No GPU. With --tiny the script runs on tiny models anywhere, to see that it works.")
    shapes = {"tiny": TINY} if options.tiny else SHAPES
    if options.tiny:
        options.lengths, options.tokens_per_batch, options.steps, options.rounds = [64], 1024, 3, 1
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    results: dict[str, Any] = {"device": device, "versions": versions, "options": vars(options)}

    def keep(part: str, value: Any) -> None:
        results[part] = value
        Path(options.output).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in shapes.items():
            if "equality" in options.parts:
                keep(f"equality {name}", compare_in_bf16(shape, options.lengths[0], options, folder))
                print(f"{name}, equality in bfloat16: {results[f'equality {name}']['first_step']}", flush=True)
            for length in options.lengths if "speed" in options.parts else ():
                print(f"{name}, {length} tokens a sequence:", flush=True)
                keep(f"speed {name} {length}", measure_speed(shape, length, options, folder))
        if "run" in options.parts:
            keep("run", run_all_stages(options, Path(folder)))
            print(f"run: {results['run']}", flush=True)
    print(f"{device}: {options.output} after {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
