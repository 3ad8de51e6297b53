"""Accuracy against support, against scipy and numpy."""

import itertools

import numpy as np
import pytest
from scipy.stats import spearmanr

from trl_pafo.audit.trend import accuracy_against_support


def data(num_users=80, seed=0, slope=0.5, values=None):
    rng = np.random.default_rng(seed)
    rate = rng.choice(values, num_users) if values else rng.random(num_users)
    user = np.repeat(np.arange(num_users), rng.integers(2, 9, num_users))
    correct = (rng.random(len(user)) < 0.4 + slope * rate[user]).astype(float)
    return correct, user, rate


def test_spearman_and_line_equal_scipy_and_numpy():
    correct, user, rate = data()
    found = accuracy_against_support(correct, user, rate[user], num_resamples=200)
    accuracy = [correct[user == u].mean() for u in range(80)]
    order = np.argsort([str(u) for u in range(80)])
    assert found["spearman"]["value"] == pytest.approx(spearmanr(accuracy, rate).statistic)
    assert found["spearman"]["low"] > 0
    slope, intercept = np.polyfit(rate[user], correct, 1)
    assert (found["slope"]["value"], found["intercept"]) == pytest.approx((slope, intercept))
    assert found["users"]["accuracy"] == pytest.approx(np.array(accuracy)[order])
    assert found["users"]["support"] == pytest.approx(rate[order])


def test_no_trend_is_not_claimed():
    correct, user, rate = data(slope=0.0, num_users=200)
    found = accuracy_against_support(correct, user, rate[user], num_resamples=300)["spearman"]
    assert found["low"] < 0 < found["high"]


def test_bins_hold_every_user_once_and_few_values_are_not_mixed():
    correct, user, rate = data(values=(0.1, 0.9))
    bins = accuracy_against_support(correct, user, rate[user], num_resamples=100)["bins"]
    assert [entry["low"] for entry in bins] == [entry["high"] for entry in bins] == [0.1, 0.9]
    assert bins[0]["accuracy"]["value"] == pytest.approx(correct[rate[user] == 0.1].mean())
    correct, user, rate = data()
    bins = accuracy_against_support(correct, user, rate[user], num_resamples=100)["bins"]
    assert len(bins) == 6
    assert sum(entry["users"] for entry in bins) == 80
    assert sum(entry["pairs"] for entry in bins) == len(user)
    assert all(a["high"] <= b["low"] for a, b in itertools.pairwise(bins))


def test_the_ceiling_is_that_of_common_pairs():
    correct, user, rate = data(values=(0.1, 0.9))
    ceiling = np.where(np.arange(len(user)) % 3 == 0, np.nan, 0.8)
    first = accuracy_against_support(correct, user, rate[user], ceiling, num_resamples=100)["bins"][0]
    mine = (rate[user] == 0.1) & ~np.isnan(ceiling)
    assert first["common_pairs"] == mine.sum()
    assert first["ceiling"]["value"] == pytest.approx(0.8)
    assert first["accuracy_there"] == pytest.approx(correct[mine].mean())


def test_equal_support_has_no_trend():
    correct, user, _ = data()
    found = accuracy_against_support(correct, user, np.full(len(user), 0.5), num_resamples=50)
    assert np.isnan(found["spearman"]["value"])
    assert np.isnan(found["slope"]["value"])
    assert len(found["bins"]) == 1
