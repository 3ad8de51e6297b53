"""Teachers under the launchers that shard the student: complete weights are loaded, then each process keeps its part.

TRL wraps a frozen model as its student is wrapped: a DeepSpeed engine, or FSDP around the root. Here teachers are sharded by
`fully_shard` under every launcher, layer by layer: a forward gathers one layer and not all of the teacher, the weights keep the
dtype that they were loaded in, so that margins are the same bits in every mode, and nothing outlives the model, as a
DeepSpeed engine does.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def shards_the_student(accelerator: Accelerator) -> bool:
    """Whether the weights of the student are spread over several processes: FSDP of either version, or DeepSpeed ZeRO-3."""
    if accelerator.num_processes == 1:
        return False
    deepspeed = accelerator.state.deepspeed_plugin
    fsdp = getattr(accelerator.state, "fsdp_plugin", None)
    return fsdp is not None or (deepspeed is not None and deepspeed.zero_stage == 3)


@contextmanager
def in_turn(accelerator: Accelerator) -> Iterator[None]:
    """Processes of one machine run the body one after the other, so that its memory holds one complete model at a time."""
    for turn in range(accelerator.num_processes):
        if turn == accelerator.local_process_index:
            yield
        accelerator.wait_for_everyone()


def shard(model: torch.nn.Module, device: torch.device, num_processes: int) -> None:
    """Leave each process its part of the weights, on the device: the layers first, then what is outside of them.

    The model, one of transformers or of peft around it, is the same on every process. All have to run each forward pass from now
    on.
    """
    mesh = init_device_mesh(device.type, (num_processes,))
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for module in reversed(list(model.modules())):  # the inner ones first
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    # By default the root stays gathered for a backward pass, which a teacher never has.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
