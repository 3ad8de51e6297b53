import numpy as np
import pytest
from scipy import stats

from trl_pafo.errors import ConfigError
from trl_pafo.metrics import bootstrap as bootstrap_module
from trl_pafo.metrics import percentile_interval
from trl_pafo.metrics.bootstrap import bootstrap_cells, bootstrap_weights, group_totals, strata_of, subset_weights, user_cells
from trl_pafo.metrics.intervals import fewest_users, honest_ends


def draw_pairs(num_users=40, seed=0):
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(num_users), rng.integers(1, 6, size=num_users))
    group_of_user = (np.arange(num_users) < num_users // 4).astype(np.int64)
    return user, group_of_user, (rng.random((2, len(user))) < 0.7).astype(float)


@pytest.fixture
def cells():
    return user_cells(*draw_pairs())


def group_accuracies(cells, weights):
    return group_totals(cells, weights, cells.sums[0]) / group_totals(cells, weights, cells.pairs)


def test_cells_hold_every_user_once(cells):
    user, group, correct = draw_pairs()
    rebuilt = sorted(
        tuple(column)
        for column, users in zip(np.vstack([cells.group, cells.pairs, cells.sums]).T, cells.users, strict=True)
        for _ in range(users)
    )
    naive = sorted(
        (group[u], (user == u).sum(), correct[0, user == u].sum(), correct[1, user == u].sum()) for u in range(len(group))
    )
    assert rebuilt == naive
    assert (np.diff(cells.group) >= 0).all()
    assert cells.group[cells.group_starts].tolist() == [0, 1]
    assert len(cells.users) < len(group)


def test_totals_of_groups_match_a_naive_loop(cells):
    weights = next(bootstrap_weights(cells, 4, 0))
    naive = [[[(row * sums)[cells.group == g].sum() for sums in cells.sums] for g in (0, 1)] for row in weights]
    assert group_totals(cells, weights, cells.sums.T) == pytest.approx(np.array(naive))
    assert group_totals(cells, weights, cells.sums[0]) == pytest.approx(np.array(naive)[..., 0])


def test_distribution_is_that_of_a_naive_bootstrap_of_the_users_of_each_group(cells):
    user, group, correct = draw_pairs()
    value, fast = bootstrap_cells(cells, group_accuracies, 4000, seed=0)
    assert value == pytest.approx([correct[0, group[user] == g].mean() for g in (0, 1)])
    sums, counts = np.bincount(user, weights=correct[0]), np.bincount(user)
    rng = np.random.default_rng(5)
    for g in (0, 1):
        drawn = rng.choice(np.flatnonzero(group == g), size=(4000, (group == g).sum()))
        naive = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        assert fast[:, g].std() == pytest.approx(naive.std(), rel=0.08)
        # The values are discrete and equal ones may differ in the last digit.
        assert stats.ks_2samp(fast[:, g].round(9), naive.round(9)).statistic < 0.045


def test_seed_decides_and_chunks_bound_the_memory(cells, monkeypatch):
    first, again, other = (bootstrap_cells(cells, group_accuracies, 30, seed=seed)[1] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    first, again, other = (next(subset_weights(cells, 30, seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    monkeypatch.setattr(bootstrap_module, "_CHUNK_CELLS", 7 * len(cells.users))
    assert [len(w) for w in bootstrap_weights(cells, 30, 0)] == [7, 7, 7, 7, 2]
    assert bootstrap_cells(cells, group_accuracies, 30, 0)[1].shape == (30, 2)
    assert bootstrap_cells(cells, group_accuracies, 1, 0)[1].shape == (1, 2)
    with pytest.raises(ConfigError, match="`num_resamples` must be at least 1"):
        bootstrap_cells(cells, group_accuracies, 0, seed=0)


@pytest.mark.parametrize("many_cells", [0, 2000])  # users drawn one by one, or cells from a multinomial
def test_weights_are_those_of_users_drawn_within_their_groups(cells, many_cells, monkeypatch):
    monkeypatch.setattr(bootstrap_module, "_MANY_CELLS", many_cells)
    weights = np.concatenate(list(bootstrap_weights(cells, 6000, 0)))
    assert {tuple(row) for row in group_totals(cells, weights, np.ones(len(cells.users)))} == {(30.0, 10.0)}
    assert weights.mean(axis=0) == pytest.approx(cells.users, rel=0.08)
    of_group = np.where(cells.group == 0, 30, 10)
    assert weights.var(axis=0) == pytest.approx(cells.users * (1 - cells.users / of_group), rel=0.15)
    same = cells.group[:, None] == cells.group
    expected = np.diag(cells.users) - same * np.outer(cells.users, cells.users) / of_group
    assert np.cov(weights.T) == pytest.approx(expected, abs=0.15)


def test_small_groups_are_one_stratum():
    cells = user_cells(np.arange(13), np.repeat([0, 1, 2, 3, 4], [6, 1, 3, 2, 1]), np.arange(13.0)[None])
    assert [len(places) for places in strata_of(cells)] == [6, 1, 3, 2, 1]
    assert [len(places) for places in strata_of(cells, fewest_users=3)] == [6, 3, 4]

    def sizes(cells, weights):
        return group_totals(cells, weights, np.ones(len(cells.users)))

    alone, together = bootstrap_cells(cells, sizes, 50, 0)[1], bootstrap_cells(cells, sizes, 50, 0, fewest_users=3)[1]
    assert np.array_equal(alone, sizes(cells, next(bootstrap_weights(cells, 50, 0))))
    assert {tuple(row) for row in alone} == {(6, 1, 3, 2, 1)}
    assert {tuple(row) for row in together[:, [0, 2]]} == {(6, 3)}
    assert (together[:, [1, 3, 4]].sum(axis=1) == 4).all()
    assert (np.ptp(together[:, [1, 3, 4]], axis=0) > 1).all()


def test_subsets_take_each_user_half_the_time(cells):
    weights = np.concatenate(list(subset_weights(cells, 4000, 0)))
    assert (weights <= cells.users).all()
    assert weights.mean(axis=0) / cells.users == pytest.approx(0.5, abs=0.04)
    assert weights.var(axis=0) / cells.users == pytest.approx(0.25, abs=0.03)


def test_many_users_are_few_cells():
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(100_000), 4)
    group = (np.arange(100_000) < 10_000).astype(np.int64)
    cells = user_cells(user, group, (rng.random((1, len(user))) < 0.8).astype(float))
    assert len(cells.users) == 10
    low, high = percentile_interval(bootstrap_cells(cells, group_accuracies, 1000, 0)[1], 0.95)
    # Users are alike here, so that the width is that of independent pairs.
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / np.array([360_000, 40_000])), rel=0.15)


def test_percentile_interval_is_numpys_over_what_is_known():
    values = np.random.default_rng(0).normal(size=(500, 3))
    values[::7, 1] = np.nan
    values[:, 2] = np.nan
    low, high = percentile_interval(values, 0.9)
    assert [low[:2], high[:2]] == pytest.approx(np.nanquantile(values[:, :2], [0.05, 0.95], axis=0))
    assert np.isnan([low[2], high[2]]).all()
    for confidence in (0.0, 1.0, 95):
        with pytest.raises(ConfigError, match=r"0\.95 for 95 %"):
            percentile_interval(values, confidence)


@pytest.mark.parametrize(("confidence", "fewest"), [(0.5, 2), (0.9, 5), (0.95, 6), (0.99, 8)])
def test_so_few_users_that_their_range_misses_the_middle_too_often(confidence, fewest):
    assert fewest_users(confidence) == fewest
    assert 2 ** (1 - fewest) <= 1 - confidence < 2 ** (2 - fewest)
    with pytest.raises(ConfigError, match="must be above 0"):
        fewest_users(1.0)


@pytest.mark.parametrize(
    ("value", "low", "high", "num_users", "limits", "expected"),
    [
        (0.5, 0.4, 0.6, 6, None, (0.4, 0.6)),
        (0.5, 0.4, 0.6, 5, None, (np.nan, np.nan)),
        (0.0, 0.1, 0.3, 20, None, (0.0, 0.3)),  # an interval holds its value
        (0.2, 0.2, 0.2, 20, None, (np.nan, np.nan)),  # no resample differs
        (1.0, 1.0, 1.0, 6, (0.0, 1.0), tuple(stats.binomtest(6, 6).proportion_ci(0.95, method="exact"))),
        (0.0, 0.0, 0.0, 20, (0.0, 1.0), tuple(stats.binomtest(0, 20).proportion_ci(0.95, method="exact"))),
        (0.5, 0.5, 0.5, 6, (-1.0, 1.0), (0.5 - 1.5 * (1 - 0.025 ** (1 / 6)), 1 - 0.5 * 0.025 ** (1 / 6))),
        (0.5, 0.5, 0.5, 6, (0.0, 1.0), (0.5 * 0.025 ** (1 / 6), 1 - 0.5 * 0.025 ** (1 / 6))),
        (np.nan, np.nan, np.nan, 9, None, (np.nan, np.nan)),
    ],
)
def test_ends_claim_nothing_that_so_few_users_cannot_show(value, low, high, num_users, limits, expected):
    assert honest_ends(value, low, high, num_users, 0.95, limits) == pytest.approx(expected, nan_ok=True)
