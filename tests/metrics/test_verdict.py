import dataclasses
import itertools
import json

import numpy as np
import pytest
from scipy import stats

from trl_pafo.errors import ConfigError, DataError
from trl_pafo.metrics import compare
from trl_pafo.metrics.verdict import format_number

PAIRS = 4
NUM_USERS = 24


def study(**lost_and_gained):
    """Correctness of a model and a reference, 24 users a group: `group=(users who gain a pair, users who lose one)`."""
    correct, reference, user, group = [], [], [], []
    for name, (gaining, losing) in lost_and_gained.items():
        for number in range(NUM_USERS):
            base = [1.0, 1.0, 0.0, 0.0]
            change = [1.0, 1.0, 1.0, 0.0] if number < gaining else base
            change = [1.0, 0.0, 0.0, 0.0] if number >= NUM_USERS - losing else change
            correct += change
            reference += base
            user += [f"{name}{number}"] * PAIRS
            group += [name] * PAIRS
    return correct, reference, user, group


@pytest.mark.parametrize(
    ("groups", "margin", "expected"),
    [
        ({"maj": (12, 0), "min": (12, 0)}, 0.0, "improves"),
        ({"maj": (0, 0), "min": (12, 0)}, 0.0, "improves"),
        ({"maj": (3, 3), "min": (12, 0)}, 0.0, "improves"),
        ({"maj": (0, 1), "min": (12, 0)}, 0.0, "cannot tell"),  # A loss of .010 is estimated, but not shown.
        ({"maj": (0, 1), "min": (12, 0)}, 0.02, "improves"),
        ({"maj": (0, 1), "min": (12, 0)}, 0.01, "cannot tell"),
        ({"maj": (0, 12), "min": (12, 0)}, 0.0, "mixed"),
        ({"maj": (0, 12), "min": (12, 0)}, 0.5, "mixed"),  # No margin passes over a loss that is shown.
        ({"maj": (0, 12), "min": (0, 0)}, 0.0, "degrades"),
        ({"maj": (0, 12), "min": (3, 0)}, 0.0, "degrades"),
        ({"maj": (0, 12), "min": (0, 12)}, 0.0, "degrades"),
        ({"maj": (0, 0), "min": (0, 0)}, 0.0, "cannot tell"),
        ({"maj": (3, 0), "min": (4, 1)}, 0.0, "cannot tell"),
        ({"only": (12, 0)}, 0.0, "improves"),
    ],
)
def test_verdicts(groups, margin, expected):
    assert compare(*study(**groups), margin=margin).verdict == expected


def test_differences_are_those_of_group_accuracies_and_turn_sign_with_the_models():
    correct, reference, user, group = study(maj=(3, 7), min=(12, 0))
    forth = compare(correct, reference, user, group)
    back = compare(reference, correct, user, group)
    assert forth.differences["maj"]["value"] == pytest.approx(-4 / (NUM_USERS * PAIRS))
    assert forth.differences["min"]["value"] == pytest.approx(12 / (NUM_USERS * PAIRS))
    for name in ("maj", "min"):
        one, other = forth.differences[name], back.differences[name]
        assert one["low"] < one["value"] < one["high"]
        # Other cells, so other draws: equal up to the noise of 2,000 subsets.
        assert one["low"] == pytest.approx(-other["high"], abs=0.02)
        assert one["high"] == pytest.approx(-other["low"], abs=0.02)


def sign_flip_p(difference, count, theta):
    """Naive one-sided p value of "the difference is `theta`" against "it is larger", over all sign flips."""
    residuals = difference - theta * count
    flips = np.array(list(itertools.product((1, -1), repeat=len(residuals))))
    return np.mean(flips @ residuals >= residuals.sum() - 1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_interval_is_what_the_exact_sign_flip_test_does_not_reject(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 8, size=11)
    user = np.repeat(np.arange(11), counts)
    correct = rng.choice([0, 0.5, 1], size=len(user))
    reference = rng.choice([0, 0.5, 1], size=len(user))
    interval = compare(correct, reference, user, ["g"] * len(user), num_resamples=40_000).differences["g"]
    difference = np.bincount(user, weights=correct - reference)
    # The ends are where the p value passes 2.5 %, up to the noise of the subsets.
    assert sign_flip_p(difference, counts, interval["low"] - 1e-9) <= 0.025 + 0.004
    assert sign_flip_p(difference, counts, interval["low"] + 1e-9) >= 0.025 - 0.004
    assert sign_flip_p(-difference, counts, -interval["high"] - 1e-9) <= 0.025 + 0.004
    assert sign_flip_p(-difference, counts, -interval["high"] + 1e-9) >= 0.025 - 0.004


def test_gain_is_shown_where_scipys_permutation_test_shows_it():
    shown = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        user = np.repeat(np.arange(10), 5)
        correct = (rng.random(50) < 0.75).astype(float)
        reference = (rng.random(50) < 0.45).astype(float)
        means = [np.bincount(user, weights=values) / 5 for values in (correct, reference)]
        p = stats.permutation_test(
            means, lambda a, b: np.mean(a) - np.mean(b), permutation_type="samples", alternative="greater"
        ).pvalue
        if abs(p - 0.025) < 0.004:  # Within the noise of the subsets.
            continue
        low = compare(correct, reference, user, ["g"] * 50, num_resamples=20_000).differences["g"]["low"]
        assert (low > 0) == (p < 0.025)
        shown.append(low > 0)
    assert set(shown) == {True, False}


def simulate(rng, num_users, rates, counts, num_runs, num_resamples, shift=None):
    """Verdicts of `num_runs` studies with two groups, and how often all intervals held the true differences at once."""
    verdicts, held = [], 0
    for seed in range(num_runs):
        pairs = counts(rng, 2 * num_users)
        user = np.repeat(np.arange(2 * num_users), pairs)
        ours, theirs = rates(rng, 2 * num_users)
        correct = (rng.random(len(user)) < ours[user]).astype(float)
        reference = (rng.random(len(user)) < theirs[user]).astype(float)
        result = compare(correct, reference, user, user % 2, seed=seed, num_resamples=num_resamples)
        verdicts.append(result.verdict)
        held += all(d["low"] <= (shift or 0.0) <= d["high"] for d in result.differences.values())
    return {name: verdicts.count(name) / num_runs for name in set(verdicts)}, held / num_runs


def four_pairs(rng, n):
    return np.full(n, 4)


def uneven_pairs(rng, n):
    return np.minimum(rng.geometric(0.15, size=n), 40)


def equal_rates(rng, n):
    return np.full(n, 0.7), np.full(n, 0.7)


def high_rates(rng, n):
    return np.full(n, 0.97), np.full(n, 0.97)


def own_rates(rng, n):
    """Each user fares differently under each model, by chance better or worse."""
    return rng.beta(4, 2, size=n), rng.beta(4, 2, size=n)


def skewed_rates(rng, n):
    """One user in ten loses much, the others gain little: no difference on average, but no symmetry either."""
    return np.where(rng.random(n) < 0.1, 0.05, 0.55), np.full(n, 0.5)


def better_rates(rng, n):
    return np.full(n, 0.9), np.full(n, 0.6)


def test_level_and_power_in_a_small_simulation():
    shares, held = simulate(np.random.default_rng(0), 20, own_rates, uneven_pairs, 150, 999)
    assert shares.get("improves", 0) <= 0.05
    assert shares.get("degrades", 0) <= 0.05
    assert held >= 0.9
    shares, held = simulate(np.random.default_rng(0), 20, better_rates, four_pairs, 60, 999, shift=0.3)
    assert shares["improves"] >= 0.9
    assert held >= 0.88


def test_no_difference_is_called_an_improvement_in_at_most_5_percent_of_1000_runs():
    shares, _ = simulate(np.random.default_rng(3), 15, equal_rates, four_pairs, 1000, 499)
    assert shares.get("improves", 0) <= 0.05
    # The level is 2.5 % a side for both groups together; never saying anything would be no virtue.
    assert shares["improves"] >= 0.005
    assert shares["cannot tell"] >= 0.92


@pytest.mark.slow
@pytest.mark.parametrize("num_users", [15, 30])
@pytest.mark.parametrize("counts", [four_pairs, uneven_pairs])
@pytest.mark.parametrize("rates", [equal_rates, high_rates, own_rates, skewed_rates])
def test_no_difference_is_rarely_called_an_improvement(num_users, counts, rates):
    shares, held = simulate(np.random.default_rng(1), num_users, rates, counts, 2000, 2000)
    print(num_users, counts.__name__, rates.__name__, shares, held)
    assert shares.get("improves", 0) <= 0.05
    assert shares.get("degrades", 0) <= 0.05
    assert held >= 0.94


@pytest.mark.slow
@pytest.mark.parametrize("num_users", [15, 30])
@pytest.mark.parametrize("counts", [four_pairs, uneven_pairs])
def test_intervals_hold_a_true_difference(num_users, counts):
    shares, held = simulate(np.random.default_rng(2), num_users, better_rates, counts, 2000, 2000, shift=0.3)
    print(num_users, counts.__name__, shares, held)
    assert held >= 0.94
    assert shares["improves"] >= 0.95


def test_equal_margins_are_the_same_model_and_not_an_open_question():
    margins = np.array([1.0, -2.0, 0.0, 3.0])
    correct, who = (np.sign(margins) + 1) / 2, dict(user=list("aabb"), group=list("xxyy"))
    result = compare(correct, correct, **who, margins=margins, reference_margins=margins.copy())
    assert result.verdict == "same"
    assert result.differences == {name: {"value": 0.0, "low": 0.0, "high": 0.0} for name in "xy"}
    assert result.sentence == "The same: both give the same margin on every pair (4 pairs)."
    assert result.users_needed is None
    other = margins * 1.5  # right about the same pairs, yet another model
    assert compare(correct, correct, **who, margins=margins, reference_margins=other).verdict == "cannot tell"
    assert compare(correct, correct, **who).verdict == "cannot tell"
    with pytest.raises(DataError, match="Give `margins` and `reference_margins`, or neither"):
        compare(correct, correct, **who, margins=margins)


def test_without_groups_the_verdict_is_on_all_pairs():
    correct, reference, user, _ = study(a=(12, 0), b=(12, 0))
    result = compare(correct, reference, user, None)
    assert result.verdict == "improves"
    assert list(result.differences) == ["overall"]
    assert result.sentence.startswith("Improves on the reference: more accurate overall +.125 [")
    assert result.sentence.endswith("(95 % interval over 48 users).")
    assert result.differences["overall"] == compare(correct, reference, user, ["g"] * len(user)).differences["g"]
    unknown = compare(correct, reference, None, None)
    assert "(95 % interval over 192 pairs, each taken as one of another person)" in unknown.sentence
    assert "such pairs" in compare(*study(maj=(2, 4), min=(6, 1))[:2], None, None).sentence
    open_question = compare(*study(maj=(2, 4), min=(6, 1))[:3], None)
    assert f"it would take {open_question.users_needed} such users to tell with 80 % power" in open_question.sentence


def test_few_users_show_nothing():
    correct, reference = [1.0] * 8, [0.0] * 8
    result = compare(correct, reference, list("aabbccdd"), ["g"] * 8)
    assert result.verdict == "cannot tell"
    assert result.differences["g"] == {"value": 1.0, "low": -1.0, "high": 1.0}


def test_more_groups_need_wider_intervals():
    one = compare(*study(a=(8, 2))).differences["a"]
    many = compare(*study(a=(8, 2), b=(0, 0), c=(0, 0), d=(0, 0), e=(0, 0))).differences["a"]
    assert many["low"] < one["low"]
    assert many["high"] > one["high"]


def test_sentence_gives_the_numbers():
    result = compare(*study(maj=(0, 0), min=(12, 0)))
    low, high = (format_number(result.differences["min"][end], signed=True) for end in ("low", "high"))
    assert result.sentence == (
        f"Improves on the reference: more accurate for min +.125 [{low}, {high}]; no loss measured for maj .000 [.000, "
        ".000] (simultaneous 95 % intervals over 48 users)."
    )
    assert compare(*study(maj=(0, 12), min=(12, 0))).sentence.startswith("Mixed against the reference: more accurate for min")
    sentence = compare(*study(maj=(0, 1), min=(12, 0))).sentence
    assert sentence.startswith("Cannot tell: more accurate for min")
    assert "perhaps less accurate, but not shown to be, for maj -.010" in sentence
    assert "no loss above .020 measured for maj -.010" in compare(*study(maj=(0, 1), min=(12, 0)), margin=0.02).sentence


def test_sentence_says_how_many_users_would_have_told():
    result = compare(*study(maj=(2, 4), min=(6, 1)))
    assert result.verdict == "cannot tell"
    needed, half = result.users_needed, round(result.users_needed / 2)
    assert result.sentence.endswith(
        f"over 48 users; were these differences true, it would take {needed} such users (maj {half}, min {half}) to tell with "
        "80 % power)."
    )
    assert needed > 48
    assert set(result.group_users_needed) == {"maj", "min"}
    assert "to tell with 90 % power" in compare(*study(maj=(2, 4), min=(6, 1)), power=0.9).sentence
    told = compare(*study(maj=(1, 0), min=(12, 0)))
    assert "power" not in told.sentence
    assert told.users_needed <= 48
    never = compare(*study(maj=(0, 0), min=(3, 3)))
    assert never.users_needed is None
    assert never.group_users_needed == {"maj": None, "min": None}
    assert never.sentence.endswith("; by what was measured, more such users would not tell either).")
    lone = compare([1.0, 0.0, 1.0], [0.0, 1.0, 0.0], ["a", "b", "c"], ["x", "x", "y"])
    assert lone.users_needed is None
    assert "how many users would tell stays open: one of a group does not show how they differ" in lone.sentence


def test_verdict_is_frozen_and_fits_into_json():
    result = compare(*study(maj=(3, 0), min=(12, 0)))
    assert json.loads(json.dumps(dataclasses.asdict(result)))["verdict"] == "improves"
    assert result == compare(*study(maj=(3, 0), min=(12, 0)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.verdict = "mixed"


@pytest.mark.parametrize(
    ("value", "plain", "signed"),
    [
        (0.9124, ".912", "+.912"),
        (-0.04, "-.040", "-.040"),
        (0.0, ".000", ".000"),
        (-0.0004, ".000", ".000"),
        (0.99951, "1.000", "+1.000"),
        (-1.0, "-1.000", "-1.000"),
        (0.9994, ".999", "+.999"),
        (float("nan"), "-", "-"),
        (None, "-", "-"),
    ],
)
def test_numbers(value, plain, signed):
    assert format_number(value) == plain
    assert format_number(value, signed=True) == signed


def test_unusable_input():
    correct, reference, user, group = study(a=(3, 0), b=(0, 0))
    with pytest.raises(DataError, match="has 192 pairs and the reference 191: score both on the same pairs"):
        compare(correct, reference[:-1], user, group)
    with pytest.raises(DataError, match="`reference_correct` must lie in"):
        compare(correct, [3.0] * 192, user, group)
    with pytest.raises(ConfigError, match=r"50 resamples are too few for 2 groups.*`num_resamples` to at least 79"):
        compare(correct, reference, user, group, num_resamples=50)
    assert compare(correct, reference, user, group, num_resamples=79).verdict
    with pytest.raises(ConfigError, match="`margin` is a loss of accuracy"):
        compare(correct, reference, user, group, margin=-0.1)
    with pytest.raises(ConfigError, match="`confidence` must be above 0"):
        compare(correct, reference, user, group, confidence=1.0)
