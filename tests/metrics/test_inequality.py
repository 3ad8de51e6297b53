import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trl_pafo.errors import ConfigError, DataError
from trl_pafo.metrics import atkinson, cvar, entropy_split, generalized_entropy, gini, jain, max_min, std, theil

MEASURES = {
    "gini": gini,
    "cvar": cvar,
    "jain": jain,
    "atkinson": atkinson,
    "atkinson_1": lambda b, w=None: atkinson(b, w, epsilon=1.0),
    "atkinson_2": lambda b, w=None: atkinson(b, w, epsilon=2.0),
    "theil": theil,
    "entropy": generalized_entropy,
    "entropy_0": lambda b, w=None: generalized_entropy(b, w, alpha=0.0),
    "std": std,
    "max_min": max_min,
}
each_measure = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
# Accuracies of users with up to 8 pairs: many ties and zeros.
accuracies = st.lists(st.integers(0, 8).map(lambda k: k / 8), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(accuracies)
def test_gini_is_half_the_relative_mean_difference(benefits):
    pairs = [abs(a - b) for a in benefits for b in benefits]
    expected = np.mean(pairs) / (2 * np.mean(benefits)) if any(benefits) else 0.0
    assert gini(benefits) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(accuracies, st.integers(1, 40))
def test_cvar_is_the_mean_of_the_tail_of_finely_repeated_users(benefits, percent):
    # 100 copies of each user make every percentage of the users whole.
    copies = sorted(b for b in benefits for _ in range(100))
    tail = copies[: percent * len(benefits)]
    assert cvar(benefits, share=percent / 100) == pytest.approx(np.mean(tail), abs=1e-12)


def test_cvar_takes_a_fraction_of_the_user_on_the_border():
    # 10 % of 15 users: the worst one and half of the next.
    benefits = [0.2, 0.5, *[1.0] * 13]
    assert cvar(benefits) == pytest.approx((0.2 + 0.5 * 0.5) / 1.5)
    assert cvar(benefits, share=1.0) == pytest.approx(np.mean(benefits))
    assert cvar([0.9, 0.4, 0.7]) == pytest.approx(0.4)


@settings(max_examples=60, deadline=None)
@given(accuracies.filter(any))
def test_closed_forms_against_scipy(benefits):
    b = np.array(benefits)
    assert std(b) == pytest.approx(np.std(b), abs=1e-12)
    assert max_min(b) == max(benefits) - min(benefits)
    assert jain(b) == pytest.approx(b.sum() ** 2 / (len(b) * (b**2).sum()))
    # Theil is the divergence of the users' shares of the benefit from equal shares.
    assert theil(b) == pytest.approx(stats.entropy(b, np.full(len(b), 1 / len(b))), abs=1e-12)
    assert generalized_entropy(b) == pytest.approx(stats.variation(b) ** 2 / 2, abs=1e-12)
    assert atkinson(b, epsilon=1.0) == pytest.approx(1 - stats.gmean(b) / b.mean(), abs=1e-12)
    assert atkinson(b, epsilon=0.5) == pytest.approx(1 - stats.pmean(b, 0.5) / b.mean(), abs=1e-12)


def test_forms_that_need_positive_benefits():
    b = np.array([0.25, 0.5, 0.5, 1.0])
    assert atkinson(b, epsilon=2.0) == pytest.approx(1 - stats.hmean(b) / b.mean())
    assert generalized_entropy(b, alpha=0.0) == pytest.approx(np.log(b.mean() / stats.gmean(b)))
    assert generalized_entropy(b, alpha=-1.0) == pytest.approx(np.mean(b.mean() / b - 1) / 2)


def test_parameters_are_continuous_at_their_special_values():
    b = [0.25, 0.5, 0.75, 0.75, 1.0]
    for special in (0.0, 1.0):
        near = generalized_entropy(b, alpha=special + 1e-6)
        assert generalized_entropy(b, alpha=special) == pytest.approx(near, rel=1e-4)
    assert atkinson(b, epsilon=1.0) == pytest.approx(atkinson(b, epsilon=1 + 1e-6), rel=1e-4)
    assert atkinson(b, epsilon=0.0) == pytest.approx(0.0, abs=1e-15)


def test_a_user_with_nothing():
    b = [0.0, 0.5, 1.0]
    assert atkinson(b, epsilon=1.0) == 1.0
    assert atkinson(b, epsilon=2.0) == 1.0
    assert atkinson(b) < 1.0
    assert generalized_entropy(b, alpha=0.0) == np.inf
    assert np.isfinite(theil(b))


@each_measure
def test_all_zero_and_all_equal_say_equal(measure):
    equal = {jain: 1.0, cvar: 0.0}.get(measure, 0.0)
    assert measure([0.0, 0.0, 0.0]) == equal
    if measure is not cvar:
        assert measure([0.3] * 7) == pytest.approx(equal, abs=1e-12)
        assert measure([0.3]) == pytest.approx(equal, abs=1e-12)
    else:
        assert measure([0.3] * 7) == pytest.approx(0.3)


def test_bounds_are_reached_where_one_user_has_everything():
    b = [0.0, 0.0, 0.0, 1.0]
    assert gini(b) == pytest.approx(1 - 1 / 4)
    assert jain(b) == pytest.approx(1 / 4)
    assert theil(b) == pytest.approx(np.log(4))
    assert max_min(b) == 1.0


@each_measure
def test_weights_are_repetitions(measure):
    rng = np.random.default_rng(0)
    benefits = rng.choice([0.0, 0.25, 0.5, 0.75, 1.0], size=12)
    weights = rng.integers(0, 4, size=(2, 5, 12)) * (benefits > 0)
    weights[..., 1] += 1
    values = measure(benefits, weights)
    assert values.shape == (2, 5)
    for index in np.ndindex(2, 5):
        assert values[index] == pytest.approx(measure(np.repeat(benefits, weights[index])), abs=1e-12)


@each_measure
def test_without_weights_it_is_one_number(measure):
    assert isinstance(measure([0.2, 0.8]), float)


@each_measure
def test_unusable_benefits_and_weights(measure):
    for benefits in ([0.5, -0.1], [0.5, np.nan], [np.inf]):
        with pytest.raises(DataError, match="use the accuracies of users, not their margins"):
            measure(benefits)
    with pytest.raises(DataError, match="at least one user"):
        measure([])
    with pytest.raises(DataError, match="2 users on its last axis"):
        measure([0.5, 1.0], [1, 1, 1])
    for weights in ([[1, 1], [0, 0]], [2, -1], [np.nan, 1]):
        with pytest.raises(DataError, match="each row must hold a positive one"):
            measure([0.5, 1.0], weights)


# How each answers to benefits that are all multiplied: relative measures do not, the others scale with them.
SCALE_POWER = {"cvar": 1, "std": 1, "max_min": 1}
# Which way a transfer from a better to a worse user may move it.
RISES = {"cvar": 1, "jain": 1}
each_name = pytest.mark.parametrize("name", MEASURES)
transfers = st.tuples(accuracies.filter(lambda b: len(set(b)) > 1), st.floats(0, 0.5), st.randoms(use_true_random=False))


@each_name
@settings(max_examples=30, deadline=None)
@given(benefits=accuracies, factor=st.floats(0.01, 100))
def test_scale(name, benefits, factor):
    found = MEASURES[name](np.array(benefits) * factor)
    assert found == pytest.approx(MEASURES[name](benefits) * factor ** SCALE_POWER.get(name, 0), rel=1e-9, abs=1e-9)


@each_name
@settings(max_examples=30, deadline=None)
@given(benefits=accuracies, random=st.randoms(use_true_random=False))
def test_names_of_users_do_not_count(name, benefits, random):
    shuffled = random.sample(benefits, len(benefits))
    assert MEASURES[name](shuffled) == pytest.approx(MEASURES[name](benefits), abs=1e-12)


@each_name
@settings(max_examples=60, deadline=None)
@given(drawn=transfers)
def test_a_transfer_to_a_worse_user_makes_it_fairer(name, drawn):
    """Pigou and Dalton: a transfer that leaves the worse user at most where the better one was."""
    benefits, share, random = drawn
    before = np.array(benefits)
    poor, rich = random.choice([(i, j) for i in range(len(before)) for j in range(len(before)) if before[i] < before[j]])
    after = before.copy()
    after[[poor, rich]] += np.array([1, -1]) * share * (before[rich] - before[poor])
    change = MEASURES[name](after) - MEASURES[name](before) if np.isfinite(MEASURES[name](before)) else 0.0
    assert RISES.get(name, -1) * change >= -1e-9


@settings(max_examples=80, deadline=None)
@given(accuracies, st.floats(0.0, 4.0))
def test_bounds(benefits, epsilon):
    n = len(benefits)
    assert 0 <= gini(benefits) <= 1 - 1 / n + 1e-12
    assert 1 / n - 1e-12 <= jain(benefits) <= 1
    assert 0 <= theil(benefits) <= np.log(n) + 1e-12
    assert 0 <= generalized_entropy(benefits) <= (n - 1) / 2 + 1e-12
    assert 0 <= atkinson(benefits, epsilon=epsilon) <= 1
    assert min(benefits) - 1e-12 <= cvar(benefits) <= np.mean(benefits) + 1e-12
    assert 0 <= std(benefits) <= max_min(benefits) / 2 + 1e-12


users_in_groups = st.lists(st.tuples(st.integers(0, 8).map(lambda k: k / 8), st.sampled_from("abc")), min_size=1, max_size=25)


@settings(max_examples=120, deadline=None)
@given(users_in_groups, st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0]))
def test_entropy_is_the_sum_of_within_and_between(users, alpha):
    benefits, group = (list(column) for column in zip(*users, strict=True))
    within, between = entropy_split(benefits, group, alpha=alpha)
    assert within + between == pytest.approx(generalized_entropy(benefits, alpha=alpha), abs=1e-12)
    assert within >= 0
    assert between >= 0
    means = {g: np.mean([b for b, h in users if h == g]) for g in group}
    assert between == pytest.approx(generalized_entropy([means[g] for g in group], alpha=alpha), abs=1e-12)


def test_split_where_all_lies_on_one_side():
    assert entropy_split([0.2, 0.8, 0.2, 0.8], list("aabb")) == pytest.approx((theil([0.2, 0.8]), 0.0))
    assert entropy_split([0.2, 0.8, 0.2, 0.8], ["1", 1, 2.0, "2"]) == pytest.approx((theil([0.2, 0.8]), 0.0))
    for missing in (None, np.nan, ""):
        with pytest.raises(DataError, match=r"The users, row 2: has no `group`"):
            entropy_split([0.2, 0.8, 0.2, 0.8], ["a", "a", missing, missing])
    assert entropy_split([0.2, 0.8, 0.2, 0.8], list("abab")) == pytest.approx((0.0, theil([0.2, 0.8])))
    assert entropy_split([0.2, 0.4, 0.9], list("aaa"))[1] == pytest.approx(0.0)
    assert entropy_split([0.2, 0.4, 0.9], list("abc"))[0] == pytest.approx(0.0)
    assert entropy_split([0.0, 0.0, 0.0], list("aab")) == (0.0, 0.0)


def test_theil_within_weighs_groups_by_their_share_of_the_benefit():
    benefits, group = np.array([0.1, 0.5, 0.3, 0.9, 0.6]), np.array(list("aabbb"))
    share = {g: benefits[group == g].sum() / benefits.sum() for g in "ab"}
    expected = sum(share[g] * theil(benefits[group == g]) for g in "ab")
    assert entropy_split(benefits, group).within == pytest.approx(expected)


def test_split_with_weights_is_that_of_repeated_users():
    rng = np.random.default_rng(0)
    benefits, group = rng.choice([0.0, 0.25, 0.5, 1.0], size=12), rng.choice(list("abc"), size=12)
    weights = rng.integers(0, 3, size=(2, 5, 12))
    weights[..., np.argmax(benefits)] += 1
    weights[0, 0, group == "a"] = 0
    found = entropy_split(benefits, group, weights, alpha=2.0)
    assert found.within.shape == (2, 5)
    for index in np.ndindex(2, 5):
        repeated = entropy_split(np.repeat(benefits, weights[index]), np.repeat(group, weights[index]), alpha=2.0)
        assert (found.within[index], found.between[index]) == pytest.approx((repeated.within, repeated.between), abs=1e-12)


def test_unusable_parameters():
    for share in (0.0, 1.1, np.nan):
        with pytest.raises(ConfigError, match="`share` is a share of the users"):
            cvar([0.5], share=share)
    for epsilon in (-0.1, np.inf, np.nan):
        with pytest.raises(ConfigError, match="`epsilon` must be finite and not negative"):
            atkinson([0.5], epsilon=epsilon)
    with pytest.raises(ConfigError, match="`alpha` must be finite"):
        generalized_entropy([0.5], alpha=np.nan)
    with pytest.raises(ConfigError, match="`alpha` must be finite"):
        entropy_split([0.5], ["a"], alpha=np.inf)
    with pytest.raises(DataError, match=r"for each of 2 users, got shape \(3,\)"):
        entropy_split([0.5, 0.1], list("abc"))
