import numpy as np
import pandas as pd
import pytest

from trl_pafo.errors import DataError
from trl_pafo.metrics import group_accuracy, pair_correctness, user_accuracy
from trl_pafo.metrics.accuracy import encode_pairs


def test_correctness_counts_ties_half_and_refuses_nan():
    correct = pair_correctness([2.0, -0.5, 0.0, -0.0, 1e-300, np.inf, -np.inf])
    assert correct.dtype == np.float64
    assert correct.tolist() == [1.0, 0.0, 0.5, 0.5, 1.0, 1.0, 0.0]
    with pytest.raises(DataError, match=r"2 of 3 margins are NaN.*leave the pairs out"):
        pair_correctness([np.nan, 1.0, np.nan])


def test_user_and_group_accuracy_match_a_naive_loop():
    rng = np.random.default_rng(0)
    correct = rng.choice([0.0, 0.5, 1.0], size=200)
    user = rng.choice(["u10", "u9", "a", "b"], size=200).tolist()
    users, accuracy, counts = user_accuracy(correct, user)
    assert users == sorted(set(user))
    for name, value, count in zip(users, accuracy, counts, strict=True):
        mine = [c for c, u in zip(correct, user, strict=True) if u == name]
        assert count == len(mine)
        assert value == pytest.approx(sum(mine) / len(mine))
    assert group_accuracy(correct, user) == pytest.approx(dict(zip(users, accuracy, strict=True)))


@pytest.mark.parametrize("labels", [[7, 10, 7], ["7", 10, 7.0], np.array([7, 10, 7]), (u for u in (7, 10, 7))])
def test_labels_that_read_alike_are_one(labels):
    users, accuracy, counts = user_accuracy([1, 0, 1], labels)
    assert (users, accuracy.tolist(), counts.tolist()) == (["10", "7"], [0.0, 1.0], [1, 2])


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT, "", "  "])
def test_missing_labels_are_refused(missing):
    with pytest.raises(DataError, match=r"The pairs, row 1: has no `group`\. Fill the column"):
        group_accuracy([1, 0], ["a", missing])


@pytest.mark.parametrize(
    ("correct", "labels", "match"),
    [
        ([1, 0], ["a", "b", "c"], "There are 2 pairs, but 3 values of `group`"),
        ([], [], "at least one pair"),
        ([0.2, -1.3], ["a", "b"], "turn margins into it with `pair_correctness`"),
        ([0.2, np.nan], ["a", "b"], "must lie in"),
    ],
)
def test_wrong_columns_are_refused(correct, labels, match):
    with pytest.raises(DataError, match=match):
        group_accuracy(correct, labels)


def test_encoded_pairs_name_the_group_of_each_user():
    pairs = encode_pairs(["c", "a", "b", "a"], ["x", "y", "x", "y"], 4)
    assert pairs.users == ["a", "b", "c"]
    assert [pairs.groups[g] for g in pairs.group_of_user] == ["y", "x", "x"]
    with pytest.raises(DataError, match=r"User 'a' has pairs in two groups \(x, y\); give each user one group"):
        encode_pairs(["a", "b", "a"], ["x", "x", "y"], 3)
