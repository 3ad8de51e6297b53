import json

import numpy as np
import pytest
from scipy import stats

from trl_pafo.errors import ConfigError, DataError
from trl_pafo.metrics import (
    atkinson,
    bootstrap_users,
    brier,
    cvar,
    ece,
    ece_noise,
    entropy_split,
    fairness_difference,
    fairness_summary,
    generalized_entropy,
    gini,
    group_calibration,
    jain,
    max_min,
    pair_correctness,
    percentile_interval,
    std,
    theil,
)
from trl_pafo.metrics.bootstrap import group_totals

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


def everything(seed=0, **options):
    """A summary with all its parts, and what it was made from."""
    correct, user, group = draw(seed=seed)
    rng = np.random.default_rng(seed + 1)
    margins = (2 * correct - 1) * rng.exponential(size=len(correct))
    support = {f"u{u}": (u % 6) / 10 if u % 10 else np.nan for u in range(60)}
    options = {"support": support, "margins": margins, "majority": "a", **options}
    return fairness_summary(correct, user, group, **options), correct, user, group, margins, support


def test_values_match_naive_ones():
    summary, correct, user, group, margins, support = everything(num_resamples=20, atkinson_epsilon=0.3)
    by_group = {g: np.mean([c for c, h in zip(correct, group, strict=True) if h == g]) for g in "abc"}
    users = sorted(set(user))
    by_user = np.array([np.mean([c for c, v in zip(correct, user, strict=True) if v == u]) for u in users])
    group_of_user = [dict(zip(user, group, strict=True))[u] for u in users]
    known = [i for i, u in enumerate(users) if not np.isnan(support[u])]
    expected = {
        "overall": np.mean(correct),
        **{f"accuracy/{g}": accuracy for g, accuracy in by_group.items()},
        "group_min": min(by_group.values()),
        "group_max": max(by_group.values()),
        "difference": max(by_group.values()) - min(by_group.values()),
        "ratio": min(by_group.values()) / max(by_group.values()),
        "user_mean": by_user.mean(),
        "user_worst_decile": cvar(by_user),
        "user_max_min": max_min(by_user),
        "user_std": std(by_user),
        "user_gini": gini(by_user),
        "user_jain": jain(by_user),
        "user_atkinson": atkinson(by_user, epsilon=0.3),
        "user_theil": theil(by_user),
        "user_entropy": generalized_entropy(by_user),
        **{f"user_theil_{part}": v for part, v in entropy_split(by_user, group_of_user)._asdict().items()},
        **{f"user_entropy_{part}": v for part, v in entropy_split(by_user, group_of_user, alpha=2.0)._asdict().items()},
        "majority": by_group["a"],
        "minority": np.mean([c for c, g in zip(correct, group, strict=True) if g != "a"]),
        "support_spearman": stats.spearmanr(by_user[known], [support[users[i]] for i in known]).statistic,
        "ece": ece(margins),
        "brier": brier(margins),
        **{f"ece/{g}": entry["ece"] for g, entry in group_calibration(margins, group).items()},
        **{f"brier/{g}": entry["brier"] for g, entry in group_calibration(margins, group).items()},
    }
    measured = {name: entry["value"] for name, entry in numbers(summary).items()}
    assert measured == pytest.approx(expected)
    facts = {name: entry for name, entry in summary.items() if not isinstance(entry, dict)}
    assert facts.pop("worst_group_share") > 0.5
    noise = {f"ece_noise/{g}": entry["ece_noise"] for g, entry in group_calibration(margins, group).items()}
    assert facts == {
        "num_pairs": len(correct),
        "num_users": 60,
        **{f"num_pairs/{g}": group.count(g) for g in "abc"},
        **{f"num_users/{g}": n for g, n in {"a": 30, "b": 20, "c": 10}.items()},
        "num_users_without_support": 6,
        "worst_group": "b",
        "ece_noise": ece_noise(margins),
        **noise,
        "confidence": 0.95,
        "num_resamples": 20,
        "method": "percentile",
        "atkinson_epsilon": 0.3,
    }


def test_parts_that_are_not_asked_for_are_not_there():
    plain = fairness_summary(*draw())
    assert not [name for name in plain if "support" in name or "ece" in name or "brier" in name or "ority" in name]
    with_all, *_ = everything()
    assert {name: with_all[name] for name in plain} == plain


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_hold_their_values(method):
    summary, *_ = everything(method=method)
    for name, entry in numbers(summary).items():
        assert entry["low"] <= entry["value"] <= entry["high"]
        assert entry["low"] < entry["high"] or name == "user_max_min"
    assert summary["method"] == method


def test_bca_is_that_of_users_as_samples_of_their_groups():
    rng = np.random.default_rng(0)
    right = rng.binomial(97, rng.beta(3, 0.7, size=50))
    group_of_user = np.repeat(["x", "y"], [35, 15])
    correct = (np.arange(97) < right[:, None]).astype(float).ravel()
    user, group = np.repeat(np.arange(50), 97), np.repeat(group_of_user, 97)
    ours = fairness_summary(correct, user, group, method="bca", num_resamples=15_000)
    for name in ("accuracy/x", "user_gini"):
        samples = [right[group_of_user == g] / 97 for g in (("x",) if name == "accuracy/x" else ("x", "y"))]
        theirs = stats.bootstrap(
            samples,
            np.mean if name == "accuracy/x" else lambda *drawn: gini(np.concatenate(drawn)),
            vectorized=False,
            n_resamples=4000,
            method="BCa",
            rng=np.random.default_rng(1),
        ).confidence_interval
        width = theirs.high - theirs.low
        assert [ours[name]["low"], ours[name]["high"]] == pytest.approx([*theirs], abs=0.06 * width)


def test_worst_group_and_how_sure_that_is():
    sure = fairness_summary(*draw(num_users=600))
    assert sure["worst_group"] == "b"
    assert sure["worst_group_share"] > 0.99
    user = np.repeat(np.arange(40), 4)
    even = fairness_summary(np.tile([1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0], 20), user, np.where(user % 2, "y", "x"))
    assert even["worst_group"] == "x"  # the first of equals
    unsure = fairness_summary(np.random.default_rng(0).integers(0, 2, 160), user, np.where(user % 4 < 2, "y", "x"))
    assert 0.2 < unsure["worst_group_share"] < 0.95


def test_support_without_correlation_is_nan_and_the_rest_stands():
    correct, user, group = draw()
    summary = fairness_summary(correct, user, group, support=np.full(len(user), 0.5))
    assert np.isnan(list(summary["support_spearman"].values())).all()
    assert summary["num_users_without_support"] == 0
    assert summary["overall"] == fairness_summary(correct, user, group)["overall"]


def test_support_interval_covers_a_true_correlation():
    rng = np.random.default_rng(0)
    support = rng.random(400)
    user = np.repeat(np.arange(400), 20)
    correct = (rng.random(8000) < 0.5 + 0.4 * support[user]).astype(float)
    entry = fairness_summary(correct, user, user % 2, support=support[user])["support_spearman"]
    assert 0.3 < entry["low"] < entry["value"] < entry["high"] < 0.9
    # The width is that of Fisher's transformation, about.
    assert entry["high"] - entry["low"] == pytest.approx(2 * 1.96 * (1 - entry["value"] ** 2) / 20, rel=0.3)


def test_differences_are_those_of_two_summaries():
    ours, correct, user, group, margins, support = everything(num_resamples=10)
    rng = np.random.default_rng(5)
    other_margins = margins + rng.normal(size=len(margins))
    other = pair_correctness(other_margins)
    options = {"support": support, "majority": "a", "num_resamples": 10}
    theirs = fairness_summary(other, user, group, margins=other_margins, **options)
    found = fairness_difference(
        correct, other, user, group, margins=margins, reference_margins=other_margins, **options, method="bca"
    )
    assert set(numbers(found)) == set(numbers(ours))
    for name, entry in numbers(found).items():
        assert entry["value"] == pytest.approx(ours[name]["value"] - theirs[name]["value"], abs=1e-12)
        assert entry["low"] <= entry["value"] <= entry["high"]
    assert found["num_users_without_support"] == 6
    assert found["method"] == "bca"
    assert "worst_group" not in found


def test_differences_are_paired():
    correct, user, group = draw(num_users=200)
    same = fairness_difference(correct, correct, user, group)
    assert all(entry["value"] == 0 for entry in numbers(same).values())
    # Nobody was seen for whom they differ; a share of the users that 200 may have missed could.
    assert same["overall"]["high"] == -same["overall"]["low"] == pytest.approx(1 - 0.025 ** (1 / 200))
    assert np.isnan([same["user_gini"]["low"], same["user_gini"]["high"]]).all()
    worse = correct.copy()
    worse[np.flatnonzero(correct == 1)[::25]] = 0.0
    paired = fairness_difference(correct, worse, user, group)["overall"]
    alone = fairness_summary(correct, user, group)["overall"]
    # What two models share cancels: alone, neither interval would leave out the other's value.
    assert 0 < paired["low"] < paired["high"]
    assert paired["high"] - paired["low"] < 0.5 * (alone["high"] - alone["low"])


def test_interval_of_equal_groups_still_holds_the_difference():
    # The best of four groups lies above the worst in all resamples: without widening, the interval would leave out 0.
    user = np.repeat(np.arange(200), 3)
    correct = np.tile([1.0, 1.0, 0.0, 1.0, 0.0, 0.0], 100)
    group = user // 2 % 4
    entry = fairness_summary(correct, user, group)["difference"]
    assert entry["value"] == 0
    assert entry["low"] == 0 < entry["high"]
    resamples = bootstrap_users(
        user,
        np.arange(200) // 2 % 4,
        correct,
        lambda cells, weights: np.ptp(group_totals(cells, weights, cells.sums[0] / 75), axis=1)[:, None],
    ).resamples
    assert percentile_interval(resamples, 0.95)[0][0] > 0


def test_overall_interval_covers_the_truth():
    held = 0
    for seed in range(60):
        correct, user, group = draw(num_users=120, seed=seed)
        entry = fairness_summary(correct, user, group, num_resamples=300, seed=seed)["accuracy/b"]
        held += entry["low"] <= RATES["b"] <= entry["high"]
    assert held >= 52
    assert held < 60


def test_confidence_widens():
    wide = fairness_summary(*draw(), confidence=0.99)["overall"]
    narrow = fairness_summary(*draw(), confidence=0.5)["overall"]
    assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]


def test_majority_against_all_others():
    correct, user, group = draw()
    summary = fairness_summary(correct, user, group, majority="a")
    others = [c for c, g in zip(correct, group, strict=True) if g != "a"]
    assert summary["majority"] == pytest.approx(summary["accuracy/a"])
    assert summary["minority"]["value"] == pytest.approx(np.mean(others))
    assert summary["minority"]["low"] < summary["minority"]["value"] < summary["minority"]["high"]
    assert "minority" not in fairness_summary(correct, user, group)


def test_json_holds_it_and_the_seed_decides():
    summary = fairness_summary(*draw(), majority="b")
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert fairness_summary(*draw(), majority="b") == summary
    assert fairness_summary(*draw(), majority="b", seed=1) != summary


def is_unknown(entry):
    return np.isnan([entry["low"], entry["high"]]).all() and np.isfinite(entry["value"])


def test_one_group_and_one_user():
    summary = fairness_summary([1, 0, 1, 1], ["u"] * 4, ["g"] * 4, margins=[1.0, -1.0, 2.0, 3.0])
    assert summary["overall"]["value"] == summary["accuracy/g"]["value"] == 0.75
    assert summary["user_gini"]["value"] == 0
    assert all(is_unknown(entry) for entry in numbers(summary).values())
    between = {"group_min", "group_max", "difference", "ratio", "worst_group", "worst_group_share", "user_theil_between"}
    assert not between & set(summary)  # one group has no gap to others


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_of_few_users_are_unknown_and_the_rest_stands(method):
    rng = np.random.default_rng(0)
    sizes = {"many": 40, "six": 6, "five": 5, "one": 1}
    group_of_user = np.repeat(list(sizes), list(sizes.values()))
    correct = (rng.random((len(group_of_user), 5)) < 0.7).astype(float).ravel()
    user, group = np.repeat(np.arange(len(group_of_user)), 5), np.repeat(group_of_user, 5)
    margins = (2 * correct - 1) * rng.exponential(size=len(correct))
    summary = fairness_summary(correct, user, group, margins=margins, majority="many", method=method)
    for name in (
        "accuracy/five",
        "accuracy/one",
        "ece/one",
        "brier/five",
        "group_min",
        "difference",
        "ratio",
        "user_theil_within",
    ):
        assert is_unknown(summary[name]), name
    for name in (
        "overall",
        "accuracy/many",
        "accuracy/six",
        "ece",
        "brier/six",
        "user_gini",
        "user_theil",
        "majority",
        "minority",
    ):
        assert summary[name]["low"] < summary[name]["high"], name
    assert np.isnan(summary["worst_group_share"])
    difference = fairness_difference(correct, 1 - correct, user, group, method=method)
    assert is_unknown(difference["accuracy/five"])
    assert difference["accuracy/six"]["low"] < difference["accuracy/six"]["high"]
    more = fairness_summary(correct, user, group, confidence=0.99)
    assert is_unknown(more["accuracy/six"])


def test_groups_of_one_user_are_not_certain_together():
    """As many groups as users: drawn group by group, every resample would be the data themselves."""
    rng = np.random.default_rng(0)
    correct, user = (rng.random(240) < 0.7).astype(float), np.repeat(np.arange(40), 6)
    lone = fairness_summary(correct, user, user, num_resamples=2000)
    together = fairness_summary(correct, user, ["g"] * 240, num_resamples=2000)
    for name in ("overall", "user_gini"):
        assert [lone[name][end] for end in ("low", "high")] == pytest.approx(
            [together[name][e] for e in ("low", "high")], abs=0.01
        )
    few = fairness_summary(correct, user, np.where(user == 0, "one", "many"), num_resamples=2000)
    assert [few["overall"][e] for e in ("low", "high")] == pytest.approx(
        [together["overall"][e] for e in ("low", "high")], abs=0.01
    )


def test_without_groups_nothing_is_said_of_groups():
    whole, correct, user, _, margins, support = everything(majority=None)
    alone = fairness_summary(correct, user, None, support=support, margins=margins)
    assert not [name for name in alone if "/" in name or "group" in name or name in ("difference", "ratio") or "between" in name]
    for name in numbers(alone):
        assert alone[name]["value"] == pytest.approx(whole[name]["value"], nan_ok=True), name
    assert alone["num_users"] == 60


def test_without_users_nothing_is_said_of_users():
    correct, _, group = draw()
    summary = fairness_summary(correct, None, group)
    assert not [name for name in summary if "user" in name]
    assert summary["difference"]["low"] < summary["difference"]["high"]
    bare = fairness_summary(correct, None, None)
    assert set(numbers(bare)) == {"overall"}
    width = bare["overall"]["high"] - bare["overall"]["low"]
    assert width == pytest.approx(2 * 1.96 * np.std(correct) / np.sqrt(len(correct)), rel=0.1)
    with pytest.raises(DataError, match="`support` belongs to users"):
        fairness_summary(correct, None, group, support=np.ones(len(correct)))


def test_users_who_all_fare_alike_do_not_make_certainty():
    user = np.repeat(np.arange(6), 4)
    right = fairness_summary(np.ones(24), user, ["g"] * 24)["accuracy/g"]
    exact = stats.binomtest(6, 6).proportion_ci(0.95, method="exact")
    assert [right["low"], right["high"]] == pytest.approx([exact.low, exact.high])
    tied = fairness_summary(np.full(24, 0.5), user, None)["overall"]
    missed = 1 - 0.025 ** (1 / 6)
    assert [tied["low"], tied["high"]] == pytest.approx([0.5 - missed / 2, 0.5 + missed / 2])


def coverage(num_users, right, num_runs, seed=0):
    """How often the interval of a group of users with rates of their own, beta-distributed, holds their true mean."""
    rng = np.random.default_rng(seed)
    user, held, flat = np.repeat(np.arange(num_users), 4), 0, 0
    for run in range(num_runs):
        rates = rng.beta(*right, size=num_users)
        correct = (rng.random(len(user)) < rates[user]).astype(float)
        entry = fairness_summary(correct, user, None, num_resamples=200, seed=run)["overall"]
        covered = entry["low"] <= right[0] / sum(right) <= entry["high"]
        held += covered
        flat += correct.all()
    return held / num_runs, flat / num_runs


def test_coverage_where_nearly_all_are_right():
    held, flat = coverage(8, (19, 1), 300)
    # Runs in which all 8 users are right about all 4 pairs would miss for certain with an interval of no width.
    assert flat > 0.15
    assert held > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("num_users", [6, 8, 12, 20, 40])
@pytest.mark.parametrize("right", [(19, 1), (8, 2), (2, 2)])
def test_coverage_of_the_intervals_of_few_users(num_users, right):
    held, flat = coverage(num_users, right, 1000, seed=1)
    print(num_users, right, held, flat)
    assert held > 0.83  # as docs/evaluation.md says


def test_unusable_input():
    correct, user, group = draw()
    with pytest.raises(DataError, match="`majority` must be one of at least two groups, but is 'z'"):
        fairness_summary(correct, user, group, majority="z")
    with pytest.raises(DataError, match="at least two groups"):
        fairness_summary([1, 0], ["u", "v"], ["a", "a"], majority="a")
    with pytest.raises(DataError, match="pairs in two groups"):
        fairness_summary([1, 0], ["u", "u"], ["a", "b"])
    with pytest.raises(ConfigError, match="`confidence`"):
        fairness_summary(correct, user, group, confidence=95)
    with pytest.raises(ConfigError, match="`method` must be one of percentile, bca"):
        fairness_summary(correct, user, group, method="basic")
    with pytest.raises(ConfigError, match="`epsilon` must be finite"):
        fairness_summary(correct, user, group, atkinson_epsilon=-1)
    with pytest.raises(DataError, match="more than one value of `support`"):
        fairness_summary(correct, user, group, support=np.arange(len(user)))
    with pytest.raises(DataError, match="`margins` and `correct` disagree"):
        fairness_summary(correct, user, group, margins=1 - 2 * correct)
    with pytest.raises(DataError, match="the reference 1: score both on the same pairs"):
        fairness_difference(correct, [1.0], user, group)
    with pytest.raises(DataError, match="Give `margins` and `reference_margins`, or neither"):
        fairness_difference(correct, correct, user, group, margins=2 * correct - 1)
