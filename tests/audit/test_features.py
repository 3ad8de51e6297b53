"""The sample of users, and who may show which past pair."""

import pytest
from datasets import Dataset
from helpers.parts import make_pairs

from trl_pafo.audit.features import MAX_PAIRS_A_USER, pair_features, sample_rows
from trl_pafo.evaluation.text_features import embed_texts


def test_the_sample_keeps_whole_users_and_the_shares_of_groups():
    rows = make_pairs(num_users=50, pairs_per_user=6, num_minority=10, history=0)
    sample = sample_rows(rows, 120, seed=0)
    assert 108 <= len(sample) <= 120
    users = sample["user"][:]
    assert all(users.count(user) == 6 for user in set(users))
    assert sample["group"][:].count("minority") == 24
    assert sample["user"][:] == sample_rows(rows, 120, seed=0)["user"][:] != sample_rows(rows, 120, seed=1)["user"][:]
    assert sample_rows(rows, 1000, seed=0)["user"][:] == rows["user"][:]


def test_nobody_fills_the_sample_alone():
    rows = make_pairs(num_users=4, pairs_per_user=50, num_minority=2, history=0)
    sample = sample_rows(rows, 10_000, seed=0)
    assert len(sample) == 4 * MAX_PAIRS_A_USER
    assert len(set(sample_rows(rows, 50, seed=0)["user"])) == 4  # two of each group at least


def test_the_past_are_the_users_other_pairs_newest_first(encoder):
    rows = make_pairs(num_users=2, pairs_per_user=4, num_minority=1, history=0)
    rows = rows.map(lambda row, i: {"prompt": "the same" if i in (1, 2) else row["prompt"]}, with_indices=True)
    features = pair_features(rows, encoder)
    assert list(features.past[3]) == [2, 1, 0]
    assert list(features.past[0]) == [3, 2, 1]
    assert list(features.past[2]) == [0, 3]  # not the pair with its own prompt
    assert all(entry >= 4 for entry in features.past[5])
    both = embed_texts([*rows["chosen"], *rows["rejected"]], encoder)
    assert features.differences == pytest.approx(both[:8] - both[8:])


def test_a_given_history_is_the_past(encoder):
    rows = make_pairs(num_users=3, pairs_per_user=2, num_minority=1, history=2)
    features = pair_features(rows, encoder)
    assert len(features.differences) == 6 + 12
    assert features.past[0] == [6, 7]
    own = rows[0]["history"][1] | {"prompt": rows[0]["prompt"]}
    leaking = rows.map(lambda row, i: {"history": [own, *row["history"]] if i == 0 else row["history"]}, with_indices=True)
    assert len(pair_features(leaking, encoder).past[0]) == 2


def test_pairs_of_one_topic_are_told_apart_by_their_statements(encoder):
    sides = [("a", "b"), ("c", "a"), ("c", "d"), ("b", "a")]
    rows = [{"prompt": "Parks", "chosen": c, "rejected": r, "user": "u", "group": "g"} for c, r in sides]
    features = pair_features(Dataset.from_list(rows), encoder)
    assert list(map(list, features.past)) == [[2], [], [0, 3], [2]]
    assert features.prompt[0] == features.prompt[3]
    assert len(set(features.prompt)) == 3
