"""Every number of every resample against users that are really written out as often as the resample holds them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit

from trl_pafo.errors import DataError
from trl_pafo.metrics import (
    atkinson,
    cvar,
    entropy_split,
    fairness_summary,
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
from trl_pafo.metrics.calibration import calibration_sums, ece_noise
from trl_pafo.metrics.families import accuracy_family, calibration_family, support_family

NUM_USERS = 20


def draw(seed=0):
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(NUM_USERS), rng.integers(1, 5, size=NUM_USERS))
    margins = rng.normal(0.5, 1.5, size=(2, len(user)))
    margins[:, ::9] = 0.0
    support = np.round(rng.random(NUM_USERS), 1)
    support[[2, 7]] = np.nan
    pairs = encode_pairs([f"u{u:02}" for u in user], [f"g{u % 3}" for u in user], len(user))
    return pairs, margins, [pair_correctness(row) for row in margins], support


def naive_ece(margins):
    """Textbook form on folded pairs: every bin by itself, `[low, high)` and the last one closed."""
    confidence, right, total = expit(np.abs(margins)), pair_correctness(margins), 0.0
    for b in range(10):
        inside = (confidence >= 0.5 + b / 20) & ((confidence < 0.5 + (b + 1) / 20) | (b == 9))
        if inside.any():
            total += inside.sum() * abs(right[inside].mean() - confidence[inside].mean())
    return total / len(margins)


def naive_brier(margins):
    return np.mean((1 - expit(np.asarray(margins))) ** 2)


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
        measures = {"max_min": max_min, "std": std, "gini": gini, "jain": jain, "atkinson": atkinson, "theil": theil}
        measures |= {"mean": np.mean, "worst_decile": cvar, "entropy": generalized_entropy}
        expected = {f"user_{name}": measure(by_user) for name, measure in measures.items()}
        for name, alpha in (("theil", 1.0), ("entropy", 2.0)):
            split = entropy_split(by_user, pairs.group_of_user[drawn], alpha=alpha)
            expected |= {f"user_{name}_{part}": value for part, value in zip(("within", "between"), split, strict=True)}
        expected |= {"overall": right.mean(), **{f"accuracy/g{g}": by_group[g] for g in range(3)}}
        expected |= {"group_min": min(by_group), "group_max": max(by_group), "difference": max(by_group) - min(by_group)}
        expected |= {"ratio": min(by_group) / max(by_group)}
        return expected | {"majority": by_group[1], "minority": right[group != 1].mean()}

    check(accuracy_family(pairs, correct, "g1"), pairs, sums_by_user(pairs, correct), naive)


def test_support():
    pairs, _, correct, support = draw()

    def naive(drawn, model):
        by_user = [correct[model][pairs.user_codes == user].mean() for user in drawn]
        return {"support_spearman": stats.spearmanr(by_user, support[drawn]).statistic}

    family = support_family(pairs, correct, support)
    assert family.cells.users.sum() == NUM_USERS - 2
    check(family, pairs, np.column_stack([sums_by_user(pairs, correct), support]), naive)


def test_calibration():
    pairs, margins, correct, _ = draw()

    def naive(drawn, model):
        chosen = pairs_of(pairs, drawn)
        parts = {"": slice(None)} | {f"/g{g}": pairs.group_codes[chosen] == g for g in range(3)}
        mine = margins[model][chosen]
        return {f"{n}{p}": f(mine[rows]) for n, f in (("ece", naive_ece), ("brier", naive_brier)) for p, rows in parts.items()}

    sums = [
        row for right, values in zip(correct, margins, strict=True) for row in calibration_sums(pairs.user_codes, right, values)
    ]
    sums = np.column_stack([np.bincount(pairs.user_codes), *sums])
    check(calibration_family(pairs, correct, list(margins)), pairs, sums, naive)


def calibration(margins):
    summary = fairness_summary(pair_correctness(margins), None, None, margins=margins, num_resamples=1)
    return summary["ece"]["value"], summary["brier"]["value"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-12, 12, allow_nan=False), min_size=1, max_size=60))
def test_folding_is_entering_each_pair_in_both_orders(margins):
    # Which response a margin that rounds to even odds prefers cannot be read off the probability.
    margins = np.array([m for m in margins if abs(m) > 1e-9] or [1.0])
    both = np.concatenate([expit(margins), expit(-margins)])
    label = np.concatenate([np.ones(len(margins)), np.zeros(len(margins))])
    # 20 bins over [0, 1] are the ten folded ones and their mirror images.
    place = np.clip(np.floor(both * 20), 0, 19)
    place[len(margins) :] = 19 - place[: len(margins)]  # a probability on an edge, or rounded across it
    gaps = [np.sum(label[place == b] - both[place == b]) for b in range(20)]
    assert calibration(margins) == pytest.approx((np.abs(gaps).sum() / len(both), np.mean((label - both) ** 2)), abs=1e-9)


LOG_ODDS = float(np.log(0.7 / 0.3))


@pytest.mark.parametrize(
    ("margins", "ece", "brier"),
    [
        ([LOG_ODDS] * 7 + [-LOG_ODDS] * 3, 0.0, 0.7 * 0.3),
        ([LOG_ODDS] * 10, 0.3, 0.09),
        ([-LOG_ODDS] * 10, 0.7, 0.49),
        ([0.0] * 5, 0.0, 0.25),  # a model that cannot tell and says so is calibrated
        ([np.inf, np.inf, -np.inf], 1 / 3, 1 / 3),
    ],
)
def test_known_calibration(margins, ece, brier):
    assert calibration(margins) == pytest.approx((ece, brier), abs=1e-12)


def test_calibrated_pairs_have_the_error_that_noise_makes():
    def draw_calibrated(num_pairs, scale=1.0, seed=0):
        """Pairs whose chosen response won with the probability that the model gives it; `scale` makes it too sure."""
        rng = np.random.default_rng(seed)
        log_odds = rng.normal(0.8, 1.2, size=num_pairs)
        return scale * np.where(rng.random(num_pairs) < expit(log_odds), log_odds, -log_odds)

    drawn = [draw_calibrated(400, seed=seed) for seed in range(200)]
    expected = np.mean([ece_noise(margins) for margins in drawn])
    assert np.mean([naive_ece(margins) for margins in drawn]) == pytest.approx(expected, rel=0.05)
    # It falls with the root of the number of pairs; being too sure does not.
    assert ece_noise(draw_calibrated(40_000)) == pytest.approx(expected / 10, rel=0.05)
    assert naive_ece(draw_calibrated(40_000, scale=2.0)) > 0.08


def test_margins_that_are_not_those_of_the_answers():
    pairs, margins, correct, _ = draw()
    with pytest.raises(DataError, match=r"disagree on \d+ of \d+ pairs; give the margins from which"):
        calibration_family(pairs, correct, [margins[1], margins[0]])
    with pytest.raises(DataError, match=r"`margins` has shape \(3,\); give one per pair"):
        calibration_family(pairs, correct, [margins[0][:3], margins[1]])
