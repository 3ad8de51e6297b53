import numpy as np
import pandas as pd
import pytest

from trl_pafo.errors import DataError
from trl_pafo.metrics import group_accuracy, pair_correctness, user_accuracy
from trl_pafo.metrics.accuracy import encode_labels, encode_pairs


def test_correctness_counts_ties_half():
    correct = pair_correctness([2.0, -0.5, 0.0, -0.0, 1e-300, np.inf, -np.inf])
    assert correct.dtype == np.float64
    assert correct.tolist() == [1.0, 0.0, 0.5, 0.5, 1.0, 1.0, 0.0]


def test_correctness_refuses_nan():
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


def test_labels_may_be_any_iterable_and_numbers_become_strings():
    assert user_accuracy([1, 0, 1], (u for u in (7, 10, 7)))[0] == ["10", "7"]
    names, codes = encode_labels(np.array([3, 1, 3]), "user", 3)
    assert [names[c] for c in codes] == ["3", "1", "3"]


def test_labels_that_read_alike_are_one():
    users, _, counts = user_accuracy([1, 0, 1], [1, "1", "2"])
    assert users == ["1", "2"]
    assert counts.tolist() == [2, 1]


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT, "", "  "])
def test_missing_labels_are_refused(missing):
    with pytest.raises(DataError, match=r"The pairs, row 1: has no `group`\. Fill the column"):
        group_accuracy([1, 0], ["a", missing])


def test_wrong_columns_are_refused():
    with pytest.raises(DataError, match="There are 2 pairs, but 3 values of `user`"):
        user_accuracy([1, 0], ["a", "b", "c"])
    with pytest.raises(DataError, match="at least one pair"):
        group_accuracy([], [])
    with pytest.raises(DataError, match="turn margins into it with `pair_correctness`"):
        group_accuracy([0.2, -1.3], ["a", "b"])
    with pytest.raises(DataError, match="must lie in"):
        group_accuracy([0.2, np.nan], ["a", "b"])


def test_encoded_pairs_name_the_group_of_each_user():
    pairs = encode_pairs(["c", "a", "b", "a"], ["x", "y", "x", "y"], 4)
    assert pairs.users == ["a", "b", "c"]
    assert [pairs.groups[g] for g in pairs.group_of_user] == ["y", "x", "x"]


def test_user_in_two_groups_is_refused():
    with pytest.raises(DataError, match=r"User 'a' has pairs in two groups \(x, y\); give each user one group"):
        encode_pairs(["a", "b", "a"], ["x", "x", "y"], 3)
