"""How far two float32 computations of the same numbers may be apart.

The processor, the number of threads and the shape of a batch decide which kernels run, and in which order they add.
"""

from typing import Any

import torch

EPS = torch.finfo(torch.float32).eps


def rounding(*numbers: Any, steps: int = 0) -> float:
    """A tolerance by arithmetic, in the size of the largest of `numbers` (of 1, if all are smaller).

    A number of a tiny model comes from some 16 sums, one after the other, of up to 64 terms: each adds about 8 roundings, in both
    computations. An optimizer divides gradients by their size, near zero too: each of its `steps` may add many times that.
    """
    size = max([1.0, *(float(torch.as_tensor(values).detach().abs().max()) for values in numbers)])
    return 2 * 16 * 8 * (1 + 4 * steps) * EPS * size
