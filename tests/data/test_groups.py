import numpy as np
import pytest
from datasets import Dataset
from helpers.parts import make_pairs
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_pafo.data.groups import (
    assign_groups,
    count_by_group,
    largest_and_smallest,
    quantile_thresholds,
    support_rate_by_agreement,
    support_rate_by_type,
    support_rate_by_weights,
)
from trl_pafo.errors import ConfigError, DataError


class TestByType:
    def test_share_of_the_users_own_type(self):
        assert support_rate_by_type(["a", "b", "a", "a"]).tolist() == [0.75, 0.25, 0.75, 0.75]
        assert support_rate_by_type(["b", "c"], population=["a", "b"]).tolist() == [0.5, 0.0]

    def test_an_empty_population_is_refused(self):
        with pytest.raises(DataError, match="pass the type of each training user"):
            support_rate_by_type(["a"], population=[])


def naive_agreement(user, pair, label):
    """The definition, read aloud."""
    rates = {}
    for u in set(user):
        agreements = []
        for v, p, y in zip(user, pair, label, strict=True):
            if v != u:
                continue
            others = [z for w, q, z in zip(user, pair, label, strict=True) if q == p and w != u]
            if others:
                agreements.append(np.mean([z == y for z in others]))
        rates[u] = np.mean(agreements) if agreements else np.nan
    return rates


class TestByAgreement:
    @settings(max_examples=60)
    @given(st.lists(st.tuples(st.sampled_from("uvwxyz"), st.integers(0, 5), st.sampled_from([1, -1])), min_size=1))
    def test_equals_the_naive_loop(self, votes):
        user, pair, label = zip(*votes, strict=True)
        found, expected = support_rate_by_agreement(user, pair, label), naive_agreement(user, pair, label)
        assert list(found) == sorted(expected)
        for name, rate in expected.items():
            np.testing.assert_allclose(found[name], rate, atol=1e-11)

    def test_users_and_pairs_of_any_kind(self):
        rates = support_rate_by_agreement(np.array([1.0, 2.0, 3.0, 1.0]), ["p", "p", "p", "q"], [1, 1, -1, 1])
        assert rates == {"1": 0.5, "2": 0.5, "3": 0.0}

    def test_nobody_is_no_user_and_no_pair(self):
        with pytest.raises(DataError, match=r"The votes, row 1: has no `user`"):
            support_rate_by_agreement(["u", None, None], [0, 0, 0], [1, 1, -1])
        with pytest.raises(DataError, match=r"The votes, row 0: has no `pair`"):
            support_rate_by_agreement(["u", "v", "w"], [None, None, 0], [1, 1, -1])
        with pytest.raises(DataError, match=r"The users, row 1: has no `types`"):
            support_rate_by_type(["a", None])

    def test_votes_that_cannot_be_counted(self):
        with pytest.raises(DataError, match="leave undecided votes out"):
            support_rate_by_agreement(["u", "v"], [0, 0], [1, 0])
        with pytest.raises(DataError, match="of one length"):
            support_rate_by_agreement(["u", "v"], [0, 0], [1])


def naive_weights(weights, probes, population=None):
    rates = []
    for u, own in enumerate(weights):
        shares = []
        for probe in probes:
            others = [w @ probe for v, w in enumerate(weights if population is None else population)]
            if population is None:
                del others[u]
            others = [margin for margin in others if margin != 0]
            if own @ probe != 0 and others:
                shares.append(np.mean([np.sign(margin) == np.sign(own @ probe) for margin in others]))
        rates.append(np.mean(shares) if shares else np.nan)
    return rates


class TestByWeights:
    @pytest.mark.parametrize("seed", range(5))
    def test_equals_the_naive_loop(self, seed):
        rng = np.random.default_rng(seed)
        # Small integers, so that margins of exactly zero occur.
        weights, probes = rng.integers(-2, 3, (9, 3)), rng.integers(-2, 3, (12, 3))
        population = rng.integers(-2, 3, (6, 3))
        assert (weights @ probes.T == 0).any()
        np.testing.assert_allclose(support_rate_by_weights(weights, probes), naive_weights(weights, probes))
        np.testing.assert_allclose(
            support_rate_by_weights(weights, probes, population), naive_weights(weights, probes, population)
        )

    def test_a_user_without_preference_has_none(self):
        assert np.isnan(support_rate_by_weights([[0.0], [1.0]], [[1.0]])).all()

    @pytest.mark.parametrize(
        ("weights", "probes", "name"),
        [
            ([[1.0, 2.0]], [[1.0]], "probe_features"),
            ([1.0], [[1.0]], "weights"),
            ([[np.nan]], [[1.0]], "weights"),
        ],
    )
    def test_shapes_and_values_are_checked(self, weights, probes, name):
        with pytest.raises(DataError, match=f"`{name}` must be finite"):
            support_rate_by_weights(weights, probes)


class TestAssignGroups:
    def test_below_the_threshold_is_the_minority(self):
        assert assign_groups([0.1, 0.5, 0.9], threshold=0.5).tolist() == ["minority", "majority", "majority"]

    def test_several_thresholds(self):
        groups = assign_groups([0.1, 0.5, 0.9], threshold=(0.2, 0.6), names=("high", "middle", "low"))
        assert groups.tolist() == ["low", "middle", "high"]

    def test_of_two_equally_near_cuts_the_lower_is_taken(self):
        # Cuts at 2/10 and 4/10 are equally near to 0.3.
        support = [0.1] * 2 + [0.2] * 2 + [0.3] * 6
        assert (assign_groups(support, quantile=0.3) == "minority").sum() == 2

    def test_quantiles_of_several_groups(self):
        groups = assign_groups(np.arange(10) / 10, quantile=(0.2, 0.5), names=("high", "middle", "low"))
        assert groups.tolist() == ["low"] * 2 + ["middle"] * 3 + ["high"] * 5

    @settings(max_examples=60)
    @given(st.lists(st.floats(0, 1), min_size=2, max_size=30).filter(lambda s: len(set(s)) > 1), st.floats(0.01, 0.99))
    def test_thresholds_of_quantiles_say_the_same(self, support, quantile):
        groups = assign_groups(support, quantile=quantile)
        assert set(groups) == {"majority", "minority"}
        again = assign_groups(support, threshold=quantile_thresholds(support, quantile))
        assert groups.tolist() == again.tolist()
        # No other cut between two different rates is nearer.
        shares = [np.mean(np.array(support) < value) for value in set(support) - {min(support)}]
        assert abs(np.mean(groups == "minority") - quantile) <= min(abs(share - quantile) for share in shares) + 1e-9


@pytest.mark.parametrize(
    ("support", "options", "error", "match"),
    [
        ([0.1, 0.9], {}, ConfigError, "exactly one of `threshold` and `quantile`"),
        ([0.1, 0.9], {"threshold": 0.5, "quantile": 0.1}, ConfigError, "exactly one of `threshold` and `quantile`"),
        *(([0.1, 0.9], {"quantile": q}, ConfigError, "above 0 and below 1") for q in (0.0, 1.0, (0.5, 0.2), ())),
        *(([0.1, 0.9], {"threshold": t}, ConfigError, "must be finite, and ascend") for t in ((0.5, 0.2), np.nan, ())),
        *(([0.1, 0.9], {"threshold": 0.5, "names": n}, ConfigError, "make 2 groups") for n in ("a", "abc", "aa")),
        ([0.5, 0.5, 0.5], {"quantile": 0.2}, DataError, "2 groups cannot be cut .* 1 different support rates"),
        ([0.1, 0.9, 0.9], {"quantile": (0.2, 0.4), "names": "abc"}, DataError, "3 groups cannot be cut"),
        ([0.1, np.nan], {"threshold": 0.5}, DataError, "1 of 2 users have no support rate"),
    ],
)
def test_groups_that_cannot_be_cut(support, options, error, match):
    with pytest.raises(error, match=match):
        assign_groups(support, **options)


def test_rows_are_counted_by_group_where_there_are_groups():
    dataset = make_pairs(num_users=3, pairs_per_user=2, num_minority=1)
    assert count_by_group(dataset) == {"minority": 2, "majority": 4}
    assert count_by_group(dataset.remove_columns("group")) == {"all": 6}
    assert count_by_group(Dataset.from_dict({"group": ["a", None, "a"]})) == {"a": 2, "no group": 1}


def test_the_largest_group_has_the_most_users_not_the_most_pairs():
    group, user = ["a", "a", "a", "b", "b", "c", "c"], [1, 1, 1, 2, 3, 4, 5]
    assert largest_and_smallest(group, user) == ("b", "a")
    assert largest_and_smallest(group, None) == ("a", "c")
    assert largest_and_smallest(["only"], [1]) == ("only", "only")
