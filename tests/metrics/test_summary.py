import json

import numpy as np
import pytest

from trl_pafo.errors import ConfigError, DataError
from trl_pafo.metrics import cvar, fairness_summary, gini, std

RATES = {"a": 0.9, "b": 0.6, "c": 0.75}


def draw(num_users=60, seed=0):
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(num_users), rng.integers(1, 7, size=num_users))
    group = np.array(list("aaabbc"))[user % 6]
    correct = (rng.random(len(user)) < np.array([RATES[g] for g in group])).astype(float)
    return correct, [f"u{u}" for u in user], group.tolist()


def test_values_match_naive_ones():
    correct, user, group = draw()
    summary = fairness_summary(correct, user, group, num_resamples=20)
    by_group = {g: np.mean([c for c, h in zip(correct, group, strict=True) if h == g]) for g in "abc"}
    by_user = [np.mean([c for c, v in zip(correct, user, strict=True) if v == u]) for u in sorted(set(user))]
    expected = {
        "overall": np.mean(correct),
        **{f"accuracy/{g}": accuracy for g, accuracy in by_group.items()},
        "group_min": min(by_group.values()),
        "difference": max(by_group.values()) - min(by_group.values()),
        "user_worst_decile": cvar(by_user),
        "user_gini": gini(by_user),
        "user_std": std(by_user),
    }
    measured = {name: entry["value"] for name, entry in summary.items() if isinstance(entry, dict)}
    assert measured == pytest.approx(expected)
    assert summary["num_pairs"] == len(correct)
    assert summary["num_users"] == 60
    assert {g: summary[f"num_pairs/{g}"] for g in "abc"} == {g: group.count(g) for g in "abc"}
    assert {g: summary[f"num_users/{g}"] for g in "abc"} == {"a": 30, "b": 20, "c": 10}


def test_every_interval_holds_its_value_and_has_a_width():
    summary = fairness_summary(*draw())
    for entry in summary.values():
        if isinstance(entry, dict):
            assert set(entry) == {"value", "low", "high"}
            assert entry["low"] <= entry["value"] <= entry["high"]
            assert 0 < entry["high"] - entry["low"] < 0.5


def test_interval_of_equal_groups_still_holds_the_difference():
    # All resampled differences lie at or above 0, the value: without widening, most intervals would leave it out.
    user = np.repeat(np.arange(200), 3)
    correct = np.tile([1.0, 1.0, 0.0, 1.0, 0.0, 0.0], 100)
    entry = fairness_summary(correct, user, user // 2 % 2)["difference"]
    assert entry["value"] == 0
    assert entry["low"] == 0 < entry["high"]


def test_overall_interval_covers_the_truth():
    held = 0
    for seed in range(60):
        correct, user, group = draw(num_users=120, seed=seed)
        entry = fairness_summary(correct, user, group, num_resamples=300, seed=seed)["accuracy/b"]
        held += entry["low"] <= RATES["b"] <= entry["high"]
    assert held >= 52
    assert held < 60


def test_confidence_widens():
    wide = fairness_summary(*draw(), confidence=0.99)["overall"]
    narrow = fairness_summary(*draw(), confidence=0.5)["overall"]
    assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]


def test_majority_against_all_others():
    correct, user, group = draw()
    summary = fairness_summary(correct, user, group, majority="a")
    others = [c for c, g in zip(correct, group, strict=True) if g != "a"]
    assert summary["majority"] == pytest.approx(summary["accuracy/a"])
    assert summary["minority"]["value"] == pytest.approx(np.mean(others))
    assert summary["minority"]["low"] < summary["minority"]["value"] < summary["minority"]["high"]
    assert "minority" not in fairness_summary(correct, user, group)


def test_json_holds_it_and_the_seed_decides():
    summary = fairness_summary(*draw(), majority="b")
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert fairness_summary(*draw(), majority="b") == summary
    assert fairness_summary(*draw(), majority="b", seed=1) != summary


def test_one_group_and_one_user():
    summary = fairness_summary([1, 0, 1, 1], ["u"] * 4, ["g"] * 4)
    assert summary["overall"] == {"value": 0.75, "low": 0.75, "high": 0.75}
    assert summary["difference"]["value"] == 0
    assert summary["user_gini"]["value"] == 0


def test_unusable_input():
    correct, user, group = draw()
    with pytest.raises(DataError, match="`majority` must be one of at least two groups, but is 'z'"):
        fairness_summary(correct, user, group, majority="z")
    with pytest.raises(DataError, match="at least two groups"):
        fairness_summary([1, 0], ["u", "v"], ["a", "a"], majority="a")
    with pytest.raises(DataError, match="pairs in two groups"):
        fairness_summary([1, 0], ["u", "u"], ["a", "b"])
    with pytest.raises(ConfigError, match="`confidence`"):
        fairness_summary(correct, user, group, confidence=95)
