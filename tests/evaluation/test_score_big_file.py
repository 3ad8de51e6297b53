"""A file of many rows, scored by processes of their own: memory does not grow with it, and SIGKILL at any moment loses no row."""

import csv
import gzip
import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.parts import WORDS
from helpers.ranks import environment

pytestmark = pytest.mark.slow

# Neither tokens nor a forward pass: what is left is reading, checking and writing.
SCORE = r"""
import re, sys, zlib
from pathlib import Path
from trl_pafo.cli import main
from trl_pafo.data.rendering import InputRenderer
from trl_pafo.evaluation import score_file
from trl_pafo.models.scoring import RewardScorer

InputRenderer.sequences = lambda self, rows, *given, **how: [{"response": [1]} for row in rows]
RewardScorer.score = lambda self, rows, **how: [{"response": zlib.crc32(row["response"].encode()) / 2**32} for row in rows]
linux = Path("/proc/self/clear_refs")
linux.exists() and linux.write_text("5")  # the peak is measured anew: loading the libraries is not meant
# That of `resource` would be the peak of the process that started this one.
peak = lambda: int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024 if linux.exists() else 0
before = peak()
status = main(["score", *sys.argv[1:]])
print(f"memory: {before:.0f} MB and {peak() - before:.1f} MB", flush=True)
sys.exit(status)
"""


def write(path, num_rows, num_words=11):
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


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of the memory is read from Linux")
@pytest.mark.parametrize(("name", "most"), [("rows.jsonl", 200_000), ("rows.jsonl.gz", 200_000), ("rows.csv", 1_000_000)])
def test_memory_does_not_grow_with_the_rows(encoder, tmp_path, name, most):
    grown = []
    for num_rows in (10_000, most):
        out = tmp_path / f"{num_rows}"
        assert start(encoder, write(tmp_path / name, num_rows), out).wait() == 0
        assert out.read_bytes().count(b"\n") == num_rows
        of_libraries, more = re.search(r"memory: (\d+) MB and ([\d.]+) MB", (tmp_path / f"{num_rows}.log").read_text()).groups()
        print(f"{name}, {num_rows:,} rows: {more} MB beside {of_libraries} MB of libraries")
        grown.append(float(more))
    assert grown[1] < grown[0] + 5  # eight bytes a row of a million would be more


def test_killed_at_random_moments_it_ends_as_if_nothing_had_happened(encoder, tmp_path):
    rng, path = random.Random(0), write(tmp_path / "rows.jsonl", 40_000)
    assert start(encoder, path, tmp_path / "whole").wait() == 0
    lines = tmp_path / "out.partial/lines"
    for _ in range(3):
        before = lines.stat().st_size if lines.exists() else 0
        process = start(encoder, path, tmp_path / "out")
        while process.poll() is None and not (lines.exists() and lines.stat().st_size > before):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert start(encoder, path, tmp_path / "out").wait() == 0
    assert "Going on after" in (tmp_path / "out.log").read_text()
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    assert not (tmp_path / "out.partial").exists()
