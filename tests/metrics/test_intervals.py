import numpy as np
import pytest
from scipy import stats

from trl_pafo.errors import ConfigError
from trl_pafo.metrics import (
    Bootstrap,
    bca_interval,
    bootstrap_interval,
    bootstrap_users,
    gini,
    jackknife_acceleration,
    percentile_interval,
)
from trl_pafo.metrics import intervals as intervals_module
from trl_pafo.metrics.bootstrap import group_totals, user_cells


def draw_users(sizes=(25, 14), seed=0, num_pairs=6):
    """Skewed accuracies of users with `num_pairs` pairs each, their groups, and the pairs themselves."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(sizes)), sizes)
    right = rng.binomial(num_pairs, rng.beta(3, 0.7, size=len(group)))
    correct = (np.arange(num_pairs) < right[:, None]).astype(float).ravel()
    return right / num_pairs, group, np.repeat(np.arange(len(group)), num_pairs), correct


def statistics(cells, weights):
    """Difference of the groups' accuracies; Gini of all users."""
    by_group = group_totals(cells, weights, cells.sums[0]) / group_totals(cells, weights, cells.pairs)
    return np.column_stack([by_group[:, 0] - by_group[:, -1], gini(cells.sums[0] / cells.pairs, weights)])


def naive_statistics(*samples):
    return np.array([np.mean(samples[0]) - np.mean(samples[-1]), gini(np.concatenate(samples))])


def test_percentile_interval_is_numpys():
    values = np.random.default_rng(0).normal(size=(500, 3))
    low, high = percentile_interval(values, 0.9)
    assert low == pytest.approx(np.quantile(values, 0.05, axis=0))
    assert high == pytest.approx(np.quantile(values, 0.95, axis=0))


def test_resamples_without_a_value_are_left_out():
    values = np.random.default_rng(0).normal(size=(500, 3))
    holes = values.copy()
    holes[::7, 1] = np.nan
    holes[:, 2] = np.nan
    low, high = percentile_interval(holes, 0.9)
    assert low[0] == pytest.approx(np.quantile(values[:, 0], 0.05))
    assert [low[1], high[1]] == pytest.approx(np.nanquantile(holes[:, 1], [0.05, 0.95]))
    assert np.isnan([low[2], high[2]]).all()
    acceleration = np.array([0.05, 0.05, 0.0])
    some = bca_interval(Bootstrap(np.array([0.1, 0.1, np.nan]), holes), acceleration, 0.9)
    known = bca_interval(Bootstrap(np.array([0.1]), holes[~np.isnan(holes[:, 1])][:, 1:2]), acceleration[:1], 0.9)
    assert [some[0][1], some[1][1]] == pytest.approx([known[0][0], known[1][0]])
    assert np.isnan([some[0][2], some[1][2]]).all()


@pytest.mark.parametrize(("sizes", "which"), [((30,), 1), ((25, 14), 0), ((25, 14), 1), ((9, 20, 6), 0), ((9, 20, 6), 1)])
def test_bca_is_scipys_on_the_same_resamples(sizes, which):
    accuracy, group, user, correct = draw_users(sizes)
    samples = [accuracy[group == g] for g in range(len(sizes))]
    found = stats.bootstrap(
        samples,
        # Rounded, since scipy takes sums that differ in their last digit for different values.
        lambda *drawn: naive_statistics(*drawn)[which].round(12),
        vectorized=False,
        n_resamples=600,
        method="BCa",
        confidence_level=0.9,
        rng=np.random.default_rng(1),
    )
    cells = user_cells(user, group, correct)
    acceleration = jackknife_acceleration(cells, statistics)[which : which + 1]
    bootstrap = Bootstrap(naive_statistics(*samples)[which : which + 1], found.bootstrap_distribution[:, None])
    low, high = bca_interval(bootstrap, acceleration, 0.9)
    assert [low[0], high[0]] == pytest.approx([*found.confidence_interval], abs=1e-9)
    assert [low[0], high[0]] != pytest.approx(np.quantile(found.bootstrap_distribution, [0.05, 0.95]), abs=1e-4)


def test_bca_from_users_to_ends_agrees_with_scipy():
    accuracy, group, user, correct = draw_users((40,), num_pairs=97)
    cells = user_cells(user, group, correct)

    def mean(cells, weights):
        return weights @ (cells.sums[0] / cells.pairs)[:, None] / weights.sum(axis=1, keepdims=True)

    bootstrap = bootstrap_users(user, group, correct, mean, num_resamples=20_000)
    low, high = bootstrap_interval(bootstrap, cells, mean, method="bca")
    found = stats.bootstrap((accuracy,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1))
    assert [low[0], high[0]] == pytest.approx([*found.confidence_interval], abs=0.004)


def test_acceleration_is_that_of_leaving_out_each_user():
    accuracy, group, user, correct = draw_users((25, 14, 9))
    found = jackknife_acceleration(user_cells(user, group, correct), statistics)
    samples = [accuracy[group == g] for g in range(3)]
    cubes = squares = 0.0
    for g, sample in enumerate(samples):
        without = np.array(
            [naive_statistics(*[np.delete(s, i) if h == g else s for h, s in enumerate(samples)]) for i in range(len(sample))]
        )
        influence = (len(sample) - 1) * (without.mean(axis=0) - without) / len(sample)
        cubes = cubes + (influence**3).sum(axis=0)
        squares = squares + (influence**2).sum(axis=0)
    assert found == pytest.approx(cubes / 6 / squares**1.5)


def test_blocks_of_users_estimate_the_same(monkeypatch):
    _, group, user, correct = draw_users((2500, 700), num_pairs=3)
    cells = user_cells(user, group, correct)
    exact = jackknife_acceleration(cells, statistics)
    monkeypatch.setattr(intervals_module, "_EXACT_CELLS", 0)
    blocks = jackknife_acceleration(cells, statistics)
    assert blocks == pytest.approx(exact, abs=0.005)
    assert np.abs(exact).max() > 0.005
    # A block a user is leaving out each user.
    monkeypatch.setattr(intervals_module, "_BLOCKS_OF_A_GROUP", 10_000)
    assert jackknife_acceleration(cells, statistics) == pytest.approx(exact, rel=1e-6)


def test_lone_users_and_values_that_never_change_have_no_acceleration():
    cells = user_cells(np.array([0, 0, 1]), np.array([0, 1]), np.array([1.0, 0.0, 1.0]))
    assert jackknife_acceleration(cells, statistics).tolist() == [0.0, 0.0]
    same = user_cells(np.arange(8), np.zeros(8, dtype=np.int64), np.ones(8))
    assert jackknife_acceleration(same, statistics).tolist() == [0.0, 0.0]


def test_where_no_bias_can_be_estimated_the_percentiles_stand():
    resamples = np.random.default_rng(0).exponential(size=(400, 1))
    one_sided = Bootstrap(np.array([0.0]), resamples)
    assert bca_interval(one_sided, np.array([0.1]), 0.9) == percentile_interval(resamples, 0.9)
    constant = Bootstrap(np.array([0.3]), np.full((50, 1), 0.3))
    assert bca_interval(constant, np.array([0.0]), 0.9) == (0.3, 0.3)


def test_sums_in_another_order_are_the_same_value():
    # .1 + .2 + .3 and .3 + .2 + .1 differ in the last digit; half of these resamples are the value itself.
    resamples = np.array([[0.1 + 0.2 + 0.3], [0.3 + 0.2 + 0.1]] * 50 + [[0.5], [0.7]] * 50)
    low, high = bca_interval(Bootstrap(np.array([0.6]), resamples), np.array([0.0]), 0.9)
    assert (low[0], high[0]) == pytest.approx((0.5, 0.7))
    shifted = bca_interval(Bootstrap(np.array([0.6 + 1e-9]), resamples), np.array([0.0]), 0.6)
    assert shifted[1][0] == pytest.approx(0.7)


def test_unusable_options():
    bootstrap = Bootstrap(np.zeros(1), np.zeros((3, 1)))
    for confidence in (0.0, 1.0, 95):
        with pytest.raises(ConfigError, match=r"0\.95 for 95 %"):
            percentile_interval(np.zeros((3, 1)), confidence)
        with pytest.raises(ConfigError, match=r"0\.95 for 95 %"):
            bca_interval(bootstrap, np.zeros(1), confidence)
    cells = user_cells(np.arange(2), np.zeros(2, dtype=np.int64), np.ones(2))
    with pytest.raises(ConfigError, match="`method` must be one of percentile, bca, got 'BCa'"):
        bootstrap_interval(bootstrap, cells, statistics, method="BCa")


@pytest.mark.slow
def test_bca_misses_less_often_than_percentiles_where_values_are_skewed():
    rng = np.random.default_rng(0)

    def draw(num_users):
        right = rng.binomial(8, rng.beta(2.4, 0.6, size=num_users))
        return right / 8, np.repeat(np.arange(num_users), 8), (np.arange(8) < right[:, None]).astype(float).ravel()

    truth = gini(draw(400_000)[0])
    missed = {"percentile": 0, "bca": 0}
    for seed in range(500):
        _, user, correct = draw(40)
        group = np.zeros(40, dtype=np.int64)
        cells = user_cells(user, group, correct)
        bootstrap = bootstrap_users(user, group, correct, statistics, seed=seed)
        for method in missed:
            low, high = bootstrap_interval(bootstrap, cells, statistics, method=method)
            missed[method] += not low[1] <= truth <= high[1]
    print(missed)
    assert missed["bca"] < missed["percentile"]
    assert missed["bca"] < 0.1 * 500
