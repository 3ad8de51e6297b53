"""What the benchmarks of training share: options that are the same on all sides, a quiet trainer, and the peak of memory."""

import argparse
import resource
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import RewardTrainer


def common_parser(description: str | None) -> argparse.ArgumentParser:
    """Which pairs, which model, and how many at a time."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="styles")
    parser.add_argument("--data_path")
    parser.add_argument("--max_words", type=int, help="cut the answers of dsp")
    parser.add_argument("--history", type=int, default=3, help="past pairs in the prompt")
    parser.add_argument("--pairs", type=int, default=160)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8, help="pairs in a batch")
    parser.add_argument("--bf16", action="store_true")
    return parser


def training_options(options: argparse.Namespace, folder: str | Path) -> dict[str, Any]:
    """Options of `RewardConfig` for an epoch that nothing but training takes time of."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": options.batch,
        "num_train_epochs": 1,
        "max_length": None,
        "learning_rate": 1e-5,
        "bf16": options.bf16,
        "gradient_checkpointing": options.checkpointing,
        "use_cpu": not torch.accelerator.is_available(),
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
    }


def silence(trainer: RewardTrainer) -> RewardTrainer:
    """Without the callbacks that print."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    return trainer


def forget_peak() -> None:
    """Begin to measure the peak anew: what loading took before is not meant."""
    if torch.accelerator.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """GiB at the peak since [`forget_peak`]: allocated on the accelerator, else resident in this process."""
    if torch.accelerator.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20
