"""What a student is to learn of each showing, against loops over the rows."""

import math

import numpy as np
import pytest
from datasets import Dataset

from trl_pafo.trainer.targets import (
    Targets,
    group_numbers,
    posterior_of_histories,
    score_pairs,
)

RNG = np.random.default_rng(0)
MARGINS = RNG.normal(size=(6, 3)) * 3
GROUP = np.array([0, 1, 2, 0, 0, 1])
ROWS, DONORS = [0, 3, 5, 5], [1, 3, 2, 0]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_a_history_that_is_certain_of_its_group_gives_the_margin_of_that_teacher():
    margins = MARGINS.copy()
    margins[3, 1:] = np.nan  # what no teacher of another group has scored
    targets = Targets(margins, GROUP)
    assert targets(ROWS, DONORS).tolist() == [np.float32(MARGINS[r, GROUP[d]]) for r, d in zip(ROWS, DONORS, strict=True)]
    assert targets.own().tolist() == [np.float32(MARGINS[row, GROUP[row]]) for row in range(6)]


def test_a_posterior_mixes_the_probabilities_of_all_teachers():
    q = RNG.dirichlet(np.ones(3), size=6)
    expected = []
    for row, donor in zip(ROWS, DONORS, strict=True):
        p = sum(q[donor, g] * sigmoid(MARGINS[row, g]) for g in range(3))
        expected.append(math.log(p / (1 - p)))
    assert Targets(MARGINS, GROUP, q)(ROWS, DONORS) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_the_prior_of_a_posterior_is_the_share_of_the_group(tau):
    likelihood = RNG.normal(size=(6, 3))
    names = np.array(["a", "b", "c"])[GROUP]
    found = posterior_of_histories(likelihood, names, tau)
    for row in range(6):
        weights = [math.exp(likelihood[row, g]) * (np.mean(names == "abc"[g])) ** (1 - tau) for g in range(3)]
        assert found[row] == pytest.approx([w / sum(weights) for w in weights])


def test_numbers_of_groups_have_the_order_that_is_asked_for():
    rows = Dataset.from_list([{"teacher_margins": {"b": 1.0, "a": 2.0}}, {"teacher_margins": {"b": 3.0, "a": 4.0}}])
    assert group_numbers(rows, "teacher_margins", ["a", "b"]).tolist() == [[2.0, 1.0], [4.0, 3.0]]


@pytest.mark.parametrize("own", [False, True])
def test_each_teacher_scores_what_it_reads_of_all_pairs_or_of_its_own(own):
    class FakeTeacher:
        def __init__(self, sign):
            self.sign = sign

        def read(self, rows, tokenizer):
            return rows.map(lambda row: {"read": self.sign * row["size"]})

    def score(teachers, pairs):
        assert list(pairs) == list("ab")
        return {name: np.array(rows["read"], dtype=np.float32) for name, rows in pairs.items()}

    rows = Dataset.from_dict({"size": [1, 2, 3], "group": ["b", "a", "b"]})
    found = score_pairs(score, {"b": FakeTeacher(-1), "a": FakeTeacher(1)}, rows, None, own=own)
    nan = np.nan
    expected = [[nan, -1], [2, nan], [nan, -3]] if own else [[1, -1], [2, -2], [3, -3]]
    np.testing.assert_array_equal(found, expected)
