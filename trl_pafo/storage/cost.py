"""What a training costs: the hardware of this process, and seconds in words."""

import platform
from pathlib import Path


def hardware() -> str:
    """What all processes of this training compute on, such as `8 x NVIDIA H200` or `AMD EPYC, 2 threads`."""
    import torch
    from accelerate import PartialState

    device = PartialState().device
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if device.type == "cpu":
        threads = world * torch.get_num_threads()
        return f"{_cpu()}, {threads} thread{'' if threads == 1 else 's'}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return name if world == 1 else f"{world} x {name}"


def seconds_in_words(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _cpu() -> str:
    """The processor's name, which `platform` does not know on Linux."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())
