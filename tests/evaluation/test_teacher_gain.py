"""Distilling is worth it if a teacher beats the shared model on held-out pairs of its group."""

import json
import math
import re
from dataclasses import asdict

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets

from trl_pafo.evaluation import teacher_gain as teacher_choice
from trl_pafo.evaluation.teacher_gain import (
    TeacherGain,
    fewest_users,
    gain_over_users,
    judge_teachers,
    why_not,
    worth_distilling,
)


def distills(gains) -> bool:
    return worth_distilling(gain.better for gain in gains)


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


@pytest.mark.parametrize(("teacher", "better"), [("better", True), ("same", False), ("worse", False)])
def test_only_a_better_teacher_is_called_better(scored, teacher, better):
    (gain,) = judge_teachers({"g": teacher}, "shared", scored, 1.0)
    assert gain.better is better
    assert (gain.num_pairs, gain.num_users) == (8, 4)
    assert ("not shown to be better" in str(gain)) is not better
    assert distills([gain]) is better


def test_one_better_teacher_is_enough(scored):
    other = scored.map(lambda row: {"group": "h", "user": "h" + row["user"]})
    gains = judge_teachers({"g": "better", "h": "worse"}, "shared", concatenate_datasets([scored, other]), 1.0)
    assert [gain.better for gain in gains] == [True, False]
    assert distills(gains)


def test_a_group_that_cannot_be_judged_is_a_reason_not_to_distil(scored):
    gains = judge_teachers({"g": "better", "h": "same"}, "shared", scored, 1.0)
    assert [gain.better for gain in gains] == [True, None]
    assert str(gains[1]) == "Teacher of h: cannot be judged on 0 held-out pairs of 0 users, which are too few"
    assert not distills(gains)
    assert re.search(r"teacher of h: nothing is distilled.*--validation_share.*--teacher_min_gain=-inf", why_not(gains))
    assert TeacherGain(**json.loads(json.dumps(asdict(gains[1])))) == gains[1]


@pytest.mark.parametrize(("users", "better"), [("abcd", None), ("abcde", True)])
def test_a_few_users_who_happen_to_agree_are_no_proof(scored, users, better):
    """All have a standard error of 0: with four of them a coin would do the same in one case of sixteen."""
    rows = scored.select([1, 3, 6, 1, 3][: len(users)]).remove_columns("user").add_column("user", list(users))
    (gain,) = judge_teachers({"g": "better"}, "shared", rows, 1.64)
    assert (gain.gain, gain.standard_error) == (1.0, 0.0)
    assert gain.better is better


def test_the_fewest_users_are_those_of_a_sign_test():
    assert fewest_users(1.64) == 5  # 1/32 is rarer than 5.05 %
    assert fewest_users(0.0) == fewest_users(-3.0) == 2  # one has no error
    assert fewest_users(2.33) == 7
    assert fewest_users(1000.0) > 300


def test_with_no_better_teacher_there_is_nothing_to_distil(scored):
    gains = judge_teachers({"g": "same"}, "shared", scored, 1.0)
    assert not distills(gains)
    assert why_not(gains) == "No teacher is better than the shared model: nothing to distill, the shared model is kept."
