import numpy as np
import pandas as pd
import pytest

from trl_pafo.errors import DataError
from trl_pafo.metrics import group_accuracy, pair_correctness, preference_score, user_accuracy, win_rates
from trl_pafo.metrics.accuracy import check_both, encode_pairs, group_gap


def test_correctness_counts_ties_half_and_refuses_nan():
    correct = pair_correctness([2.0, -0.5, 0.0, -0.0, 1e-300, np.inf, -np.inf])
    assert correct.dtype == pair_correctness(np.float32([2.0])).dtype == np.float64
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


def test_what_authors_of_benchmarks_count_matches_a_naive_loop():
    rng = np.random.default_rng(1)
    margins = rng.choice([-1.5, 0.0, 0.5], size=60)
    part = rng.choice(["art", "life"], size=60).tolist()
    won = [1 if margin > 0 else 0 for margin in margins]
    found = win_rates(margins, part)
    assert win_rates(margins) == {name: value for name, value in found.items() if "/" not in name}
    assert found.pop("chosen_win_rate") == pytest.approx(sum(won) / 60)
    assert found.pop("ties") == margins.tolist().count(0.0)
    assert found.pop("mean_difference") == pytest.approx(sum(margins) / 60)
    for name in ("art", "life"):
        of_part = [w for w, p in zip(won, part, strict=True) if p == name]
        assert found.pop(f"chosen_win_rate/{name}") == pytest.approx(sum(of_part) / len(of_part))
    assert not found
    points = [1 if margin > 0 else -1 if margin < 0 else 0 for margin in margins]
    mean = sum(points) / 60
    assert preference_score(margins) == pytest.approx({"mean": mean, "accuracy": (mean + 1) / 2})


@pytest.mark.parametrize(
    ("accuracy", "mean", "low", "high", "difference", "ratio"),
    [
        ({"a": 0.9, "b": 0.6, "c": 0.75}, 0.75, 0.6, 0.9, 0.3, 0.6 / 0.9),
        ({"a": 0.0, "b": 0.5}, 0.25, 0.0, 0.5, 0.5, 0.0),
        ({"a": 0.0, "b": 0.0}, 0.0, 0.0, 0.0, 0.0, np.nan),
        ({"a": 0.8}, 0.8, 0.8, 0.8, np.nan, np.nan),  # one group has no gap to others
    ],
)
def test_the_gap_of_groups(accuracy, mean, low, high, difference, ratio):
    expected = {"group_mean": mean, "group_min": low, "group_max": high, "difference": difference, "ratio": ratio}
    assert group_gap(accuracy) == pytest.approx({f"accuracy_{name}": value for name, value in expected.items()}, nan_ok=True)


def test_a_model_and_its_reference_are_right_about_the_same_pairs():
    assert [values.tolist() for values in check_both([1, 0], [0.5, 1])] == [[1.0, 0.0], [0.5, 1.0]]
    with pytest.raises(
        DataError, match="The model has 2 pairs and the reference 3: score both on the same pairs, in the same order"
    ):
        check_both([1, 0], [1, 0, 1])
    with pytest.raises(DataError, match="`reference_correct` must lie"):
        check_both([1, 0], [1, 2])


@pytest.mark.parametrize("given", [list, np.array, lambda labels: (label for label in labels), lambda labels: ["7", 10, 7.0]])
def test_labels_that_read_alike_are_one(given):
    users, accuracy, counts = user_accuracy([1, 0, 1], given([7, 10, 7]))
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
        ([0.2, 1.3], ["a", "b"], "turn margins into it with `pair_correctness`"),
        ([0.2, -1.3], ["a", "b"], "turn margins into it with `pair_correctness`"),
        ([0.2, np.nan], ["a", "b"], "must lie in"),
    ],
)
def test_wrong_columns_are_refused(correct, labels, match):
    with pytest.raises(DataError, match=match):
        group_accuracy(correct, labels)


def test_where_users_or_groups_are_not_known():
    alone = encode_pairs(None, ["x", "y", "x"], 3)  # each pair as a user of its own
    assert (alone.users, alone.has_users) == (["0", "1", "2"], False)
    assert (alone.user_codes.tolist(), alone.group_of_user.tolist()) == ([0, 1, 2], [0, 1, 0])
    users = encode_pairs(["b", "a", "b"], None, 3)
    assert (users.users, users.groups, users.has_users) == (["a", "b"], [], True)
    codes = (users.user_codes, users.group_codes, users.group_of_user)
    assert [(found.tolist(), found.dtype) for found in codes] == [([1, 0, 1], int), ([0, 0, 0], int), ([0, 0], int)]


def test_encoded_pairs_name_the_group_of_each_user():
    pairs = encode_pairs(["c", "a", "b", "a"], ["x", "y", "x", "y"], 4)
    assert pairs.users == ["a", "b", "c"]
    assert [pairs.groups[g] for g in pairs.group_of_user] == ["y", "x", "x"]
    with pytest.raises(DataError, match=r"User 'a' has pairs in two groups \(x, y\); give each user one group"):
        encode_pairs(["a", "b", "a"], ["x", "x", "y"], 3)
