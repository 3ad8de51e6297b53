"""Python runs this at its start where this folder is on its path: accelerate takes processes on the CPU for those of GPUs.

FSDP and DeepSpeed on the CPU need it, as accelerate would fall back to plain DDP without a word. The tests alone put the folder
on the path, and assert the class of the wrapper that they got: where `WRAPPERS` names a file, what the student was wrapped in is
written there, for processes that a test does not start itself.
"""

import io
import json
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import wraps

from accelerate import Accelerator
from accelerate.state import DistributedType, PartialState

if "ACCELERATE_TORCH_DEVICE" in os.environ:
    start = PartialState.__init__

    def start_as_on_a_gpu(self, cpu=False, **options):
        """Who has looked for a GPU in vain asks for the CPU. What DeepSpeed compiles for a CPU, and for no GPU, it prints."""
        with redirect_stdout(io.StringIO()):
            start(self, **options)

    PartialState.__init__ = start_as_on_a_gpu
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)


def written_down(prepare: Callable) -> Callable:
    @wraps(prepare)
    def prepare_and_write(self, *args, **kwargs):
        prepared = prepare(self, *args, **kwargs)
        for thing in prepared if isinstance(prepared, tuple | list) else (prepared,):
            if hasattr(thing, "forward"):
                stage = thing.zero_optimization_stage() if hasattr(thing, "zero_optimization_stage") else None
                found = {"classes": [kind.__name__ for kind in type(thing).__mro__], "stage": stage, "rank": self.process_index}
                with open(os.environ["WRAPPERS"], "a") as file:
                    file.write(json.dumps(found) + "\n")
        return prepared

    return prepare_and_write


if "WRAPPERS" in os.environ:
    Accelerator.prepare = written_down(Accelerator.prepare)
    Accelerator.prepare_model = written_down(Accelerator.prepare_model)
