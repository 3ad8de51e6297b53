"""A file of many rows, scored by processes of their own: memory does not grow with it, and SIGKILL at any moment loses no row."""

import csv
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from helpers.parts import WORDS
from helpers.ranks import environment

pytestmark = pytest.mark.slow

# Neither tokens nor a forward pass: what is left is reading, checking and writing.
SCORE = """
import sys, zlib
from trl_pafo.cli import main
from trl_pafo.data.rendering import InputRenderer
from trl_pafo.models.scoring import RewardScorer

InputRenderer.sequences = lambda self, rows, *given, **how: [{"response": [1]} for row in rows]
RewardScorer.score = lambda self, rows, **how: [{"response": zlib.crc32(row["response"].encode()) / 2**32} for row in rows]
sys.exit(main(["score", *sys.argv[1:]]))
"""


def write(path, num_rows, num_words=40):
    rng = random.Random(0)
    rows = ((f"prompt {number}", " ".join(rng.choices(WORDS, k=num_words))) for number in range(num_rows))
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="") as file:
        if ".csv" in path.name:
            csv.writer(file).writerows([("prompt", "response"), *rows])
        else:
            file.writelines(json.dumps({"prompt": prompt, "response": response}) + "\n" for prompt, response in rows)
    return path


def start(model, path, out):
    command = [sys.executable, "-c", SCORE, "--model_name_or_path", model, "--input", str(path), "--output", str(out)]
    with open(f"{out}.log", "w") as log:
        return subprocess.Popen(command, env=environment(), stdout=log, stderr=log)


def peak(process):
    """Peak of the resident memory of a process that ends well, in MB."""
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv"])
def test_memory_does_not_grow_with_the_rows(encoder, tmp_path, name):
    peaks = []
    for num_rows in (2_000, 200_000):
        out = tmp_path / f"{num_rows}"
        peaks.append(peak(start(encoder, write(tmp_path / name, num_rows), out)))
        assert out.read_bytes().count(b"\n") == num_rows
    assert peaks[1] < peaks[0] + 20  # the larger file is 50 MB of text


def test_killed_at_random_moments_it_ends_as_if_nothing_had_happened(encoder, tmp_path):
    rng, path = random.Random(0), write(tmp_path / "rows.jsonl", 100_000, num_words=5)
    assert start(encoder, path, tmp_path / "whole").wait() == 0
    lines = tmp_path / "out.partial/lines"
    for _ in range(5):
        before = lines.stat().st_size if lines.exists() else 0
        process = start(encoder, path, tmp_path / "out")
        while process.poll() is None and not (lines.exists() and lines.stat().st_size > before):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert start(encoder, path, tmp_path / "out").wait() == 0
    assert "Going on after" in (tmp_path / "out.log").read_text()
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    assert not (tmp_path / "out.partial").exists()
