import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trl_pafo.errors import DataError
from trl_pafo.metrics import spearman
from trl_pafo.metrics.accuracy import encode_pairs
from trl_pafo.metrics.support import support_of_users

# Few different values, so that there are many ties.
pairs_of_values = st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3)), min_size=2, max_size=30).filter(
    lambda rows: all(len(set(column)) > 1 for column in zip(*rows, strict=True))
)


@settings(max_examples=100, deadline=None)
@given(pairs_of_values)
def test_it_is_scipys_with_ties(rows):
    x, y = zip(*rows, strict=True)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(pairs_of_values, st.randoms(use_true_random=False))
def test_only_order_counts(rows, random):
    x, y = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    found = spearman(x, y)
    assert -1 <= found <= 1
    assert spearman(y, x) == pytest.approx(found, abs=1e-12)
    assert spearman(np.exp(x) + 2, y**3) == pytest.approx(found, abs=1e-12)
    assert spearman(x, -y) == pytest.approx(-found, abs=1e-12)
    order = random.sample(range(len(x)), len(x))
    assert spearman(x[order], y[order]) == pytest.approx(found, abs=1e-12)
    assert spearman(x, x) == pytest.approx(1.0)


def test_weights_are_repetitions():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, size=15) / 6, rng.random(15)
    weights = rng.integers(0, 4, size=(2, 5, 15))
    found = spearman(x, y, weights)
    assert found.shape == (2, 5)
    for index in np.ndindex(2, 5):
        repeated = [np.repeat(values, weights[index]) for values in (x, y)]
        assert found[index] == pytest.approx(stats.spearmanr(*repeated).statistic, abs=1e-12)


def test_what_does_not_vary_has_no_correlation():
    assert np.isnan(spearman([0.5, 0.5, 0.5], [1, 2, 3]))
    assert np.isnan(spearman([1, 2, 3], [0.1, 0.1, 0.1]))
    assert np.isnan(spearman([0.5], [1.0]))
    found = spearman([0.1, 0.2, 0.3], [1, 2, 3], [[5, 0, 0], [5, 1, 0]])
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(1.0)


def test_unusable_values():
    with pytest.raises(DataError, match=r"one value a user each, got shapes \(2,\) and \(3,\)"):
        spearman([1, 2], [1, 2, 3])
    with pytest.raises(DataError, match="one value a user each"):
        spearman([], [])
    with pytest.raises(DataError, match="leave out the users for whom one is unknown"):
        spearman([1, np.nan], [1, 2])
    with pytest.raises(DataError, match="2 users on its last axis"):
        spearman([1, 2], [1, 2], [1, 1, 1])


USER = ["b", "a", "b", "c", "a"]


def test_support_comes_by_pair_by_user_or_by_name():
    pairs = encode_pairs(USER, ["g"] * 5, 5)
    nan = np.nan
    expected = [0.1, 0.2, nan]
    for given_support in ([0.2, 0.1, 0.2, nan, 0.1], [0.1, 0.2, nan], {"c": nan, "b": 0.2, "a": 0.1, "elsewhere": 0.5}):
        assert support_of_users(given_support, pairs) == pytest.approx(expected, nan_ok=True)
    numbered = encode_pairs([7, 10, 7], ["g"] * 3, 3)
    assert support_of_users({7: 0.7, 10: 0.3}, numbered).tolist() == [0.3, 0.7]
    # As many pairs as users: one value a pair, not one a user in sorted order.
    single = encode_pairs(["b", "a"], ["g"] * 2, 2)
    assert support_of_users([0.2, 0.1], single).tolist() == [0.1, 0.2]


def test_unusable_support():
    pairs = encode_pairs(USER, ["g"] * 5, 5)
    with pytest.raises(DataError, match="User 'b' has more than one value of `support`"):
        support_of_users([0.2, 0.1, 0.3, 0.5, 0.1], pairs)
    with pytest.raises(DataError, match="User 'a' has more than one value of `support`"):
        support_of_users([0.2, 0.1, 0.2, 0.5, np.nan], pairs)
    with pytest.raises(DataError, match=r"for each of 5 pairs, or of 3 users, got shape \(4,\)"):
        support_of_users([0.1] * 4, pairs)
    with pytest.raises(DataError, match="lacks 2 of 3 users, such as 'a'; give NaN where it is unknown"):
        support_of_users({"b": 0.5}, pairs)
    with pytest.raises(DataError, match="No user has a `support`"):
        support_of_users([np.nan] * 3, pairs)
