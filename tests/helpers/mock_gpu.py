"""A device that computes on the CPU, and otherwise is as strict as a GPU: it takes no tensor that is elsewhere, and counts what the host
waits for. Its tensors hold one of the CPU.

Not modeled: rounding, kernels, memory, streams, several devices.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils import backend_registration
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "mock"
aten = torch.ops.aten

# What makes the host wait for a GPU, beside copies and masks as indices: what `torch.cuda.set_sync_debug_mode` tells.
_WAITS = {
    aten._local_scalar_dense: "number",
    aten.is_nonzero: "number",
    aten.nonzero: "nonzero",
    aten.masked_select: "nonzero",
    aten.equal: "equal",
    aten._unique2: "unique",
    aten.unique_dim: "unique",
    aten.unique_consecutive: "unique",
    aten.bincount: "bincount",
    aten.repeat_interleave: "repeat_interleave",
}
_INDEXED = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
_OF_BATCHES = (aten.is_pinned, aten._pin_memory)


def _each_tensor(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """Arguments or results of an operator with each tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)([_each_tensor(each, change) for each in value])
    return {name: _each_tensor(each, change) for name, each in value.items()} if isinstance(value, dict) else value


class OnMock(torch.Tensor):
    """A tensor on the device."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> "OnMock":
        where = {"strides": host.stride(), "storage_offset": host.storage_offset(), "device": torch.device(NAME, 0)}
        made = torch.Tensor._make_wrapper_subclass(cls, host.size(), dtype=host.dtype, **where)
        made.host = host
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __format__(self, spec: str) -> str:
        return format(self.cpu(), spec)

    def numpy(self, **kwargs: Any) -> Any:
        raise TypeError("A tensor on the device has no array. Use Tensor.cpu() first.")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert MockGPU.current is not None, "the device is gone"
        return MockGPU.current.run(func, args, kwargs or {})


class MockGPU(TorchDispatchMode):
    """While it lasts, the device is there; `waits` counts by kind what the host waited for, `seeds` are those that it was given."""

    current: "MockGPU | None" = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.seeds: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        tensors: list[torch.Tensor] = []
        _each_tensor((args, kwargs), tensors.append)
        here = [tensor for tensor in tensors if isinstance(tensor, OnMock)]
        packet, device = func._overloadpacket, kwargs.get("device")
        to_here = device is not None and torch.device(device).type == NAME
        if packet in _OF_BATCHES:
            return self._pinning(packet, args[0])
        if not here and not to_here:
            return func(*args, **kwargs)
        moves = packet is aten._to_copy or packet is aten.copy_
        for tensor in tensors if not moves else ():
            if tensor.dim() and not isinstance(tensor, OnMock):
                raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got one of the CPU.")
        self._count(packet, args, kwargs, moves)
        on_cpu = {} if device is None else {"device": "cpu"}
        args_there, kwargs_there = _each_tensor((args, kwargs | on_cpu), lambda tensor: getattr(tensor, "host", tensor))
        found = func(*args_there, **kwargs_there)
        if torch.Tag.inplace_view in func.tags:  # the shape of the tensor here follows
            with no_dispatch():
                func(*args, **kwargs)
        if packet is aten.copy_ and not isinstance(args[0], OnMock):
            return args[0]
        if not isinstance(found, torch.Tensor | tuple | list) or (device is not None and not to_here):
            return found.clone() if found is args_there[0] else found
        same = {id(tensor.host): tensor for tensor in here}
        return _each_tensor(found, lambda tensor: same[id(tensor)] if id(tensor) in same else OnMock(tensor))

    def _count(self, packet: Any, args: Any, kwargs: dict[str, Any], moves: bool) -> None:
        if moves:
            source, into = (args[0], kwargs.get("device")) if packet is aten._to_copy else (args[1], args[0].device)
            waits = not (kwargs.get("non_blocking") or (packet is aten.copy_ and len(args) > 2 and args[2]))
            if into is not None and torch.device(into).type != source.device.type:
                self.waits["to the host" if source.device.type == NAME else "from the host"] += waits
        elif packet in _WAITS and not kwargs.get("output_size"):
            self.waits[_WAITS[packet]] += 1
        elif packet in _INDEXED:
            self.waits["nonzero"] += sum(index is not None and index.dtype == torch.bool for index in args[1])

    def _pinning(self, packet: Any, tensor: torch.Tensor) -> Any:
        if packet is aten.is_pinned:
            return hasattr(tensor, "pinned")
        pinned = tensor.clone()
        pinned.pinned = True
        return pinned


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return MockGPU.current is not None

    def has_primary_context(self, device: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


class _Module(backend_registration._DummyBackendModule):
    def is_available(self) -> bool:
        return MockGPU.current is not None

    def manual_seed_all(self, seed: int) -> None:
        if MockGPU.current is not None:
            MockGPU.current.seeds.append(seed)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


@cache
def _register() -> None:
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module(), _Hooks())


@contextmanager
def mock_gpu() -> Iterator[MockGPU]:
    """The device is there, and what does not ask for the CPU trains and scores on it."""
    _register()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_TORCH_DEVICE", f"{NAME}:0")
        AcceleratorState._reset_state(reset_partial_state=True)
        torch._C._set_only_lift_cpu_tensors(
            True
        )  # `torch.tensor(..., device=...)` makes its tensor on the CPU, and then moves it
        try:
            with MockGPU() as device, torch.autograd.set_multithreading_enabled(False):  # backward passes see the mode
                patch.setattr(MockGPU, "current", device)
                yield device
        finally:
            torch._C._set_only_lift_cpu_tensors(False)
            AcceleratorState._reset_state(reset_partial_state=True)
