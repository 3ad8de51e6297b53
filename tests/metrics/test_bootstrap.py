import numpy as np
import pytest
from scipy import stats

from trl_pafo.errors import ConfigError, DataError
from trl_pafo.metrics import bootstrap as bootstrap_module
from trl_pafo.metrics import bootstrap_users, percentile_interval
from trl_pafo.metrics.bootstrap import bootstrap_weights, group_totals, subset_weights, user_cells


def draw_pairs(num_users=40, seed=0):
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(num_users), rng.integers(1, 6, size=num_users))
    group_of_user = (np.arange(num_users) < num_users // 4).astype(np.int64)
    correct = (rng.random((2, len(user))) < 0.7).astype(float)
    return user, group_of_user, correct


def group_accuracies(cells, weights):
    return group_totals(cells, weights, cells.sums[0]) / group_totals(cells, weights, cells.pairs)


def test_cells_hold_every_user_once():
    user, group, correct = draw_pairs()
    cells = user_cells(user, group, correct)
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


def test_value_is_the_statistic_of_the_data():
    user, group, correct = draw_pairs()
    value = bootstrap_users(user, group, correct, group_accuracies, num_resamples=1).value
    assert value == pytest.approx([correct[0, group[user] == g].mean() for g in (0, 1)])


def test_resamples_keep_the_number_of_users_of_each_group():
    user, group, correct = draw_pairs()
    cells = user_cells(user, group, correct)
    for weights in bootstrap_weights(cells, 50, seed=1):
        in_group = [weights[:, cells.group == g].sum(axis=1) for g in (0, 1)]
        assert (in_group[0] == 30).all()
        assert (in_group[1] == 10).all()


def test_distribution_matches_a_naive_bootstrap_of_users():
    user, group, correct = draw_pairs()
    fast = bootstrap_users(user, group, correct, group_accuracies, num_resamples=4000).resamples
    sums = np.bincount(user, weights=correct[0])
    counts = np.bincount(user)
    rng = np.random.default_rng(5)
    for g in (0, 1):
        members = np.flatnonzero(group == g)
        naive = np.empty(4000)
        for i in range(4000):
            drawn = rng.choice(members, size=len(members))
            naive[i] = sums[drawn].sum() / counts[drawn].sum()
        assert fast[:, g].std() == pytest.approx(naive.std(), rel=0.08)
        # The values are discrete and equal ones may differ in the last digit.
        assert stats.ks_2samp(fast[:, g].round(9), naive.round(9)).statistic < 0.045


def test_models_are_paired():
    user, group, correct = draw_pairs()
    same = np.stack([correct[0], correct[0]])

    def difference(cells, weights):
        totals = group_totals(cells, weights, cells.pairs)
        return (group_totals(cells, weights, cells.sums[0]) - group_totals(cells, weights, cells.sums[1])) / totals

    assert not bootstrap_users(user, group, same, difference).resamples.any()
    assert bootstrap_users(user, group, correct, difference).resamples.std() > 0


def test_seed_decides_and_chunks_bound_the_memory(monkeypatch):
    user, group, correct = draw_pairs()
    first = bootstrap_users(user, group, correct, group_accuracies, num_resamples=30, seed=3).resamples
    assert np.array_equal(first, bootstrap_users(user, group, correct, group_accuracies, num_resamples=30, seed=3).resamples)
    assert not np.array_equal(first, bootstrap_users(user, group, correct, group_accuracies, num_resamples=30, seed=4).resamples)
    cells = user_cells(user, group, correct)
    monkeypatch.setattr(bootstrap_module, "_CHUNK_CELLS", 7 * len(cells.users))
    assert [len(w) for w in bootstrap_weights(cells, 30, 0)] == [7, 7, 7, 7, 2]
    assert bootstrap_users(user, group, correct, group_accuracies, num_resamples=30).resamples.shape == (30, 2)


def test_many_different_users_are_drawn_one_by_one_from_the_same_distribution(monkeypatch):
    user, group, correct = draw_pairs()
    cells = user_cells(user, group, correct)
    few = np.concatenate(list(bootstrap_weights(cells, 6000, 0)))
    monkeypatch.setattr(bootstrap_module, "_MANY_CELLS", 0)
    many = np.concatenate(list(bootstrap_weights(cells, 6000, 0)))
    assert not np.array_equal(few, many)
    assert (many[:, cells.group == 1].sum(axis=1) == 10).all()
    assert many.mean(axis=0) == pytest.approx(cells.users, rel=0.08)
    share = cells.users / np.where(cells.group == 0, 30, 10)
    assert many.var(axis=0) == pytest.approx(cells.users * (1 - share), rel=0.15)
    assert np.cov(many.T) == pytest.approx(np.cov(few.T), abs=0.15)


def test_totals_of_groups_match_a_naive_loop():
    user, group, correct = draw_pairs()
    cells = user_cells(user, group, correct)
    weights = next(bootstrap_weights(cells, 4, 0))
    naive = [[(row * cells.sums[0])[cells.group == g].sum() for g in (0, 1)] for row in weights]
    assert group_totals(cells, weights, cells.sums[0]) == pytest.approx(np.array(naive))
    both = group_totals(cells, weights, cells.sums.T)
    assert both.shape == (4, 2, 2)
    assert both[..., 0] == pytest.approx(np.array(naive))
    assert both[..., 1] == pytest.approx(group_totals(cells, weights, cells.sums[1]))


def test_subsets_take_each_user_half_the_time():
    user, group, correct = draw_pairs()
    cells = user_cells(user, group, correct)
    weights = np.concatenate(list(subset_weights(cells, 4000, 0)))
    assert (weights <= cells.users).all()
    assert weights.mean(axis=0) / cells.users == pytest.approx(0.5, abs=0.04)
    assert weights.var(axis=0) / cells.users == pytest.approx(0.25, abs=0.03)


def test_many_users_are_few_cells():
    num_users = 100_000
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(num_users), 4)
    group = (np.arange(num_users) < 10_000).astype(np.int64)
    correct = (rng.random(len(user)) < 0.8).astype(float)
    assert len(user_cells(user, group, correct).users) == 10
    low, high = percentile_interval(bootstrap_users(user, group, correct, group_accuracies).resamples, 0.95)
    # Users are alike here, so that the width is that of independent pairs.
    expected = 2 * 1.96 * np.sqrt(0.8 * 0.2 / np.array([360_000, 40_000]))
    assert high - low == pytest.approx(expected, rel=0.15)


def test_unusable_input():
    user, group, correct = draw_pairs()
    with pytest.raises(ConfigError, match="`num_resamples` must be at least 1"):
        bootstrap_users(user, group, correct, group_accuracies, num_resamples=0)
    with pytest.raises(DataError, match="does not give a value for each of"):
        user_cells(user, group, correct[:, :-1])
    with pytest.raises(DataError, match="names 41 users, but 40 have pairs"):
        user_cells(user, np.append(group, 0), correct)
    with pytest.raises(DataError, match="names 39 users, but 40 have pairs"):
        user_cells(user, group[:-1], correct)
