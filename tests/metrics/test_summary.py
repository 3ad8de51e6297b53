import json

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame
from scipy import stats

from trl_pafo.errors import ConfigError, DataError
from trl_pafo.metrics import fairness_summary, group_accuracy, pair_correctness

RATES = {"a": 0.9, "b": 0.6, "c": 0.75}


def draw(num_users=60, seed=0):
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(num_users), rng.integers(1, 7, size=num_users))
    group = np.array(list("aaabbc"))[user % 6]
    correct = (rng.random(len(user)) < np.array([RATES[g] for g in group])).astype(float)
    return correct, [f"u{u}" for u in user], group.tolist()


def numbers(summary):
    """The entries that have an interval."""
    return {name: entry for name, entry in summary.items() if isinstance(entry, dict)}


def is_unknown(entry):
    return np.isnan([entry["low"], entry["high"]]).all() and np.isfinite(entry["value"])


def everything(seed=0, **options):
    """A summary with all its parts, and what it was made from."""
    correct, user, group = draw(seed=seed)
    support = [int(u[1:]) % 6 / 10 if int(u[1:]) % 10 else np.nan for u in user]
    return fairness_summary(correct, user, group, support=support, **options), correct, user, group, support


@pytest.mark.parametrize("num_groups", [1, 2, 5])
def test_groups_are_fairlearns(num_groups):
    rng = np.random.default_rng(num_groups)
    user = np.repeat(np.arange(40), rng.integers(1, 7, size=40))
    group = np.array([f"g{u % num_groups}" for u in user])
    margins = rng.normal(0.1 * (user % num_groups), 1.0)
    margins[rng.random(len(margins)) < 0.1] = 0.0
    correct = pair_correctness(margins)
    theirs = MetricFrame(
        metrics=lambda y_true, y_pred: float(np.mean(y_pred)),
        y_true=np.ones(len(correct)),
        y_pred=correct,
        sensitive_features=group,
    )
    ours = fairness_summary(correct, user, group, num_resamples=2)
    assert group_accuracy(correct, group) == pytest.approx(theirs.by_group.to_dict())
    assert ours["overall"]["value"] == pytest.approx(theirs.overall)
    if num_groups == 1:  # fairlearn's difference of one group is 0; there is none
        assert not {"group_min", "group_max", "difference", "ratio", "worst_group"} & set(ours)
        return
    expected = [theirs.group_min(), theirs.group_max(), theirs.difference(), theirs.ratio()]
    assert [ours[name]["value"] for name in ("group_min", "group_max", "difference", "ratio")] == pytest.approx(expected)
    assert ours["worst_group"] == theirs.by_group.idxmin()


def test_where_all_are_wrong_the_ratio_is_undefined():
    ratio = fairness_summary([0.0, 0.0], list("ab"), list("xy"))["ratio"]
    assert np.isnan(list(ratio.values())).all()
    assert fairness_summary([0.0, 0.0, 1.0, 1.0], list("aabb"), list("xxyy"))["ratio"]["value"] == 0.0


def test_counts_and_facts():
    summary, correct, _, group, _ = everything(num_resamples=20)
    facts = {name: entry for name, entry in summary.items() if not isinstance(entry, dict)}
    assert facts == {
        "num_pairs": len(correct),
        "num_users": 60,
        **{f"num_pairs/{g}": group.count(g) for g in "abc"},
        **{f"num_users/{g}": n for g, n in {"a": 30, "b": 20, "c": 10}.items()},
        "num_users_without_support": 6,
        "worst_group": "b",
        "confidence": 0.95,
        "num_resamples": 20,
    }


def test_intervals_hold_their_values():
    for name, entry in numbers(everything()[0]).items():
        assert entry["low"] <= entry["value"] <= entry["high"]
        assert entry["low"] < entry["high"] or name == "user_max_min"
    wide, narrow = (fairness_summary(*draw(), confidence=confidence)["overall"] for confidence in (0.99, 0.5))
    assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]


def test_interval_of_equal_groups_still_holds_the_difference():
    # The best of four groups lies above the worst in all resamples: without widening, the interval would leave out 0.
    user = np.repeat(np.arange(200), 3)
    summary = fairness_summary(np.tile([1.0, 1.0, 0.0, 1.0, 0.0, 0.0], 100), user, user // 2 % 4)
    assert summary["difference"]["value"] == summary["difference"]["low"] == 0 < summary["difference"]["high"]
    assert summary["worst_group"] == "0"  # the first of equals


def test_support_without_correlation_is_nan_and_the_rest_stands():
    correct, user, group = draw()
    summary = fairness_summary(correct, user, group, support=np.full(len(user), 0.5))
    assert np.isnan(list(summary["support_spearman"].values())).all()
    assert summary["num_users_without_support"] == 0
    assert summary["overall"] == fairness_summary(correct, user, group)["overall"]


def test_json_holds_it_and_the_seed_decides():
    summary = fairness_summary(*draw())
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert fairness_summary(*draw(), num_resamples=1000, seed=0, confidence=0.95) == summary
    assert fairness_summary(*draw(), seed=1) != summary


def test_intervals_of_few_users_are_unknown_and_the_rest_stands():
    rng = np.random.default_rng(0)
    sizes = {"many": 40, "six": 6, "five": 5, "one": 1}
    group_of_user = np.repeat(list(sizes), list(sizes.values()))
    correct = (rng.random((len(group_of_user), 5)) < 0.7).astype(float).ravel()
    user, group = np.repeat(np.arange(len(group_of_user)), 5), np.repeat(group_of_user, 5)
    summary = fairness_summary(correct, user, group)
    unknown = "accuracy/five accuracy/one group_min difference ratio"
    known = "overall accuracy/many accuracy/six user_gini user_theil"
    assert all(is_unknown(summary[name]) for name in unknown.split())
    assert all(summary[name]["low"] < summary[name]["high"] for name in known.split())
    assert is_unknown(fairness_summary(correct, user, group, confidence=0.99)["accuracy/six"])
    lone = fairness_summary([1, 0, 1, 1], ["u"] * 4, ["g"] * 4)
    assert all(is_unknown(entry) for entry in numbers(lone).values())


def test_groups_of_one_user_are_not_certain_together():
    """As many groups as users: drawn group by group, every resample would be the data themselves."""
    rng = np.random.default_rng(0)
    correct, user = (rng.random(240) < 0.7).astype(float), np.repeat(np.arange(40), 6)
    together = fairness_summary(correct, user, ["g"] * 240, num_resamples=2000)
    lone = fairness_summary(correct, user, user, num_resamples=2000)
    few = fairness_summary(correct, user, np.where(user == 0, "one", "many"), num_resamples=2000)
    for summary, name in ((lone, "overall"), (lone, "user_gini"), (few, "overall")):
        ends = [[s[name]["low"], s[name]["high"]] for s in (summary, together)]
        assert ends[0] == pytest.approx(ends[1], abs=0.01)


def test_users_who_all_fare_alike_do_not_make_certainty():
    right = fairness_summary(np.ones(24), np.repeat(np.arange(6), 4), ["g"] * 24)["accuracy/g"]
    exact = stats.binomtest(6, 6).proportion_ci(0.95, method="exact")
    assert [right["low"], right["high"]] == pytest.approx([exact.low, exact.high])


def test_nothing_is_said_of_groups_or_users_that_are_not_known():
    whole, correct, user, group, support = everything()
    alone = fairness_summary(correct, user, None, support=support)
    assert not [name for name in alone if "/" in name or "group" in name or name in ("difference", "ratio")]
    for name in numbers(alone):
        assert alone[name]["value"] == pytest.approx(whole[name]["value"], nan_ok=True), name
    assert alone["num_users"] == 60
    of_pairs = fairness_summary(correct, None, group)
    assert not [name for name in of_pairs if "user" in name]
    assert of_pairs["difference"]["low"] < of_pairs["difference"]["high"]
    bare = fairness_summary(correct, None, None)
    assert set(numbers(bare)) == {"overall"}
    width = bare["overall"]["high"] - bare["overall"]["low"]
    assert width == pytest.approx(2 * 1.96 * np.std(correct) / np.sqrt(len(correct)), rel=0.1)


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (DataError, "pairs in two groups", {"user": list("uuvw")}),
        (ConfigError, "`confidence` must be above 0 and below 1", {"confidence": 95}),
        (DataError, "more than one value of `support`", {"support": [1, 2, 3, 4], "user": list("uvuv")}),
        (DataError, "`support` belongs to users", {"support": [1, 2, 3, 4], "user": None}),
    ],
)
def test_unusable_input(error, match, options):
    data = {"correct": [1, 0, 1, 0], "user": list("uvwx"), "group": list("abab"), **options}
    with pytest.raises(error, match=match):
        fairness_summary(**data)


def test_pairs_of_known_users_are_resampled_by_what_was_held_out():
    rng = np.random.default_rng(0)
    user = [f"u{number % 8}" for number in range(96)]
    unit = [f"{name}, prompt {number // 32}" for number, name in enumerate(user)]
    group = ["ab"[int(name[1:]) < 3] for name in user]
    correct = rng.integers(0, 2, 96).astype(float)
    known, of_users, as_users = (
        fairness_summary(correct, who, group, **more) for who, more in ((user, {"unit": unit}), (user, {}), (unit, {}))
    )
    for name in ("overall", "accuracy/a", "accuracy/b", "difference"):
        assert known[name] == as_users[name]  # intervals over units
        assert known[name]["value"] == of_users[name]["value"]
    assert known["overall"] != of_users["overall"]
    for name in ("user_mean", "user_worst_decile", "user_gini"):
        assert known[name]["value"] == of_users[name]["value"]  # of people, not of units
        assert np.isnan(known[name]["low"])
        assert np.isnan(known[name]["high"])
    assert (known["num_users"], known["num_users/b"], known["num_units"]) == (8, 3, 24)
    support = [int(name[1:]) / 8 for name in user]
    by_support, of_users = (fairness_summary(correct, user, group, support=support, **more) for more in ({"unit": unit}, {}))
    assert by_support["support_spearman"]["value"] == of_users["support_spearman"]["value"]
    assert is_unknown(by_support["support_spearman"])
    assert str({name: by_support[name] for name in known}) == str(known)  # NaN reads alike
