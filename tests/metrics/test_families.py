"""Every number of every resample against users that are really written out as often as the resample holds them."""

import numpy as np
import pytest
from scipy import stats

from trl_pafo.metrics import atkinson, cvar, gini, jain, max_min, std, theil
from trl_pafo.metrics.accuracy import encode_pairs
from trl_pafo.metrics.bootstrap import bootstrap_weights
from trl_pafo.metrics.families import accuracy_family, support_family

NUM_USERS = 20


def draw(seed=0):
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(NUM_USERS), rng.integers(1, 5, size=NUM_USERS))
    correct = rng.choice([0.0, 0.5, 1.0], size=len(user), p=[0.3, 0.1, 0.6])
    support = np.round(rng.random(NUM_USERS), 1)
    support[[2, 7]] = np.nan
    return encode_pairs([f"u{u:02}" for u in user], [f"g{u % 3}" for u in user], len(user)), correct, support


def written_out(family, pairs, sums_of_user, weights):
    """Users of a resample: as many of each cell as its weight says, all with the sums of the cell."""
    members = {}
    for user in range(len(sums_of_user)):
        members.setdefault(tuple(np.round([pairs.group_of_user[user], *sums_of_user[user]], 9)), []).append(user)
    drawn = []
    for cell in range(len(weights)):
        sums = [family.cells.group[cell], family.cells.pairs[cell], *family.cells.sums[:, cell]]
        drawn += [members[tuple(np.round(sums, 9))][0]] * int(weights[cell])
    return np.array(drawn)


def sums_by_user(pairs, correct):
    return np.column_stack([np.bincount(pairs.user_codes), np.bincount(pairs.user_codes, weights=correct)])


def check(family, pairs, sums, naive):
    for weights in (family.cells.users[None].astype(float), next(bootstrap_weights(family.cells, 6, 0))):
        found = family.statistics(family.cells, weights)
        assert found.shape == (len(weights), len(family.names))
        for row, each in zip(found, weights, strict=True):
            expected = naive(written_out(family, pairs, sums, each))
            assert dict(zip(family.names, row, strict=True)) == pytest.approx(expected, nan_ok=True, abs=1e-12)


def test_accuracies_and_inequality():
    pairs, correct, _ = draw()

    def naive(drawn):
        chosen = np.concatenate([np.flatnonzero(pairs.user_codes == user) for user in drawn])
        right, group = correct[chosen], pairs.group_codes[chosen]
        by_group = [right[group == g].mean() for g in range(3)]
        by_user = np.array([correct[pairs.user_codes == user].mean() for user in drawn])
        measures = {"max_min": max_min, "std": std, "gini": gini, "jain": jain, "atkinson": atkinson, "theil": theil}
        measures |= {"mean": np.mean, "worst_decile": cvar}
        expected = {f"user_{name}": measure(by_user) for name, measure in measures.items()}
        expected |= {"overall": right.mean(), **{f"accuracy/g{g}": by_group[g] for g in range(3)}}
        expected |= {"group_min": min(by_group), "group_max": max(by_group), "difference": max(by_group) - min(by_group)}
        expected |= {"ratio": min(by_group) / max(by_group)}
        return expected

    check(accuracy_family(pairs, correct), pairs, sums_by_user(pairs, correct), naive)


def test_support():
    pairs, correct, support = draw()

    def naive(drawn):
        by_user = [correct[pairs.user_codes == user].mean() for user in drawn]
        return {"support_spearman": stats.spearmanr(by_user, support[drawn]).statistic}

    family = support_family(pairs, correct, support)
    assert family.cells.users.sum() == NUM_USERS - 2
    check(family, pairs, np.column_stack([sums_by_user(pairs, correct), support]), naive)
