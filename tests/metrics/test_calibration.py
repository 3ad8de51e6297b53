import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from trl_pafo.errors import ConfigError, DataError
from trl_pafo.metrics import brier, ece, ece_noise, group_calibration, reliability
from trl_pafo.metrics.calibration import bin_edges, fold

margins_lists = st.lists(st.floats(-12, 12, allow_nan=False), min_size=1, max_size=60)


def draw(num_pairs, scale=1.0, seed=0):
    """Pairs whose chosen response won with the probability that the model gives it; `scale` makes it too sure."""
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(0.8, 1.2, size=num_pairs)
    won = rng.random(num_pairs) < expit(log_odds)
    return scale * np.where(won, log_odds, -log_odds)


def naive_ece(probability, label, edges):
    """Textbook form: every bin by itself, `[low, high)` and the last one closed."""
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = [
            (p, y) for p, y in zip(probability, label, strict=True) if low <= p < high or (p == high == edges[-1] and p > low)
        ]
        if inside:
            total += len(inside) * abs(np.mean([y for _, y in inside]) - np.mean([p for p, _ in inside]))
    return total / len(probability)


@pytest.mark.parametrize("binning", ["width", "mass"])
@pytest.mark.parametrize("num_bins", [1, 4, 10])
def test_error_is_the_textbooks_on_folded_pairs(binning, num_bins):
    margins = draw(300, scale=1.7)
    confidence = np.maximum(expit(margins), expit(-margins))
    inner = np.quantile(confidence, np.linspace(0, 1, num_bins + 1)) if binning == "mass" else np.linspace(0.5, 1, num_bins + 1)
    expected = naive_ece(confidence, (margins > 0).astype(float), inner)
    assert ece(margins, num_bins=num_bins, binning=binning) == pytest.approx(expected)
    assert expected > 0.02


@settings(max_examples=80, deadline=None)
@given(margins_lists)
def test_folding_is_entering_each_pair_in_both_orders(margins):
    # Which response a margin that rounds to even odds prefers cannot be read off the probability.
    margins = np.array([m for m in margins if abs(m) > 1e-9] or [1.0])
    both = np.concatenate([expit(margins), expit(-margins)])
    label = np.concatenate([np.ones(len(margins)), np.zeros(len(margins))])
    # 20 bins over [0, 1] are the ten folded ones and their mirror images.
    place = np.clip(np.floor(both * 20), 0, 19)
    place[len(margins) :] = 19 - place[: len(margins)]  # a probability on an edge, or rounded across it
    gaps = [np.sum(label[place == b] - both[place == b]) for b in range(20)]
    assert ece(margins) == pytest.approx(np.abs(gaps).sum() / len(both), abs=1e-9)
    assert brier(margins) == pytest.approx(np.mean((label - both) ** 2))


@settings(max_examples=80, deadline=None)
@given(margins_lists, st.sampled_from(["width", "mass"]), st.randoms(use_true_random=False))
def test_bounds_order_and_repetition(margins, binning, random):
    error, score = ece(margins, binning=binning), brier(margins)
    assert 0 <= error <= 1
    assert 0 <= score <= 1
    shuffled = random.sample(margins, len(margins))
    assert ece(shuffled, binning=binning) == pytest.approx(error, abs=1e-12)
    assert brier(shuffled) == pytest.approx(score)
    assert ece([*margins, *margins]) == pytest.approx(ece(margins), abs=1e-12)


def test_known_values():
    log_odds = np.log(0.7 / 0.3)
    assert ece([log_odds] * 7 + [-log_odds] * 3) == pytest.approx(0.0, abs=1e-12)
    assert ece([log_odds] * 10) == pytest.approx(0.3)
    assert ece([-log_odds] * 10) == pytest.approx(0.7)
    assert brier([log_odds] * 7 + [-log_odds] * 3) == pytest.approx(0.7 * 0.3)
    # A model that cannot tell and says so is calibrated.
    assert ece([0.0] * 5) == 0.0
    assert brier([0.0] * 5) == 0.25
    assert ece([np.inf, np.inf, -np.inf]) == pytest.approx(1 / 3)
    assert brier([np.inf, np.inf, -np.inf]) == pytest.approx(1 / 3)


def test_calibrated_pairs_have_the_error_that_noise_makes():
    found = [(ece(draw(400, seed=seed)), ece_noise(draw(400, seed=seed))) for seed in range(200)]
    measured, expected = np.mean(found, axis=0)
    assert measured == pytest.approx(expected, rel=0.05)
    assert expected > 0.02
    # It falls with the root of the number of pairs; being too sure does not.
    assert ece_noise(draw(40_000)) == pytest.approx(expected / 10, rel=0.05)
    assert ece(draw(40_000)) < 0.01
    assert ece(draw(40_000, scale=2.0)) > 0.08


def test_bins_of_equal_mass_hold_equally_many_pairs_and_keep_equals_together():
    bins = reliability(draw(1000), binning="mass")
    assert len(bins.pairs) == 10
    assert bins.pairs.min() >= 99
    assert bins.pairs.max() <= 101
    # Three pairs are less than a tenth, so they join the bin below.
    assert reliability([0.5] * 30 + [1.0] * 30 + [2.0] * 3, binning="mass").pairs.tolist() == [30, 33]
    assert reliability([0.5] * 4, binning="mass").pairs.tolist() == [4]


def test_bins_add_up_and_empty_ones_are_unknown():
    margins = draw(200)
    bins = reliability(margins, num_bins=4)
    assert bins.edges.tolist() == [0.5, 0.625, 0.75, 0.875, 1.0]
    assert bins.pairs.sum() == 200
    confidence, correct = fold(margins)
    assert (bins.pairs * bins.accuracy).sum() == pytest.approx(correct.sum())
    assert (bins.pairs * bins.confidence).sum() == pytest.approx(confidence.sum())
    assert ((bins.edges[:-1] <= bins.confidence) & (bins.confidence <= bins.edges[1:])).all()
    lone = reliability([0.0, 0.1])
    assert np.isnan(lone.accuracy[1:]).all()
    assert lone.accuracy[0] == 0.75


def test_groups_by_themselves():
    margins = draw(300)
    group = np.array(list("xyz"))[np.arange(300) % 3]
    found = group_calibration(margins, group, num_bins=5, binning="mass")
    assert list(found) == ["x", "y", "z"]
    for name, entry in found.items():
        mine = margins[group == name]
        options = {"num_bins": 5, "binning": "mass"}
        assert entry == {"ece": ece(mine, **options), "ece_noise": ece_noise(mine, **options), "brier": brier(mine)}


def test_unusable_input():
    with pytest.raises(DataError, match="1 of 2 margins are NaN"):
        ece([0.1, np.nan])
    with pytest.raises(DataError, match="at least one pair"):
        brier([])
    with pytest.raises(ConfigError, match="`binning` must be one of width, mass, got 'equal'"):
        ece([0.1], binning="equal")
    with pytest.raises(ConfigError, match="`num_bins` must be at least 1"):
        bin_edges(np.array([0.5]), 0)
    with pytest.raises(DataError, match="2 pairs, but 1 values of `group`"):
        group_calibration([0.1, 0.2], ["a"])
