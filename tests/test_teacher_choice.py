"""A teacher is distilled if it beats the shared model on held-out pairs of its group."""

import json
import math

import numpy as np
import pytest
from datasets import Dataset

from trl_pafo import teacher_choice
from trl_pafo.teacher_choice import choose_teachers, gain_over_users


def test_gain_and_its_error_equal_a_naive_loop():
    rng = np.random.default_rng(0)
    user = rng.choice(list("abcdefgh"), 60)
    mine, ours = rng.integers(0, 2, (2, 60)).astype(float)
    gain, error = gain_over_users(mine, ours, user)
    users = sorted(set(user))
    sums = [sum(m - o for m, o, u in zip(mine, ours, user, strict=True) if u == name) for name in users]
    counts = [sum(u == name for u in user) for name in users]
    expected = sum(sums) / sum(counts)
    residuals = [s - n * expected for s, n in zip(sums, counts, strict=True)]
    variance = len(users) / (len(users) - 1) * sum(r * r for r in residuals) / sum(counts) ** 2
    assert gain == pytest.approx(expected)
    assert error == pytest.approx(math.sqrt(variance))


def test_error_covers_the_truth_as_often_as_a_normal_one():
    """Two models of equal quality, users with unlike numbers of pairs: about 16 % of gains are above one standard error."""
    rng = np.random.default_rng(1)
    above = 0
    for _ in range(2000):
        user = np.repeat(np.arange(40), rng.integers(1, 8, 40))
        taste = rng.uniform(0.2, 0.8, 40)[user]
        mine, ours = (rng.random((2, len(user))) < taste).astype(float)
        gain, error = gain_over_users(mine, ours, user)
        above += gain >= error
    assert 0.13 < above / 2000 < 0.19


def test_without_two_users_there_is_no_error():
    assert np.isnan(gain_over_users(np.array([]), np.array([]), [])).all()
    gain, error = gain_over_users(np.array([1.0, 1.0]), np.array([0.0, 1.0]), ["u", "u"])
    assert gain == 0.5
    assert math.isnan(error)


@pytest.fixture
def scored(monkeypatch):
    """Held-out rows, and rewards that each folder gives them: (chosen - rejected) by pair."""
    margins = {
        "shared": [1, -1, 1, -1, 1, 1, -1, 1],
        "better": [1, 1, 1, 1, 1, 1, 1, 1],
        "same": [1, -1, 1, -1, 1, 1, -1, 1],
        "worse": [-1, -1, 1, -1, 1, -1, -1, 1],
    }

    def rewards(folder, rows, **kwargs):
        margin = np.array([margins[folder][i] for i in rows["number"]], float)
        return margin, np.zeros_like(margin)

    monkeypatch.setattr(teacher_choice, "pair_rewards", rewards)
    return Dataset.from_dict(
        {"number": list(range(8)), "user": list("aabbccdd"), "group": ["g"] * 8, "prompt": ["p"] * 8, "chosen": [""] * 8}
    )


@pytest.mark.parametrize(("teacher", "own"), [("better", True), ("same", False), ("worse", False)])
def test_only_a_better_teacher_is_taken(scored, teacher, own):
    (choice,) = choose_teachers({"g": teacher}, "shared", scored, 1.0)
    assert choice.own is own
    assert (choice.num_pairs, choice.num_users) == (8, 4)
    assert ("stands in" in str(choice)) is not own


def test_a_higher_bar_refuses_what_a_lower_one_takes(scored):
    (choice,) = choose_teachers({"g": "better"}, "shared", scored, 1.0)
    bar = choice.gain / choice.standard_error
    assert not choose_teachers({"g": "better"}, "shared", scored, bar + 0.01)[0].own
    assert choose_teachers({"g": "worse"}, "shared", scored, -math.inf)[0].own is False  # a loss is never taken


def test_a_group_that_cannot_be_judged_keeps_its_teacher(scored):
    choices = choose_teachers({"g": "same", "h": "same"}, "shared", scored, 1.0)
    assert [choice.own for choice in choices] == [False, True]
    assert "too few to tell" in str(choices[1])
    assert json.loads(json.dumps(choices[1].as_dict()))["gain"] is None
