"""The script that measures speed and memory: both its ways compute the same."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "metrics_speed.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("metrics_speed", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_both_ways_compute_the_same(script):
    data = script.draw(3000, 300)
    plain = script.Plain(data)
    ours = script.ours_summary(data, 200, "percentile")
    entries = {name: entry for name, entry in ours.items() if isinstance(entry, dict)}
    assert {name: entry["value"] for name, entry in entries.items()} == pytest.approx(plain.numbers(np.arange(300)))
    drawn = plain.summary(200)
    for name in ("overall", "accuracy/a", "user_gini", "support_spearman", "ece"):
        low, high = np.quantile([each[name] for each in drawn], [0.025, 0.975])
        assert [entries[name]["low"], entries[name]["high"]] == pytest.approx([low, high], abs=0.3 * (high - low))
    verdict = script.ours_compare(data, 400)
    halves = plain.compare(400)
    for place, (low, high) in enumerate(np.quantile(halves, [0.00625, 0.99375], axis=0).T):
        found = list(verdict.differences.values())[place]
        assert [found["low"], found["high"]] == pytest.approx([low, high], abs=0.5 * (high - low))
    assert script.draw(3000, 300).user == data.user
    assert len(set(data.user)) == 300
