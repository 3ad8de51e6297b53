"""Starts a script as several processes of one group, on the CPU with gloo, as torchrun does but without its agent."""

import gc
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

import trl_pafo

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


def environment(**more: str) -> dict[str, str]:
    """Variables of a process that imports the package which this one imports, installed or not."""
    path = [str(Path(trl_pafo.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    if {"ACCELERATE_TORCH_DEVICE", "WRAPPERS"} & more.keys():
        path.insert(0, str(Path(__file__).parent / "cpu_as_gpu"))
    common = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **common, "PYTHONPATH": os.pathsep.join(path), **more}


def launch(script: Path, num_processes: int, *arguments: str, mode: str = "ddp", timeout: float = 300) -> None:
    """Run `script arguments...` on each process and wait; AssertionError with the end of its output where one fails."""
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
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
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
            outputs.append(process.communicate(timeout=timeout)[0])
    finally:
        for process in processes:
            process.kill()
    for rank, (process, output) in enumerate(zip(processes, outputs, strict=True)):
        assert process.returncode == 0, f"Process {rank} of {num_processes} failed:\n{output[-4000:]}"


def leave() -> None:
    """End of a script on several processes, all together. A process group that is still held by a trainer, which is a circle
    of references, would be taken apart as the interpreter ends, and then now and then aborts."""
    if not torch.distributed.is_initialized():
        return
    gc.collect()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
