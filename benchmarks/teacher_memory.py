"""Memory that teachers take, by launch mode and kind of teacher: while they are loaded, while they score, and in training.

    python benchmarks/teacher_memory.py
    python benchmarks/teacher_memory.py --modes single fsdp2 --num_hidden_layers 24 --student full

It starts each mode as processes of its own (two, but for `single`), with a Llama of random weights as student and teachers. On a
CPU it reports the resident memory of a process, above what a training of a tiny model has left behind in it; with GPUs, as many as
processes, what PyTorch has allocated on the device. Each figure is the largest over the processes, in MB (10^6 bytes).
"""

import argparse
import gc
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # helpers

from helpers.ranks import CPU_AS_GPU, MODES, launch

GROUPS = ("majority", "minority")
CASES = {
    "cached": "margins at hand",
    "checkpoints": "two checkpoints",
    "adapters": "two adapters of one base",
}
PHASES = ("loading", "scoring", "training")


class Peak:
    """The most memory that this process took, by phase."""

    def __init__(self) -> None:
        self.on_gpu = torch.cuda.is_available()
        self.start = 0 if self.on_gpu else self._resident()
        self.bytes = dict.fromkeys(PHASES, 0)
        self.phase = PHASES[0]
        self.is_done = False
        if not self.on_gpu:
            threading.Thread(target=self._watch, daemon=True).start()

    @staticmethod
    def _resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def _watch(self) -> None:
        while not self.is_done:
            self._note()
            time.sleep(0.002)

    def _note(self) -> None:
        now = torch.cuda.max_memory_allocated() if self.on_gpu else self._resident()
        self.bytes[self.phase] = max(self.bytes[self.phase], now - self.start)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        before = self.phase
        self._enter(phase)
        try:
            yield
        finally:
            self._enter(before)

    def _enter(self, phase: str) -> None:
        self._note()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        self.phase = phase


def make_parts(folder: Path, hidden_size: int, num_hidden_layers: int, vocab_size: int) -> int:
    """A student, two checkpoints and two adapters of the student; returns their number of parameters."""
    from helpers.parts import make_tokenizer
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = make_tokenizer("decoder")
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=hidden_size // 64,
        intermediate_size=4 * hidden_size,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    for seed, name in enumerate(["student", *(f"checkpoints/{group}" for group in GROUPS)]):
        torch.manual_seed(seed)
        LlamaForSequenceClassification(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for group in GROUPS:
        model = LlamaForSequenceClassification.from_pretrained(folder / "student")
        get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=8)).save_pretrained(folder / "adapters" / group)
        tokenizer.save_pretrained(folder / "adapters" / group)
    return LlamaForSequenceClassification(config).num_parameters()


def train(parts: Path, out: Path, case: str, student: str) -> dict[str, float]:
    """One training on this process, and the megabytes that it took."""
    import numpy as np
    from datasets import Dataset
    from peft import LoraConfig

    from trl_pafo import PAFOConfig, PAFORewardTrainer
    from trl_pafo.trainer.loaded_teachers import TeacherModels

    rng = np.random.default_rng(0)
    ids = lambda: rng.integers(6, 40, 64).tolist()  # noqa: E731
    rows = [{"chosen_ids": ids(), "rejected_ids": ids(), "group": GROUPS[i % 2]} for i in range(32)]
    dataset = Dataset.from_list(rows)
    teachers = "adapters" if case == "adapters" else "checkpoints"
    on_cpu = not torch.cuda.is_available()
    args = PAFOConfig(
        str(out),
        max_steps=2,
        per_device_train_batch_size=2,
        teacher_batch_size=2,
        use_cpu=on_cpu and "ACCELERATE_TORCH_DEVICE" not in os.environ,
        bf16=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=False,
        teacher_margin_cache_dir=str(parts / "cache" if case == "cached" else out / "cache"),
        conditioning="own",  # the rows are token ids
        prefix_sharing="off",
    )
    torch.zeros(1, device=args.device)
    peak = Peak()
    margins = TeacherModels.margins

    def watched_margins(self, *args, **kwargs):
        with peak.during("scoring"):
            return margins(self, *args, **kwargs)

    TeacherModels.margins = watched_margins
    trainer = PAFORewardTrainer(
        str(parts / "student"),
        args,
        train_dataset=dataset,
        teachers={group: str(parts / teachers / group) for group in GROUPS},
        peft_config=LoraConfig(task_type="SEQ_CLS", r=8) if student == "lora" else None,
    )
    with peak.during("training"):
        trainer.train()
    peak.is_done = True
    TeacherModels.margins = margins
    return {phase: value / 1e6 for phase, value in peak.bytes.items()}


def measure(out: Path, parts: str, case: str, student: str) -> dict[str, float]:
    """What a process does."""
    # What libraries take once is no memory of teachers.
    train(Path(parts) / "tiny", out / "tiny", "checkpoints", student)
    gc.collect()
    return train(Path(parts), out, case, student)


def start(num_processes: int, parts: Path, out: Path, case: str, student: str, mode: str) -> list[dict[str, float]]:
    """A training on processes of its own; what each of them took."""
    out.mkdir()
    if torch.cuda.is_available():
        for variables in MODES.values():
            for name in CPU_AS_GPU:
                variables.pop(name, None)
    mode = "ddp" if mode == "single" else mode
    return launch(measure, num_processes, out, str(parts), case, student, mode=mode, timeout=1800)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", default=["single", "ddp", "fsdp2", "zero3"], choices=["single", *MODES])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--student", default="lora", choices=["lora", "full"])
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--num_hidden_layers", type=int, default=16)
    parser.add_argument("--vocab_size", type=int, default=16_000)
    options = parser.parse_args()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back to the system at once, not into a list of glibc
    with tempfile.TemporaryDirectory() as folder:
        parts = Path(folder)
        make_parts(parts / "tiny", 64, 1, 100)
        size = make_parts(parts, options.hidden_size, options.num_hidden_layers, options.vocab_size)
        start(1, parts, parts / "first", "checkpoints", "lora", "ddp")
        (parts / "first/cache").rename(parts / "cache")
        print(f"{size / 1e6:.0f}M parameters, {4 * size / 1e6:.0f} MB in float32; student: {options.student}\n")
        print("| mode | teachers | " + " | ".join(PHASES) + " |\n| --- | --- | " + "---: | " * len(PHASES))
        for mode in options.modes:
            num_processes = 1 if mode == "single" else 2
            for case in options.cases:
                found = start(num_processes, parts, parts / f"{mode}-{case}", case, options.student, mode)
                figures = [max(rank[phase] for rank in found) for phase in PHASES]
                cells = " | ".join(f"{figure:,.0f}" if figure else "" for figure in figures)
                print(f"| {mode} | {CASES[case]} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
