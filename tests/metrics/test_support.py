import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trl_pafo.errors import DataError
from trl_pafo.metrics import spearman
from trl_pafo.metrics.accuracy import encode_pairs
from trl_pafo.metrics.support import support_of_users

nan = np.nan
# Few different values, so that there are many ties.
pairs_of_values = st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3)), min_size=2, max_size=30).filter(
    lambda rows: all(len(set(column)) > 1 for column in zip(*rows, strict=True))
)


@settings(max_examples=30)
@given(pairs_of_values)
def test_it_is_scipys_with_ties(rows):
    x, y = zip(*rows, strict=True)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_weights_are_repetitions():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, size=(2, 12))
    weights = rng.integers(0, 3, size=(2, 4, 12))
    found = spearman(x, y, weights)
    assert found.shape == (2, 4)
    for place in np.ndindex(2, 4):
        repeated = (np.repeat(values, weights[place]) for values in (x, y))
        assert found[place] == pytest.approx(stats.spearmanr(*repeated).statistic, abs=1e-12)


def test_rounding_takes_no_correlation_beyond_1():
    x, weights = np.arange(7), np.random.default_rng(0).integers(1, 50, (300, 7))
    for y, expected in ((x, 1), (-x, -1)):
        found = spearman(x, y, weights)
        assert found == pytest.approx(expected, abs=1e-12)
        assert np.abs(found).max() == 1


@pytest.mark.parametrize(
    ("x", "y", "weights"),
    [
        ([0.5, 0.5, 0.5], [1, 2, 3], None),
        ([1, 2, 3], [0.1, 0.1, 0.1], None),
        ([0.5], [1.0], None),
        ([0.1, 0.2, 0.3], [1, 2, 3], [5, 0, 0]),
    ],
)
def test_what_does_not_vary_has_no_correlation(x, y, weights):
    assert np.isnan(spearman(x, y, weights))


@pytest.mark.parametrize(
    ("x", "y", "weights", "match"),
    [
        ([1, 2], [1, 2, 3], None, r"each hold one value per user, got shapes \(2,\) and \(3,\)"),
        ([], [], None, "each hold one value per user"),
        ([1, nan], [1, 2], None, "leave out the users for whom one is unknown"),
        ([1, 2], [1, 2], [1, 1, 1], "2 users on its last axis"),
    ],
)
def test_unusable_values(x, y, weights, match):
    with pytest.raises(DataError, match=match):
        spearman(x, y, weights)


PAIRS = encode_pairs(["b", "a", "b", "c", "a"], ["g"] * 5, 5)


def test_support_of_each_user():
    assert support_of_users([0.2, 0.1, 0.2, nan, 0.1], PAIRS) == pytest.approx([0.1, 0.2, nan], nan_ok=True)


@pytest.mark.parametrize(
    ("support", "match"),
    [
        ([0.2, 0.1, 0.3, 0.5, 0.1], "User 'b' has more than one value of `support`"),
        ([0.2, 0.1, 0.2, 0.5, nan], "User 'a' has more than one value of `support`"),
        ([0.1] * 3, r"for each of 5 pairs, got shape \(3,\)"),
        (["much"] * 5, "`support` must hold numbers: could not convert string to float"),
        ([nan] * 5, "No user has a `support`"),
    ],
)
def test_unusable_support(support, match):
    with pytest.raises(DataError, match=match):
        support_of_users(support, PAIRS)
