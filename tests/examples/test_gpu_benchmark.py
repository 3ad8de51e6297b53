"""benchmarks/gpu.py, which is for a GPU, on tiny models: what it counts, and that nothing that it has measured is lost."""

import importlib.util
import json
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from trl_pafo.prefix_sharing.rows import PAIR_LENGTHS, collate_pairs, dense_mask, row_layout


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[2] / "benchmarks/gpu.py"
    spec = importlib.util.spec_from_file_location("gpu_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_flops_are_those_that_torch_counts_but_for_what_no_token_sees(script):
    """torch counts a forward and backward pass over the shared rows of pairs, with attention of every token to every other one."""
    shape = script.TINY
    pairs = [script.make_pairs(40, 1, share, shape["vocab_size"], seed)[0] for seed, share in enumerate((0.0, 0.5, 0.75))]
    model = script.make_model(shape, "eager").float()
    width = shape["num_attention_heads"] * shape["head_dim"]
    for pair in pairs:
        batch = collate_pairs([pair], 0)
        ids = batch["input_ids"]
        with FlopCounterMode(display=False) as counter:
            model(ids).logits.sum().backward()
        seen = int(dense_mask(row_layout(batch[PAIR_LENGTHS], ids.shape[1])).sum())
        unseen = 12 * shape["num_hidden_layers"] * width * (ids.numel() ** 2 - seen)
        assert script.needed_flops([pair], model) == pytest.approx(counter.get_total_flops() - unseen, rel=0.002)
    together = script.needed_flops(pairs, model)
    assert together == sum(script.needed_flops([pair], model) for pair in pairs)


@pytest.fixture
def run(script, tmp_path, monkeypatch, capsys):
    """What the script writes and prints."""

    def call(*arguments):
        out = tmp_path / "gpu.json"
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--parts", "speed", "--output", str(out), *arguments])
        script.main()
        return json.loads(out.read_text()) if out.exists() else None, capsys.readouterr().out

    return call


def test_what_does_not_fit_is_told_and_the_next_goes_on(script, run, monkeypatch, tmp_path):
    measure = script.measure_side
    written = []

    def full(side, *args):
        written.append((tmp_path / "gpu.json").exists())
        if side == "PAFO, all off":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return measure(side, *args)

    monkeypatch.setattr(script, "measure_side", full)
    results, said = run()
    sides = results["speed tiny 64"]
    assert list(sides) == list(script.SIDES)
    assert sides.pop("PAFO, all off")[0]["failed"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
    assert "tiny, 64 tokens, PAFO, all off: FAILED: OutOfMemoryError" in said
    assert written == [False, *[True] * (len(written) - 1)]  # after each training
    base = sides["RewardTrainer"][0]
    for (found,) in sides.values():
        assert found.get("batch") == 8, found
        assert found["ratio"] == found["tokens_per_second"] / base["tokens_per_second"]
        assert sum(found["step_seconds"]) == pytest.approx(16 / found["pairs_per_second"])
        assert 0 < found["mfu"] < 1


def test_no_training_begins_that_would_end_too_late(script, run, monkeypatch):
    monkeypatch.setattr(script, "measure_side", lambda *args: pytest.fail("measured"))
    results, said = run("--minutes", "0")
    assert results is None
    assert said.count("not measured, no time left") == len(script.SIDES)


def test_a_training_that_takes_too_long_is_stopped_and_what_was_measured_is_kept(script, run, monkeypatch):
    def endless(side, *args):
        if side == "PAFO, all off":
            time.sleep(60)
        return {"tokens_per_second": 1.0, "pairs_per_second": 1.0, "mfu": 0.5, "peak_gib": None}

    monkeypatch.setattr(script, "measure_side", endless)
    monkeypatch.setattr(script, "GRACE", 0.2)
    results, said = run("--minutes", "0.01", "--parts", "speed", "equality")
    sides = results["speed tiny 64"]
    assert sides["RewardTrainer"][0]["tokens_per_second"] == 1
    assert sides["PAFO, all off"][0]["failed"] == "TimeoutError: no time left"
    assert "PAFO, everything: not measured, no time left" in said
    assert "PAFO, all off: equality not measured, no time left" in said
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
