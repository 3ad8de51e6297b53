"""Accuracies of groups against fairlearn's `MetricFrame`, whose names they bear."""

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame

from trl_pafo.metrics import fairness_summary, group_accuracy, pair_correctness


def mean_correctness(y_true, y_pred):
    return float(np.mean(y_pred))


def frame(correct, group):
    return MetricFrame(metrics=mean_correctness, y_true=np.ones(len(correct)), y_pred=correct, sensitive_features=group)


@pytest.mark.parametrize("num_groups", [1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_groups_are_fairlearns(num_groups, seed):
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(40), rng.integers(1, 7, size=40))
    group = np.array([f"g{u % num_groups}" for u in user])
    margins = rng.normal(0.1 * (user % num_groups), 1.0)
    margins[rng.random(len(margins)) < 0.1] = 0.0
    correct = pair_correctness(margins)
    theirs = frame(correct, group)
    ours = fairness_summary(correct, user, group, num_resamples=2)
    assert group_accuracy(correct, group) == pytest.approx(theirs.by_group.to_dict())
    assert ours["overall"]["value"] == pytest.approx(theirs.overall)
    if num_groups == 1:  # fairlearn's difference of one group is 0; there is none
        assert not {"group_min", "group_max", "difference", "ratio", "worst_group"} & set(ours)
        return
    assert ours["group_min"]["value"] == pytest.approx(theirs.group_min())
    assert ours["group_max"]["value"] == pytest.approx(theirs.group_max())
    assert ours["difference"]["value"] == pytest.approx(theirs.difference(method="between_groups"))
    assert ours["ratio"]["value"] == pytest.approx(theirs.ratio(method="between_groups"))
    assert ours["worst_group"] == theirs.by_group.idxmin()


def test_one_group_without_any_right_pair_has_ratio_0():
    correct, user, group = [0.0, 0.0, 1.0, 1.0], list("aabb"), list("xxyy")
    assert fairness_summary(correct, user, group)["ratio"]["value"] == frame(correct, group).ratio() == 0.0


def test_where_all_are_wrong_the_ratio_is_undefined():
    correct, user, group = [0.0, 0.0], list("ab"), list("xy")
    with np.errstate(invalid="ignore"):
        assert np.isnan(frame(correct, group).ratio())
    ratio = fairness_summary(correct, user, group)["ratio"]
    assert np.isnan([ratio["value"], ratio["low"], ratio["high"]]).all()
