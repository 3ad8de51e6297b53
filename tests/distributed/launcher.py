"""Starts a script as several processes of one group, on the CPU with gloo, as torchrun does but without its agent."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import trl_pafo


def launch(script: Path, num_processes: int, *arguments: str, timeout: float = 300) -> None:
    """Run `script arguments...` on each process and wait; AssertionError with the end of its output where one fails."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {
        **os.environ,
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # The package that this process imports, installed or not.
        "PYTHONPATH": os.pathsep.join([str(Path(trl_pafo.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
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
