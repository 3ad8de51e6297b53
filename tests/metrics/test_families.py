"""Every number of every resample against users that are really written out as often as the resample holds them."""

import numpy as np
import pytest
from scipy import stats

from trl_pafo.errors import DataError
from trl_pafo.metrics import (
    atkinson,
    brier,
    cvar,
    ece,
    entropy_split,
    generalized_entropy,
    gini,
    jain,
    max_min,
    pair_correctness,
    std,
    theil,
)
from trl_pafo.metrics.accuracy import encode_pairs
from trl_pafo.metrics.bootstrap import bootstrap_weights
from trl_pafo.metrics.families import accuracy_family, calibration_family, support_family

NUM_USERS = 20


def draw(seed=0):
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(NUM_USERS), rng.integers(1, 5, size=NUM_USERS))
    margins = rng.normal(0.5, 1.5, size=(2, len(user)))
    margins[:, ::9] = 0.0
    support = np.round(rng.random(NUM_USERS), 1)
    support[[2, 7]] = np.nan
    names = [f"u{u:02}" for u in user]
    pairs = encode_pairs(names, [f"g{u % 3}" for u in user], len(user))
    return pairs, margins, [pair_correctness(row) for row in margins], support


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


def sums_by_user(pairs, rows):
    counts = np.bincount(pairs.user_codes)
    return np.column_stack([counts, *[np.bincount(pairs.user_codes, weights=row) for row in rows]])


def pairs_of(pairs, drawn):
    return np.concatenate([np.flatnonzero(pairs.user_codes == user) for user in drawn])


def check(family, pairs, sums, naive):
    for weights in (family.cells.users[None].astype(float), next(bootstrap_weights(family.cells, 6, 0))):
        found = family.statistics(family.cells, weights)
        assert found.shape == (len(weights), 2, len(family.names))
        for row, each in zip(found, weights, strict=True):
            drawn = written_out(family, pairs, sums, each)
            for model in (0, 1):
                expected = naive(drawn, model)
                assert dict(zip(family.names, row[model], strict=True)) == pytest.approx(expected, nan_ok=True, abs=1e-12)


def test_accuracies_and_inequality():
    pairs, _, correct, _ = draw()

    def naive(drawn, model):
        chosen = pairs_of(pairs, drawn)
        right, group = correct[model][chosen], pairs.group_codes[chosen]
        by_group = [right[group == g].mean() for g in range(3)]
        by_user = np.array([correct[model][pairs.user_codes == user].mean() for user in drawn])
        expected = {"overall": right.mean(), **{f"accuracy/g{g}": by_group[g] for g in range(3)}}
        expected |= {"group_min": min(by_group), "group_max": max(by_group), "difference": max(by_group) - min(by_group)}
        expected |= {"ratio": min(by_group) / max(by_group), "user_mean": by_user.mean(), "user_worst_decile": cvar(by_user)}
        expected |= {"user_max_min": max_min(by_user), "user_std": std(by_user), "user_gini": gini(by_user)}
        expected |= {"user_jain": jain(by_user), "user_atkinson": atkinson(by_user, epsilon=0.3)}
        expected |= {"user_theil": theil(by_user), "user_entropy": generalized_entropy(by_user)}
        for name, alpha in (("theil", 1.0), ("entropy", 2.0)):
            split = entropy_split(by_user, pairs.group_of_user[drawn], alpha=alpha)
            expected |= {f"user_{name}_within": split.within, f"user_{name}_between": split.between}
        return expected | {"majority": by_group[1], "minority": right[group != 1].mean()}

    check(accuracy_family(pairs, correct, "g1", 0.3), pairs, sums_by_user(pairs, correct), naive)


def test_support():
    pairs, _, correct, support = draw()
    sums = np.column_stack([sums_by_user(pairs, correct), support])

    def naive(drawn, model):
        by_user = [correct[model][pairs.user_codes == user].mean() for user in drawn]
        return {"support_spearman": stats.spearmanr(by_user, support[drawn]).statistic}

    family = support_family(pairs, correct, support)
    assert family.cells.users.sum() == NUM_USERS - 2
    check(family, pairs, sums, naive)


def test_calibration():
    pairs, margins, correct, _ = draw()
    family = calibration_family(pairs, correct, list(margins))
    rows = []
    for model in (0, 1):  # the sums of the cells, bin by bin
        confidence = 1 / (1 + np.exp(-np.abs(margins[model])))
        rows.append((1 / (1 + np.exp(margins[model]))) ** 2)
        place = np.minimum(np.floor((confidence - 0.5) * 20 + 1e-9), 9)
        rows += [np.where(place == b, correct[model] - confidence, 0.0) for b in range(10)]

    def naive(drawn, model):
        chosen = pairs_of(pairs, drawn)
        mine, group = margins[model][chosen], pairs.group_codes[chosen]
        expected = {"ece": ece(mine), "brier": brier(mine)}
        for g in range(3):
            expected |= {f"ece/g{g}": ece(mine[group == g]), f"brier/g{g}": brier(mine[group == g])}
        return expected

    check(family, pairs, sums_by_user(pairs, rows), naive)


def test_margins_that_are_not_those_of_the_answers():
    pairs, margins, correct, _ = draw()
    with pytest.raises(DataError, match=r"disagree on \d+ of \d+ pairs; give the margins from which"):
        calibration_family(pairs, correct, [margins[1], margins[0]])
    with pytest.raises(DataError, match=r"`margins` has shape \(3,\); give one a pair"):
        calibration_family(pairs, correct, [margins[0][:3], margins[1]])
