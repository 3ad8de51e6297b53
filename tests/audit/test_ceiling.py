"""Votes and noise ceiling against naive loops and closed forms; taste and noise against populations of which the truth is known."""

import itertools

import numpy as np
import pytest

from trl_pafo.audit.ceiling import (
    half_of_pairs,
    majority_of_others,
    mean_over_users,
    noise_ceiling,
    support_on,
    taste_or_noise,
    user_weights,
)
from trl_pafo.audit.votes import Votes, others_votes, votes_of
from trl_pafo.data.groups import support_rate_by_agreement
from trl_pafo.errors import DataError


def make_votes(chance, num_pairs=150, votes_a_pair=5, seed=0):
    """`chance(user, pair)` that a user prefers the pair's first response; users drawn at random for each pair."""
    rng = np.random.default_rng(seed)
    num_users = len(chance)
    user, pair, label = [], [], []
    for number in range(num_pairs):
        for u in rng.choice(num_users, votes_a_pair, replace=False):
            user.append(u)
            pair.append(number)
            label.append(int(rng.random() >= chance[u][number]))
    names = [f"u{u:03d}" for u in range(num_users)]
    return Votes(names, np.array(user), np.array(pair), np.array(label), num_pairs)


def random_votes(seed=0, num_users=9, num_pairs=12, num_votes=60):
    """Uneven votes; some users label a pair twice."""
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(high, size=num_votes) for high in (num_users, num_pairs, 2)]
    return Votes([str(u) for u in range(num_users)], *drawn, num_pairs)


def test_votes_of_finds_the_same_pair_in_either_order():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "user": "ann"}
    turned = {"prompt": "p", "chosen": "b", "rejected": "a", "user": "bob"}
    other = {"prompt": "q", "chosen": "a", "rejected": "b", "user": "ann"}
    messages = {**row, "prompt": [{"role": "user", "content": "p"}], "user": "cy"}
    votes = votes_of([row, turned, other, messages])
    assert votes.users == ["ann", "bob", "cy"]
    assert votes.pair.tolist() == [0, 0, 1, 0]  # as a text and as a message
    assert votes.label[0] != votes.label[1]
    with pytest.raises(DataError, match="holds no pairs"):
        votes_of([])


def test_others_votes_equal_a_naive_loop():
    votes = random_votes()
    counted = votes.user % 3 != 0
    for mask in (None, counted):
        same, total = others_votes(votes, mask)
        for i in range(len(votes.user)):
            others = [
                j
                for j in range(len(votes.user))
                if votes.pair[j] == votes.pair[i] and votes.user[j] != votes.user[i] and (mask is None or mask[j])
            ]
            assert total[i] == len(others)
            assert same[i] == sum(votes.label[j] == votes.label[i] for j in others)


def test_majority_of_others_with_ties_and_lonely_votes():
    votes = Votes(
        ["a", "b", "c", "d"], np.array([0, 1, 2, 3, 0]), np.array([0, 0, 0, 0, 1]), np.array([0, 0, 0, 1, 0]), num_pairs=2
    )
    # a, b and c each see two others agree and one not; d sees three who disagree; nobody else judged the second pair.
    assert majority_of_others(votes)[:4].tolist() == [1, 1, 1, 0]
    assert np.isnan(majority_of_others(votes)[4])
    tie = Votes(["a", "b", "c"], np.arange(3), np.zeros(3, int), np.array([0, 0, 1]), num_pairs=1)
    assert majority_of_others(tie).tolist() == [0.5, 0.5, 0.0]


def test_support_on_a_half_agrees_with_the_support_rates_of_groups():
    votes = random_votes(num_users=4, num_pairs=30, num_votes=200)
    half = half_of_pairs(votes, 1)
    rates = support_on(votes, half)
    naive = support_rate_by_agreement(votes.user[half], votes.pair[half], 1 - 2 * votes.label[half])
    assert rates == pytest.approx([naive[str(u)] for u in range(4)])
    assert set(votes.pair[half]) & set(votes.pair[~half]) == set()


@pytest.mark.parametrize("q", [0.5, 0.7, 0.95])
def test_the_best_shared_judge_lies_within_the_bounds(q):
    """Each pair is preferred one way by q of the people: pairwise agreement is q^2 + (1 - q)^2, the best judge max(q, 1 - q)."""
    votes = make_votes(np.full((60, 1500), q), num_pairs=1500)
    found = noise_ceiling(votes, num_resamples=100)
    assert found["pairwise"]["value"] == pytest.approx(q**2 + (1 - q) ** 2, abs=0.02)
    low, high = found["best_shared_bounds"]
    assert low - 0.01 <= max(q, 1 - q) <= high + 0.03
    assert found["leave_one_out"]["value"] <= max(q, 1 - q) + 0.02  # few annotators: too low, never too high
    if q > 0.5:  # of alike pairs the upper bound is the truth
        assert high == pytest.approx(q, abs=0.02)
    growth = found["by_number_of_others"]
    assert growth["3"]["value"] >= growth["1"]["value"] - 0.01
    three = q**3 + 3 * q**2 * (1 - q)
    assert growth["3"]["value"] == pytest.approx(q * three + (1 - q) * (1 - three), abs=0.03)


def test_mean_over_users_is_the_mean_and_its_interval_narrows_with_users():
    rng = np.random.default_rng(0)
    widths = []
    for num_users in (10, 1000):
        user = np.repeat(np.arange(num_users), 3)
        values = rng.random(len(user))
        found = mean_over_users(values, user, user_weights(num_users, 300, 0))
        assert found["value"] == pytest.approx(values.mean())
        assert found["low"] < found["value"] < found["high"]
        widths.append(found["high"] - found["low"])
    assert widths[1] < widths[0] / 5


def truth(taste, seed=0, num_users=60, num_pairs=400):
    """48 users of one taste, 12 who hold the opposite one, or who answer carelessly."""
    rng = np.random.default_rng(seed)
    likes = rng.integers(2, size=num_pairs)
    chance = np.where(likes, 0.85, 0.15)[None].repeat(num_users, axis=0)
    chance[48:] = 1 - chance[48:] if taste else 0.5
    return make_votes(chance, num_pairs, votes_a_pair=8, seed=seed)


def test_a_taste_of_their_own_is_told_from_carelessness():
    found = taste_or_noise(truth(taste=True), 0.2, num_splits=3, num_resamples=200)
    assert found["shared_taste"]["low"] > 0.2
    assert found["minority_with_minority"]["value"] > 0.65 > 0.35 > found["minority_with_majority"]["value"]
    found = taste_or_noise(truth(taste=False), 0.2, num_splits=3, num_resamples=200)
    assert abs(found["shared_taste"]["value"]) < 0.06
    assert found["shared_taste"]["low"] < 0.01
    assert found["majority_with_majority"]["low"] > found["minority_with_minority"]["high"]
    assert found["reliability"]["low"] > 0.15  # who is careless here is careless there


def test_chance_alone_makes_no_minority():
    """All users alike: grouped on the same votes, the lowest fifth would disagree; grouped on others, it does not."""
    votes = make_votes(np.full((60, 400), 0.75), 400)
    found = taste_or_noise(votes, 0.2, num_splits=5, num_resamples=200)
    assert abs(found["shared_taste"]["value"]) < 0.05
    assert abs(found["minority_with_majority"]["value"] - found["majority_with_majority"]["value"]) < 0.05
    assert found["reliability"]["low"] < 0.1
    whole = support_on(votes, np.ones(len(votes.user), dtype=bool))
    lowest = votes.user[np.isin(votes.user, np.flatnonzero(whole <= np.quantile(whole, 0.2)))]
    same, total = others_votes(votes)
    naive = (same / total)[np.isin(votes.user, lowest)].mean()
    assert naive < found["minority_with_majority"]["value"] - 0.03


def test_given_groups_are_compared_on_all_pairs():
    votes = truth(taste=True)
    minority = {name: number >= 48 for number, name in enumerate(votes.users)}
    found = taste_or_noise(votes, minority, num_resamples=100)
    assert found["reliability"] is None
    agree = [
        votes.label[i] == votes.label[j]
        for i, j in itertools.permutations(range(800), 2)
        if votes.pair[i] == votes.pair[j] and votes.user[i] < 48 and votes.user[j] < 48
    ]
    assert found["majority_with_majority"]["value"] == pytest.approx(np.mean(agree), abs=0.03)
    assert found["shared_taste"]["low"] > 0.2


def test_too_few_common_votes_are_an_error():
    votes = Votes(["a", "b"], np.arange(2), np.zeros(2, int), np.array([0, 1]), num_pairs=1)
    with pytest.raises(DataError, match=r"Only 2 of 2 votes .* cannot be estimated"):
        noise_ceiling(votes)
    with pytest.raises(DataError, match="Too few users"):
        taste_or_noise(votes, 0.2)
