"""The number format that a CPU trains in: what times mean, and that both formats are timed alike."""

from itertools import accumulate

import pytest
import torch

from trl_pafo.models.number_format import fast_bf16, seconds_of_a_step


@pytest.mark.parametrize(
    ("in_float32", "in_bf16", "taken"),
    [(0.040, 0.020, True), (0.0221, 0.020, True), (0.0219, 0.020, False), (0.020, 0.027, False)],
)
def test_bfloat16_must_be_a_tenth_faster(in_float32, in_bf16, taken, capsys):
    assert fast_bf16(lambda: (in_float32, in_bf16)) is taken
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"Training in {'bfloat16' if taken else 'float32'}: ")
    assert f"{1e3 * in_bf16:.0f} ms in bfloat16 and {1e3 * in_float32:.0f} ms in float32" in line
    assert "--bf16" in line


def test_the_least_of_each_format_counts_and_they_are_timed_in_turn():
    # Steps as they are taken: float32, bfloat16, float32, bfloat16, ...; the clock is read before and after each.
    durations = [9.0, 8.0, 3.0, 5.0, 4.0, 2.0]
    times = accumulate(step for duration in durations for step in (1.0, duration))
    formats = []

    class Watched(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if str(func) == "aten.gelu.default":
                formats.append(out.dtype)
            return out

    with Watched():
        assert seconds_of_a_step(turns=3, clock=lambda: next(times)) == (3.0, 2.0)
    assert formats == [torch.float32, torch.bfloat16] * 3


def test_random_numbers_and_threads_of_the_run_stay_as_they_are(monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    seconds_of_a_step(turns=1)
    assert torch.equal(torch.rand(2), expected)
    assert threads == [1, 7]
