"""MaxMin-RLHF: hard EM finds tastes that nobody names, and the models serve users with and without past pairs."""

import math

import numpy as np
import pytest

from trl_pafo.baselines.maxmin import hard_em, serve, user_log_likelihood
from trl_pafo.errors import DataError


class LinearModels:
    """Bradley-Terry models of features, each trained by steps of gradient descent from where it is."""

    def __init__(self, features, user, num_models):
        self.features, self.user = features, user  # chosen minus rejected, of shape (num_pairs, dim)
        self.weights = np.zeros((num_models, features.shape[1]))
        self.trained = []

    def train(self, model, users, number):
        mine = self.features[np.isin(self.user, users)]
        self.trained.append((number, model, users.tolist()))
        for _ in range(100):
            margins = mine @ self.weights[model]
            self.weights[model] += 0.5 * (mine / (1 + np.exp(margins))[:, None]).mean(axis=0)

    def log_likelihood(self):
        return user_log_likelihood(self.features @ self.weights.T, self.user)


def two_tastes(num_users=40, num_pairs=6, minority=0.3, seed=0):
    """Users who like a large first feature, and users who like a small one; the other features are noise."""
    rng = np.random.default_rng(seed)
    taste = (np.arange(num_users) < minority * num_users).astype(int)
    user = np.repeat(np.arange(num_users), num_pairs)
    features = rng.normal(size=(len(user), 4))
    features[:, 0] = np.where(taste[user] == 1, -1, 1) * (1 + np.abs(features[:, 0]))
    return features, user, taste


def test_two_tastes_are_found():
    features, user, taste = two_tastes()
    models = LinearModels(features, user, 2)
    found = hard_em(models.train, models.log_likelihood, len(taste), 2, num_rounds=4)
    assert np.array_equal(found, taste) or np.array_equal(found, 1 - taste)
    signs = np.sign(models.weights[found, 0])
    assert np.array_equal(signs, np.where(taste == 1, -1, 1))  # the model of each user likes what the user likes


def test_users_are_dealt_out_equally_at_first_and_each_is_trained_on_by_its_model():
    features, user, _ = two_tastes(num_users=7)
    models = LinearModels(features, user, 3)
    seen = []
    log_likelihood = models.log_likelihood

    def keep():
        seen.append(log_likelihood())
        return seen[-1]

    found = hard_em(models.train, keep, 7, 3, num_rounds=2, seed=1)
    first = [users for number, _, users in models.trained if number == 0]
    assert sorted(map(len, first)) == [2, 2, 3]
    assert sorted(number for users in first for number in users) == list(range(7))
    of_second = {model: users for number, model, users in models.trained if number == 1}
    expected = [int(np.argmax(row)) for row in seen[0]]
    assert of_second == {m: [u for u in range(7) if expected[u] == m] for m in set(expected)}  # none without users is trained
    assert found.tolist() == [int(np.argmax(row)) for row in seen[1]]


def test_fewer_users_than_models_are_refused():
    with pytest.raises(DataError, match="3 models need as many training users, and there are 2"):
        hard_em(lambda *_: None, lambda: np.zeros((2, 3)), 2, 3)


def test_log_likelihoods_are_those_of_a_plain_loop():
    margins, user = [[0.5, -1.0], [2.0, 0.0], [-3.0, 40.0], [0.1, -40.0]], [1, 0, 1, 2]
    expected = [[0.0, 0.0] for _ in range(3)]
    for of_pair, number in zip(margins, user, strict=True):
        for model in range(2):
            expected[number][model] -= math.log1p(math.exp(-of_pair[model]))
    np.testing.assert_allclose(user_log_likelihood(margins, user), expected, rtol=1e-12)


def test_users_are_served_as_a_plain_loop_serves_them():
    rng = np.random.default_rng(0)
    rewards, past_margins, offset = rng.normal(size=(5, 2, 3)), 3 * rng.normal(size=(4, 3)), rng.normal(size=3)
    past = [[0, 1], [], [2], [3, 0], []]
    expected = []
    for pair, history in enumerate(past):
        scores = [sum(-math.log1p(math.exp(-past_margins[entry][model])) for entry in history) for model in range(3)]
        row = []
        for side in range(2):
            values = [rewards[pair][side][model] - offset[model] for model in range(3)]
            row.append(values[scores.index(max(scores))] if history else min(values))
        expected.append(row)
    assert len({tuple(row) for row in expected}) == 5
    np.testing.assert_allclose(serve(rewards, past_margins, past, offset), expected, rtol=1e-12)
