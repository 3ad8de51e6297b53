import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trl_pafo.errors import ConfigError, DataError
from trl_pafo.metrics import atkinson, cvar, gini, jain, max_min, std, theil


def naive_gini(b):
    return np.mean([abs(x - y) for x in b for y in b]) / (2 * b.mean())


def naive_cvar(b, percent=10):
    """100 copies of each user make every percentage of the users whole."""
    return np.sort(np.repeat(b, 100))[: percent * len(b)].mean()


# Each measure, what scipy or a loop says of benefits that are not all 0, and which way a transfer from a better to a worse
# user may move it. The first four depend on the order of sizes and on shares alone; others scale with the benefits.
MEASURES = {
    "gini": (gini, naive_gini, -1),
    "jain": (jain, lambda b: b.sum() ** 2 / (len(b) * (b**2).sum()), 1),
    "atkinson": (atkinson, lambda b: 1 - stats.pmean(b, 0.5) / b.mean(), -1),
    # Theil is the divergence of the users' shares of the benefit from equal shares.
    "theil": (theil, lambda b: stats.entropy(b, np.full(len(b), 1 / len(b))), -1),
    "cvar": (cvar, naive_cvar, 1),
    "std": (std, np.std, -1),
    "max_min": (max_min, np.ptp, -1),
}
ABSOLUTE = {"cvar", "std", "max_min"}
each_name = pytest.mark.parametrize("name", MEASURES)
# Accuracies of users with up to 8 pairs: many ties and zeros.
accuracies = st.lists(st.integers(0, 8).map(lambda k: k / 8), min_size=1, max_size=30)


@each_name
@settings(max_examples=15)
@given(benefits=accuracies.filter(any), random=st.randoms(use_true_random=False), factor=st.floats(0.01, 100))
def test_it_is_scipys_whatever_the_order_and_the_unit(name, benefits, random, factor):
    measure, reference, _ = MEASURES[name]
    expected = pytest.approx(reference(np.array(benefits)), rel=1e-9, abs=1e-9)
    assert measure(benefits) == expected
    assert measure(random.sample(benefits, len(benefits))) == expected
    scaled = measure(np.array(benefits) * factor)
    assert (scaled / factor if name in ABSOLUTE else scaled) == expected


@each_name
@settings(max_examples=20)
@given(accuracies.filter(lambda b: len(set(b)) > 1), st.floats(0, 0.5), st.randoms(use_true_random=False))
def test_a_transfer_to_a_worse_user_makes_it_fairer(name, benefits, share, random):
    """Pigou and Dalton: a transfer that leaves the worse user at most where the better one was."""
    measure, _, direction = MEASURES[name]
    before = np.array(benefits)
    poor, rich = random.choice([(i, j) for i in range(len(before)) for j in range(len(before)) if before[i] < before[j]])
    after = before.copy()
    after[[poor, rich]] += np.array([1, -1]) * share * (before[rich] - before[poor])
    assert direction * (measure(after) - measure(before)) >= -1e-9


@each_name
def test_weights_are_repetitions_and_without_them_it_is_one_number(name):
    measure = MEASURES[name][0]
    rng = np.random.default_rng(0)
    benefits = rng.choice([0.0, 0.25, 0.5, 0.75, 1.0], size=12)
    weights = rng.integers(0, 4, size=(2, 5, 12)) * (benefits > 0)
    weights[..., 1] += 1
    values = measure(benefits, weights)
    assert values.shape == (2, 5)
    for index in np.ndindex(2, 5):
        assert values[index] == pytest.approx(measure(np.repeat(benefits, weights[index])), abs=1e-12)
    assert isinstance(measure([0.2, 0.8]), float)


@each_name
def test_all_zero_and_all_equal_say_equal(name):
    measure = MEASURES[name][0]
    equal = 1.0 if name == "jain" else 0.0
    assert measure([0.0, 0.0, 0.0]) == equal
    for benefits in ([0.3] * 7, [0.3]):
        assert measure(benefits) == pytest.approx(0.3 if name == "cvar" else equal, abs=1e-12)


@each_name
def test_unusable_benefits_and_weights(name):
    measure = MEASURES[name][0]
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


@settings(max_examples=60)
@given(accuracies, st.integers(1, 100))
def test_cvar_takes_a_fraction_of_the_user_on_the_border(benefits, percent):
    assert cvar(benefits, share=percent / 100) == pytest.approx(naive_cvar(benefits, percent), abs=1e-12)
    # 10 % of 15 users: the worst one and half of the next.
    assert cvar([0.2, 0.5, *[1.0] * 13]) == pytest.approx((0.2 + 0.5 * 0.5) / 1.5)


def test_unusable_parameters():
    for share in (0.0, 1.1, np.nan):
        with pytest.raises(ConfigError, match="`share` is a share of the users"):
            cvar([0.5], share=share)
