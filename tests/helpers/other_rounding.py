"""Another processor, as a plugin (`pytest -p other_rounding`): products of matrices round otherwise, by the shape of what is multiplied.

Equal products on equal shapes stay equal to the bit, all others differ by up to eight roundings, as between any two kernels.
"""

from functools import cache

import torch
import torch.nn.functional as F

EPS = torch.finfo(torch.float32).eps
_linear = F.linear


@cache
def _rounding(shape: tuple[int, ...]) -> torch.Tensor:
    return 1 + 16 * EPS * (torch.rand(shape, generator=torch.Generator().manual_seed(hash(shape) % 2**31)) - 0.5)


def linear(*args, **kwargs):
    product = _linear(*args, **kwargs)
    if product.dtype is not torch.float32 or type(product) is not torch.Tensor or torch.compiler.is_compiling():
        return product
    with torch._C._DisableTorchDispatch():  # what watches the operations of a model is not to see this one
        factor = _rounding(tuple(product.shape))
    return product * factor


F.linear = linear
