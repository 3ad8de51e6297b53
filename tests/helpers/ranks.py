"""Work on several processes of one group, on the CPU with gloo, as torchrun starts them but without its agent.

`launch(work, ...)` calls a function of a test file on each process and returns what each returned:
`python -m helpers.ranks FILE FUNCTION OUT ARGUMENTS...` is what a process does.
"""

import gc
import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
import yaml
from datasets import Dataset
from peft import LoraConfig

import trl_pafo
from helpers.parts import GROUPS, make_adapter, make_model, make_pairs, make_teacher, with_margins
from trl_pafo import PAFOConfig, PAFORewardTrainer

TESTS = Path(__file__).parents[1]
CONFIGS = Path(trl.__file__).parent / "accelerate_configs"
# What makes the launchers of GPUs work on the CPU.
CPU_AS_GPU = {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0"}

# What `accelerate launch` sets in each mode, as in the configurations that TRL ships.
MODES: dict[str, dict[str, str]] = {
    "ddp": {},
    "fsdp2": {
        **CPU_AS_GPU,
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    },
    **{
        f"zero{stage}": {
            **CPU_AS_GPU,
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage),
            "ACCELERATE_DEEPSPEED_ZERO3_INIT": str(stage == 3).lower(),
            "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": str(stage == 3).lower(),
        }
        for stage in (1, 2, 3)
    },
}
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
PATIENCE = 3600
"""Seconds after which processes hang, also on a machine that does much else."""
NUM_STEPS = 4
GLOBAL_BATCH = 8


def environment(**more: str) -> dict[str, str]:
    """Variables of a process that imports the package which this one imports, installed or not."""
    path = [str(Path(trl_pafo.__file__).parents[1]), str(TESTS), os.environ.get("PYTHONPATH", "")]
    if {"ACCELERATE_TORCH_DEVICE", "WRAPPERS"} & more.keys():
        path.insert(0, str(TESTS / "distributed/cpu_as_gpu"))
    common = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **common, "PYTHONPATH": os.pathsep.join(path), **more}


def launch(work: Callable[..., Any], num_processes: int, out: Path, *arguments: str, mode: str = "ddp") -> list[Any]:
    """What `work(out, *arguments)` returns on each process; AssertionError with the end of its output where one fails."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = environment(
        WORLD_SIZE=str(num_processes),
        LOCAL_WORLD_SIZE=str(num_processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        **MODES[mode],
    )
    command = [sys.executable, "-m", "helpers.ranks", work.__code__.co_filename, work.__name__, str(out), *arguments]
    processes = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(num_processes)
    ]
    outputs = []
    try:
        for process in processes:
            outputs.append(process.communicate(timeout=PATIENCE)[0])
    finally:
        for process in processes:
            process.kill()
    for rank, (process, output) in enumerate(zip(processes, outputs, strict=True)):
        assert process.returncode == 0, f"Process {rank} of {num_processes} failed:\n{output[-4000:]}"
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(num_processes)]


def accelerate(config: str, folder: Path, **settings: Any) -> list[str]:
    """The beginning of a command that launches two processes by a configuration that TRL ships, with other `settings` where given."""
    edited = folder / f"{config}.yaml"
    shipped = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())
    edited.write_text(yaml.safe_dump(shipped | {"num_processes": 2} | settings))
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(edited), "--main_process_port", "0"]


def work_on_rank(file: str, function: str, out: Path, *arguments: str) -> None:
    """What a process does. At its end a process group that is still held by a trainer, which is a circle of references, would be
    taken apart as the interpreter ends, and then now and then aborts; so all leave together."""
    spec = importlib.util.spec_from_file_location("work_on_rank", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, function)(out, *arguments)
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def assert_wrapped(found: dict[str, Any], mode: str) -> None:
    """The student was trained in the wrapper of the mode; `found` is of [`wrapper_of`]."""
    wrapper = {"ddp": "DistributedDataParallel", "fsdp2": "FSDPModule"}.get(mode, "DeepSpeedEngine")
    assert wrapper in found["classes"]
    assert found["stage"] == (int(mode[-1]) if mode.startswith("zero") else None)


def wrapper_of(trainer: PAFORewardTrainer) -> dict[str, Any]:
    """What the student was really trained in."""
    wrapped = trainer.model_wrapped
    stage = wrapped.zero_optimization_stage() if hasattr(wrapped, "zero_optimization_stage") else None
    return {"classes": [kind.__name__ for kind in type(wrapped).__mro__], "stage": stage}


def options(out: Path, **more: Any) -> PAFOConfig:
    """Options of a training on this process or all of several, with the same global batch."""
    common = {
        "max_steps": NUM_STEPS,
        "per_device_train_batch_size": GLOBAL_BATCH // int(os.environ.get("WORLD_SIZE", "1")),
        "per_device_eval_batch_size": 4,
        "logging_steps": 1,
        "learning_rate": 2e-3,
        # Adam divides by the size of a gradient: where that is rounding alone, so would be the step.
        "adam_epsilon": 1e-5,
        "max_length": 256,
        "use_cpu": "ACCELERATE_TORCH_DEVICE" not in os.environ,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        # Near margin 0 the value of bce hardly depends on the teacher, and a wrong teacher would pass.
        "distillation_loss": "mse",
    }
    return PAFOConfig(str(out), **{**common, **more})


def lora() -> LoraConfig:
    return LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"])


def make_parts(folder: Path) -> None:
    """A student, a teacher a group, and a teacher a group that is an adapter of the student."""
    student = make_model("decoder", folder / "student")
    for seed, group in enumerate(GROUPS, 1):
        make_teacher("decoder", folder / "checkpoints" / group, seed)
        make_adapter(student, folder / "adapters" / group, 10 + seed, r=4, target_modules=["q_proj", "v_proj"])


def training_pairs(teachers: str) -> Dataset:
    # A whole number of batches: accelerate fills up the last one with copies, as it does for RewardTrainer.
    shape = {"num_users": 8, "pairs_per_user": NUM_STEPS * GLOBAL_BATCH // 8}
    rows = make_pairs(**shape)
    return with_margins(rows) if teachers == "column" else rows


if __name__ == "__main__":
    work_on_rank(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
