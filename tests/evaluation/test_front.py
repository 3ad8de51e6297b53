"""Which tau is above the path, and whether it is shown: against loops, all signs, and data where nothing is to be had."""

import itertools
import json
import math

import numpy as np
import pytest

from trl_pafo.evaluation import front as module
from trl_pafo.evaluation.front import FEWEST_USERS, TAUS, predict_front, simultaneous_differences, summaries
from trl_pafo.evaluation.reference_path import value_of
from trl_pafo.metrics.accuracy import encode_pairs
from trl_pafo.storage.files import json_ready


def population(users=(40, 16), pairs=4, seed=0):
    """Users and groups of pairs, the groups named a, b, ..."""
    rng = np.random.default_rng(seed)
    group = np.repeat([chr(97 + g) for g in range(len(users))], [n * pairs for n in users])
    user = np.repeat([f"u{i}" for i in range(sum(users))], pairs)
    return user, group, rng


def front_of(mixture, path, user, group, reference=1, **options):
    margins = {tau: mixture(tau) for tau in TAUS}
    return predict_front(margins, path, reference, mixture(1.0), user, group, sorted(set(group)), num_resamples=200, **options)


def starts(text, found):
    return found["sentence"].startswith(text)


def test_points_are_means_over_the_pairs_of_groups_and_draws():
    user, group, rng = population((8, 7, 6), pairs=3)
    several, one = rng.normal(size=(5, len(user))), rng.normal(size=len(user))
    one[0] = 0.0
    found = summaries({"several": several, "one": one}, encode_pairs(user, group, len(user)), 100, 0)
    for name, draws in {"several": several, "one": [one]}.items():
        for wanted in (None, *sorted(set(group))):
            at = [i for i in range(len(user)) if wanted in (None, group[i])]
            right = np.mean([[(np.sign(margins[i]) + 1) / 2 for i in at] for margins in draws])
            likelihood = np.mean([[-math.log1p(math.exp(-margins[i])) for i in at] for margins in draws])
            accuracy = found[name]["overall" if wanted is None else f"accuracy/{wanted}"]
            log_likelihood = found[name]["log_likelihood" if wanted is None else f"log_likelihood/{wanted}"]
            assert accuracy["value"] == pytest.approx(right)
            assert accuracy["low"] < right < accuracy["high"]
            assert log_likelihood["value"] == pytest.approx(likelihood)
            assert log_likelihood["low"] < likelihood < log_likelihood["high"] < 0
    assert found["one"]["num_users/b"] == 7
    assert found["one"]["num_pairs/b"] == 21
    assert list(found["one"])[:4] == ["overall", "accuracy/a", "accuracy/b", "accuracy/c"]


def test_points_that_are_right_for_everybody_are_not_certain():
    user, group, _ = population((8, 7))
    found = summaries({"right": np.ones(len(user))}, encode_pairs(user, group, len(user)), 50, 0)["right"]
    assert found["accuracy/a"]["low"] < 1 == found["accuracy/a"]["value"] == found["accuracy/a"]["high"]
    assert math.isnan(found["log_likelihood/a"]["low"])


def test_the_intervals_reject_what_all_signs_together_reject():
    user, group, rng = population((6, 5), pairs=2)
    reference = rng.integers(0, 2, len(user)).astype(float)
    correct = rng.random((3, len(user)))
    pairs = encode_pairs(user, group, len(user))
    value, low, high = simultaneous_differences(correct, reference, pairs, 0)

    gained = np.array([[sum((correct[m] - reference)[user == name]) for name in pairs.users] for m in range(3)])
    members = [[i for i, code in enumerate(pairs.group_of_user) if code == g] for g in range(2)]
    spread = np.array([[math.sqrt(sum(gained[m][i] ** 2 for i in of_group)) for of_group in members] for m in range(3)])

    def standardized(signs):
        return [[sum(signs[i] * gained[m][i] for i in members[g]) / spread[m][g] for g in range(2)] for m in range(3)]

    largest = sorted(np.max(standardized(signs)) for signs in itertools.product((-1, 1), repeat=11))
    threshold = largest[math.ceil(0.95 * len(largest)) - 1]
    counts = np.array([12, 10])
    assert (value - low) * counts / spread == pytest.approx(threshold, rel=0.05)  # 4,999 of 2,048 draws
    np.testing.assert_allclose(high - value, value - low)
    np.testing.assert_allclose(value, [[gained[m][members[g]].sum() / counts[g] for g in range(2)] for m in range(3)])


def test_no_interval_goes_beyond_what_a_difference_can_be():
    user, group, _ = population((8, 8), pairs=1)
    correct = np.array([[float(i % 4 > 0) for i in range(len(user))]])
    _, low, high = simultaneous_differences(correct, np.zeros(len(user)), encode_pairs(user, group, len(user)), 0)
    assert high.max() == 1
    assert low.min() > 0
    assert simultaneous_differences(1 - correct, np.ones(len(user)), encode_pairs(user, group, len(user)), 0)[1].min() == -1


def test_with_nothing_to_be_had_a_gain_is_shown_in_five_percent_of_studies(monkeypatch):
    monkeypatch.setattr(module, "_FLIPS", 399)
    shown = []
    for seed in range(200):
        user, group, rng = population((20, 9), pairs=2, seed=seed)
        reference, alike = rng.integers(0, 2, (2, len(user))).astype(float)
        correct = np.stack([np.where(rng.random(len(user)) < share, alike, reference) for share in (0.4, 0.7, 1.0)])
        _, low, _ = simultaneous_differences(correct, reference, encode_pairs(user, group, len(user)), seed)
        shown.append((low > 0).any())
    assert 0.01 < np.mean(shown) < 0.09


def test_a_gain_of_the_small_group_is_worth_it_and_the_best_tau_is_named():
    user, group, rng = population()
    own = np.where(rng.random(len(user)) < 0.9, 1.0, -1.0)
    path = np.where((group == "b") & (rng.random(len(user)) < 0.7), -1.0, own)

    def mixture(tau):  # with tau the small group is served better, at the large one's price
        lost = (group == "a") & (np.random.default_rng(1).random(len(user)) < (0.06 if tau == 1 else 0.0))
        missed = (group == "b") & (np.random.default_rng(2).random(len(user)) < (1 - tau) * 0.7)
        return np.where(lost | missed, -own, own)

    found = front_of(mixture, {1: path, 2: -path}, user, group)
    assert found["worth"] is True
    assert found["tau"] == 0.75
    assert found["mixture"][4]["gains"]["a"]["value"] < -module.TOLERANCE < 0 < found["mixture"][4]["gains"]["b"]["low"]
    balanced = lambda name: value_of("group_balanced", found["points"][name])  # noqa: E731
    assert balanced("mixture of teachers, tau 1") > balanced("mixture of teachers, tau 0.75")
    assert starts("Worth distilling: with tau 0.75 the mixture of teachers is more accurate for b +.", found)
    assert "no loss above .010 measured for a .000 [.000, .000]" in found["sentence"]
    assert list(found["points"]) == [
        *(f"mixture of teachers, tau {tau:g}" for tau in TAUS),
        "personalized BT, x1",
        "personalized BT, x2",
        "group-routed teachers",
    ]
    assert found["reference"] == "personalized BT, x1"
    assert [place["name"] for place in found["mixture"] + found["path"]] == list(found["points"])[:-1]
    assert json.loads(json.dumps(json_ready(found), allow_nan=False)) == found


def test_a_gain_that_another_group_pays_for_is_not_worth_it():
    user, group, rng = population()
    path = np.where(group == "a", 1.0, np.where(rng.random(len(user)) < 0.3, 1.0, -1.0))
    pays = np.where((group == "a") & (np.arange(len(user)) % 40 == 0), -1.0, 1.0)
    found = front_of(lambda tau: pays, {1: path}, user, group)
    assert found["mixture"][0]["gains"]["b"]["low"] > 0
    assert found["mixture"][0]["gains"]["a"]["value"] == -0.025
    assert found["worth"] is False
    assert starts("Nothing to distill: for no tau", found)
    assert "with tau 0: more accurate for b" in found["sentence"]
    assert "perhaps less accurate, but not shown to be, for a -.025" in found["sentence"]


def test_a_shown_loss_is_never_passed_over():
    user, group, rng = population((400, 16), pairs=4)
    path = np.where(group == "a", 1.0, np.where(rng.random(len(user)) < 0.3, 1.0, -1.0))
    few = (np.arange(len(user)) % 4 == 0) & (np.arange(len(user)) < 4 * 15)  # of a
    found = front_of(lambda tau: np.where(few, -1.0, 1.0), {1: path}, user, group)
    assert found["mixture"][0]["gains"]["a"]["value"] > -module.TOLERANCE
    assert found["mixture"][0]["gains"]["a"]["high"] < 0
    assert found["worth"] is False


@pytest.mark.parametrize("users", [FEWEST_USERS - 1, 0])
def test_a_group_of_too_few_held_out_users_is_not_judged(users):
    user, group, _ = population((40, users))
    ones = np.ones(len(user))
    found = predict_front({0.0: ones}, {1: -ones}, 1, ones, user, group, ["a", "b"], num_resamples=20)
    assert found["worth"] is False
    assert found["mixture"][0]["gains"]["a"]["low"] > 0
    assert starts(f"Too few held-out users to judge what can be had for b ({users}); {FEWEST_USERS} are needed.", found)


def test_without_held_out_pairs_nothing_is_judged():
    none = np.zeros(0)
    found = predict_front({0.0: none}, {1: none}, 1, none, [], [], ["a", "b"])
    assert found["worth"] is False
    assert found["points"] == {}
    assert "judge what can be had for a (0), b (0);" in found["sentence"]
