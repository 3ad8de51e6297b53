"""Whether a CPU trains faster in bfloat16 or in float32: it is measured, since some that have instructions for bfloat16 are slower in it."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from trl_pafo.prefix_sharing.attention import attend_in_float32

MIN_GAIN = 1.1
"""How many times as fast bfloat16 must be to be taken: it rounds more, and times vary."""
_HOPELESS = 2.0
"""How many times as long bfloat16 takes where measuring it once more is a waste of seconds."""


def fast_bf16(measure: Callable[[], tuple[float, float]] | None = None) -> bool:
    """Whether bfloat16 mixed precision is clearly faster than float32 on this CPU, by [`seconds_of_a_step`]; says so in a line."""
    in_float32, in_bf16 = (measure or seconds_of_a_step)()
    faster = in_float32 >= MIN_GAIN * in_bf16
    print(
        f"Training in {'bfloat16' if faster else 'float32'}: here a layer takes {1e3 * in_bf16:.0f} ms in bfloat16 and "
        f"{1e3 * in_float32:.0f} ms in float32 (--bf16 true or false decides instead).",
        flush=True,
    )
    return faster


def seconds_of_a_step(turns: int = 4, clock: Callable[[], float] = time.thread_time) -> tuple[float, float]:
    """Seconds of one thread for a forward and backward pass in float32 and in bfloat16 mixed precision, in turn; the least of each counts.

    It is a layer of the shape of the quickstart's model, with attention as there: 8 sequences of 128 tokens, 384 hidden units, 12 heads.
    Seconds are those of the processor, and threads would wait for each other, so that other work on the cores changes little.
    """
    hidden, heads = 384, 12
    with torch.random.fork_rng(devices=[]):
        rows = torch.randn(8, 128, hidden)
        shapes = ((3 * hidden, hidden), (hidden, hidden), (4 * hidden, hidden), (hidden, 4 * hidden))
        weights = [(0.02 * torch.randn(shape)).requires_grad_() for shape in shapes]
    attention, output, up, down = weights

    def step(bf16: bool) -> float:
        start = clock()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            query, key, value = F.linear(rows, attention).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            seen = attend_in_float32(F.scaled_dot_product_attention, query, key, value).transpose(1, 2).flatten(2)
            middle = F.layer_norm(rows + F.linear(seen, output), (hidden,))
            outputs = middle + F.linear(F.gelu(F.linear(middle, up)), down)
        torch.autograd.grad(outputs.float().sum(), weights)
        return clock() - start

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pairs = []
        for turn in range(turns):  # the first also makes the kernels ready
            pairs.append((step(False), step(True)))
            if turn and _least(pairs)[1] > _HOPELESS * _least(pairs)[0]:
                break
    finally:
        torch.set_num_threads(threads)
    return _least(pairs)


def _least(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    in_float32, in_bf16 = (min(times) for times in zip(*pairs, strict=True))
    return in_float32, in_bf16
