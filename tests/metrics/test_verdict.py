import itertools

import numpy as np
import pytest

from trl_pafo.errors import ConfigError, DataError
from trl_pafo.metrics import compare
from trl_pafo.metrics.accuracy import encode_pairs
from trl_pafo.metrics.bootstrap import group_totals, subset_weights, user_cells
from trl_pafo.metrics.verdict import fewest_resamples, format_interval, format_number, number_with_interval

PAIRS = 4
NUM_USERS = 24


def study(**gained_and_lost):
    """Correctness of a model and a reference, 24 users a group: `group=(users who gain a pair, users who lose one)`."""
    correct, reference, user, group = [], [], [], []
    for name, (gaining, losing) in gained_and_lost.items():
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
        ({"maj": (0, 0), "min": (12, 0)}, 0.0, "improves"),
        ({"maj": (0, 1), "min": (12, 0)}, 0.0, "cannot tell"),  # A loss of .010 is estimated, but not shown.
        ({"maj": (0, 1), "min": (12, 0)}, 0.02, "improves"),
        ({"maj": (0, 1), "min": (12, 0)}, 0.01, "cannot tell"),
        ({"maj": (0, 12), "min": (12, 0)}, 0.0, "mixed"),
        ({"maj": (0, 12), "min": (12, 0)}, 0.5, "mixed"),  # No margin passes over a loss that is shown.
        ({"maj": (0, 12), "min": (3, 0)}, 0.0, "degrades"),
        ({"maj": (3, 0), "min": (4, 1)}, 0.0, "cannot tell"),
        ({"only": (12, 0)}, 0.0, "improves"),
    ],
)
def test_verdicts(groups, margin, expected):
    assert compare(*study(**groups), margin=margin).verdict == expected


def test_differences_are_those_of_group_accuracies_and_change_sign_with_the_models():
    correct, reference, user, group = study(maj=(3, 7), min=(12, 0))
    forth = compare(correct, reference, user, group)
    back = compare(reference, correct, user, group)
    assert forth.differences["maj"]["value"] == pytest.approx(-4 / (NUM_USERS * PAIRS))
    assert forth.differences["min"]["value"] == pytest.approx(12 / (NUM_USERS * PAIRS))
    for name in ("maj", "min"):
        one, other = forth.differences[name], back.differences[name]
        assert one["low"] < one["value"] < one["high"]
        # Other cells, so other draws: equal up to the noise of 2,000 subsets.
        assert [one["low"], one["high"]] == pytest.approx([-other["high"], -other["low"]], abs=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_interval_is_what_the_exact_sign_flip_test_does_not_reject(seed):
    def sign_flip_p(difference, count, theta):
        """One-sided p value of "the difference is `theta`" against "it is larger", over all sign flips."""
        residuals = difference - theta * count
        flips = np.array(list(itertools.product((1, -1), repeat=len(residuals))))
        return np.mean(flips @ residuals >= residuals.sum() - 1e-12)

    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 8, size=11)
    user = np.repeat(np.arange(11), counts)
    correct, reference = rng.choice([0, 0.5, 1], size=(2, len(user)))
    interval = compare(correct, reference, user, ["g"] * len(user), num_resamples=40_000).differences["g"]
    difference = np.bincount(user, weights=correct - reference)
    # The ends are where the p value passes 2.5 %, up to the noise of the subsets.
    for sign, end in ((1, interval["low"]), (-1, interval["high"])):
        assert sign_flip_p(sign * difference, counts, sign * end - 1e-9) <= 0.025 + 0.004
        assert sign_flip_p(sign * difference, counts, sign * end + 1e-9) >= 0.025 - 0.004


@pytest.mark.parametrize(("num_resamples", "place"), [(79, 1), (158, 1), (159, 2), (799, 10)])
def test_the_ends_are_the_subsets_at_a_place_that_allows_for_how_many_were_drawn(num_resamples, place):
    """Of two groups each side may miss the truth in 1.25 % of studies: the first of 79 values, the second of 159, the tenth of 799."""
    correct, reference, user, group = study(maj=(3, 7), min=(12, 0))
    pairs = encode_pairs(user, group, len(user))
    cells = user_cells(pairs.user_codes, pairs.group_of_user, np.subtract(correct, reference)[None])
    weights = np.concatenate(list(subset_weights(cells, num_resamples, 5)))
    drawn = np.sort(group_totals(cells, weights, cells.sums[0]) / group_totals(cells, weights, cells.pairs), axis=0)
    found = compare(correct, reference, user, group, num_resamples=num_resamples, seed=5).differences
    assert [found[name]["low"] for name in ("maj", "min")] == drawn[place - 1].tolist()
    assert [found[name]["high"] for name in ("maj", "min")] == drawn[-place].tolist()


def test_what_is_not_given_is_95_percent_2000_subsets_seed_0_and_no_margin():
    correct, reference, user, group = study(maj=(0, 1), min=(12, 0))
    columns = np.random.default_rng(0).random(len(correct)), reference, user, group
    assert compare(*columns) == compare(*columns, confidence=0.95, num_resamples=2000, seed=0, margin=0.0)
    assert fewest_resamples(2) == fewest_resamples(2, 0.95) == 79
    assert fewest_resamples(1, 0.5) == 3
    assert format_interval({"low": 0.1, "high": 0.2}) == "[.100, .200]"
    assert number_with_interval({"value": 0.1, "low": 0.1, "high": 0.2}) == ".100 [.100, .200]"


def test_no_difference_is_called_an_improvement_in_at_most_5_percent_of_400_runs():
    rng = np.random.default_rng(3)
    user = np.repeat(np.arange(30), 4)
    verdicts = []
    for seed in range(400):
        correct, reference = (rng.random((2, len(user))) < 0.7).astype(float)
        verdicts.append(compare(correct, reference, user, user % 2, seed=seed, num_resamples=399).verdict)
    # The level is 2.5 % a side for both groups together; never saying anything would be no virtue.
    assert 1 <= verdicts.count("improves") <= 20
    assert verdicts.count("cannot tell") >= 365


def test_equal_margins_are_the_same_model_and_not_an_open_question():
    margins = np.array([1.0, -2.0, 0.0, 3.0])
    correct, who = (np.sign(margins) + 1) / 2, dict(user=list("aabb"), group=list("xxyy"))
    result = compare(correct, correct, **who, margins=margins, reference_margins=margins.copy())
    assert result.verdict == "same"
    assert result.differences == {name: {"value": 0.0, "low": 0.0, "high": 0.0} for name in "xy"}
    assert result.sentence == "The same: both give the same margin on every pair (4 pairs)."
    other = margins * 1.5  # right about the same pairs, yet another model
    assert compare(correct, correct, **who, margins=margins, reference_margins=other).verdict == "cannot tell"
    assert compare(correct, correct, **who).verdict == "cannot tell"


def test_without_groups_the_verdict_is_on_all_pairs():
    correct, reference, user, _ = study(a=(12, 0), b=(12, 0))
    result = compare(correct, reference, user, None)
    assert result.verdict == "improves"
    assert list(result.differences) == ["overall"]
    assert result.sentence.startswith("Improves on the reference: more accurate overall +.125 [")
    assert result.sentence.endswith("(95 % interval over 48 users).")
    assert result.differences["overall"] == compare(correct, reference, user, ["g"] * len(user)).differences["g"]
    unknown = compare(correct, reference, None, None)
    assert "(95 % interval over 192 pairs, each counted as a different user)" in unknown.sentence


def test_few_users_show_nothing():
    result = compare([1.0] * 8, [0.0] * 8, list("aabbccdd"), ["g"] * 8)
    assert result.verdict == "cannot tell"
    assert result.differences["g"] == {"value": 1.0, "low": -1.0, "high": 1.0}
    assert compare([0.0] * 8, [1.0] * 8, list("aabbccdd"), ["g"] * 8).differences["g"] == {
        "value": -1.0,
        "low": -1.0,
        "high": 1.0,
    }


def test_sentence_gives_the_numbers():
    result = compare(*study(maj=(0, 0), min=(12, 0)))
    assert result.sentence == (
        f"Improves on the reference: more accurate for min +.125 {format_interval(result.differences['min'], signed=True)}; "
        "no loss measured for maj .000 [.000, .000] (simultaneous 95 % intervals over 48 users)."
    )
    assert compare(*study(maj=(0, 12), min=(12, 0))).sentence.startswith("Mixed against the reference: more accurate for min")
    sentence = compare(*study(maj=(0, 1), min=(12, 0))).sentence
    assert sentence.startswith("Cannot tell: more accurate for min")
    assert "perhaps less accurate, but not shown to be, for maj -.010" in sentence
    assert "no loss above .020 measured for maj -.010" in compare(*study(maj=(0, 1), min=(12, 0)), margin=0.02).sentence


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


@pytest.mark.parametrize(
    ("value", "low", "text"),
    [
        (0.02, -0.01, "+.020 [-.010, +.040]"),
        (0.02, None, "+.020 [unknown]"),
        (None, None, "unknown"),
        (float("nan"), 0.0, "unknown"),
    ],
)
def test_unknown_numbers_are_not_printed_as_numbers(value, low, text):
    assert number_with_interval({"value": value, "low": low, "high": 0.04}, signed=True) == text


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (DataError, "has 192 pairs and the reference 191: score both on the same pairs", {"reference_correct": [0.0] * 191}),
        (DataError, "Give `margins` and `reference_margins`, or neither", {"margins": [1.0] * 192}),
        (ConfigError, r"50 resamples are too few for 2 groups.*`num_resamples` to at least 79", {"num_resamples": 50}),
        (ConfigError, "`margin` is a loss of accuracy", {"margin": -0.1}),
        (ConfigError, "`margin` is a loss of accuracy", {"margin": 1.0}),
        (ConfigError, "`confidence` must be", {"margins": [1.0] * 192, "reference_margins": [1.0] * 192, "confidence": 95}),
    ],
)
def test_unusable_input(error, match, options):
    columns = dict(zip(("correct", "reference_correct", "user", "group"), study(a=(3, 0), b=(0, 0)), strict=True))
    assert compare(**columns, num_resamples=79).verdict == "cannot tell"
    with pytest.raises(error, match=match):
        compare(**columns | options)


def test_a_verdict_on_known_users_is_one_over_what_was_held_out_of_theirs():
    rng = np.random.default_rng(0)
    user = [f"u{number % 8}" for number in range(96)]
    unit = [f"{name}, prompt {number // 32}" for number, name in enumerate(user)]
    group = ["ab"[int(name[1:]) < 3] for name in user]
    ours, theirs = (rng.integers(0, 2, 96).astype(float) for _ in range(2))
    known, as_users = compare(ours, theirs, user, group, unit=unit), compare(ours, theirs, unit, group)
    assert known.differences == as_users.differences
    assert "intervals over 24 prompts of 8 known users" in known.sentence
