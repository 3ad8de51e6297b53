import math

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize

from trl_pafo.data import group_posterior as module
from trl_pafo.data.group_posterior import (
    TEMPERATURES,
    GroupLikelihood,
    fit_temperature,
    history_scores,
    mixture_margin,
    posterior,
)
from trl_pafo.errors import DataError


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def drawn(num_groups, num_rows=60, seed=0):
    """Scores in which the own group explains more, as those of histories of one to three pairs; the last group is rare."""
    rng = np.random.default_rng(seed)
    group = rng.choice(num_groups, num_rows, p=np.arange(num_groups, 0, -1) / (num_groups * (num_groups + 1) / 2))
    margins = rng.normal(size=(num_rows, 3, num_groups))
    margins[np.arange(num_rows), :, group] += 0.7
    return -np.logaddexp(0, -margins).sum(axis=1), group


def naive_loss(slope, bias, scores, group):
    """Mean over the groups that are there of the mean over their rows, and the ridge; loops in float64."""
    total = 0.0
    for name in set(group.tolist()):
        rows = [row for row in range(len(group)) if group[row] == name]
        for row in rows:
            logits = [slope * scores[row][g] + bias[g] for g in sorted(set(group.tolist()))]
            own = slope * scores[row][name] + bias[name]
            total += (math.log(sum(math.exp(logit - max(logits)) for logit in logits)) + max(logits) - own) / len(rows)
    return total / len(set(group.tolist())) + (slope - 1) ** 2 / (2 * len(group))


def test_a_temperature_is_the_best_of_a_fine_grid():
    margins = 4.0 * np.random.default_rng(1).normal(0.8, 1, 200)
    grid = np.exp(np.linspace(*np.log(TEMPERATURES), 4001))
    means = [sum(-log_sigmoid(margin / t) for margin in margins) / len(margins) for t in grid]
    best = int(np.argmin(means))
    assert 0 < best < len(grid) - 1
    assert grid[best - 1] <= fit_temperature(margins) <= grid[best + 1]


@pytest.mark.parametrize(("best", "fitted"), [(0.03, 0.05), (0.06, 0.06), (19.0, 19.0), (30.0, 20.0)])
def test_a_temperature_has_the_unit_of_the_margins_within_its_bounds(best, fitted):
    margins = np.random.default_rng(1).normal(0.8, 1, 200)
    assert fit_temperature(margins * best / fit_temperature(margins)) == pytest.approx(fitted, rel=1e-9)


def test_a_temperature_of_margins_that_are_all_right_all_wrong_or_absent():
    assert fit_temperature([1.0, 2.0]) == TEMPERATURES[0]
    assert fit_temperature([-1.0, -2.0, 0.5]) == TEMPERATURES[1]
    assert fit_temperature([]) == fit_temperature([0.0, 0.0]) == 1.0
    assert fit_temperature([1000.0, -1000.0]) == TEMPERATURES[1]
    with pytest.raises(DataError, match="`margins` must be finite"):
        fit_temperature([1.0, math.nan])


def test_scores_of_histories_are_sums_over_their_pairs():
    num_groups = 3
    margins = np.random.default_rng(2).normal(size=(5, num_groups)) * 30
    past = [[0, 3], [], [3, 3, 1], [4]]
    found = history_scores(margins, past)
    expected = [[sum(log_sigmoid(margins[pair][g]) for pair in history) for g in range(num_groups)] for history in past]
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-300)
    assert not found[1].any()
    assert history_scores(np.zeros((0, num_groups)), [[], []]).tolist() == [[0.0] * num_groups] * 2


@pytest.mark.parametrize("num_groups", [2, 4])
def test_the_likelihood_has_the_least_loss(num_groups, monkeypatch):
    scores, group = drawn(num_groups)
    if num_groups == 4:  # one history of the last group
        rows = np.sort(np.r_[np.flatnonzero(group < 3), np.flatnonzero(group == 3)[0]])
        scores, group = scores[rows], group[rows]
    losses = []
    monkeypatch.setattr(module, "minimize", lambda loss, *args, **kwargs: losses.append(loss) or minimize(loss, *args, **kwargs))
    found = GroupLikelihood.fit(scores, group)
    assert found.bias.sum() == pytest.approx(0, abs=1e-12)

    point = np.array([0.7, *np.random.default_rng(3).normal(size=num_groups)])
    value, gradient = losses[0](point)
    assert value == pytest.approx(naive_loss(point[0], point[1:], scores, group), rel=1e-12)
    np.testing.assert_allclose(gradient, approx_fprime(point, lambda at: losses[0](at)[0], 1e-7), atol=1e-6)

    least = minimize(lambda at: naive_loss(at[0], at[1:], scores, group), point, method="Nelder-Mead", options={"maxiter": 8000})
    assert naive_loss(found.slope, found.bias, scores, group) <= least.fun + 1e-9
    # The loss is convex: where its gradient is 0 it is the least.
    np.testing.assert_allclose(losses[0](np.array([found.slope, *found.bias]))[1], 0, atol=1e-7)
    np.testing.assert_allclose(found.log_likelihood(scores), found.slope * scores + found.bias)


def test_scores_that_tell_the_groups_without_error_end_well():
    group = np.repeat([0, 1, 2], [50, 5, 2])
    scores = np.where(np.arange(3) == group[:, None], -0.1, -5.0)
    found = GroupLikelihood.fit(scores, group)
    assert 1 < found.slope < 5
    assert posterior(found.log_likelihood(scores), np.log([0.8, 0.15, 0.05]), 0.0)[np.arange(57), group].min() > 0.9


def test_scores_that_say_the_opposite_have_slope_0():
    scores, group = drawn(2, 400)
    found = GroupLikelihood.fit(-scores, group)
    assert found.slope == 0
    np.testing.assert_allclose(found.bias, 0, atol=1e-6)


def test_a_group_without_histories_keeps_the_bias_0():
    absent = 1
    scores, group = drawn(3, 200)
    there, others = group != absent, [g for g in range(3) if g != absent]
    found = GroupLikelihood.fit(scores[there], group[there])
    alone = GroupLikelihood.fit(scores[there][:, others], np.searchsorted(others, group[there]))
    assert found.bias[absent] == 0
    np.testing.assert_allclose([found.slope, *found.bias[others]], [alone.slope, *alone.bias], atol=1e-6)


def test_empty_histories_say_nothing_and_are_not_fitted():
    scores, group = drawn(2)
    found = GroupLikelihood.fit(np.concatenate([scores, np.zeros((90, 2))]), np.concatenate([group, np.zeros(90, dtype=int)]))
    alone = GroupLikelihood.fit(scores, group)
    assert (found.slope, *found.bias) == (alone.slope, *alone.bias)
    prior = np.array([0.9, 0.1])
    np.testing.assert_allclose(posterior(found.log_likelihood(np.zeros((1, 2))), np.log(prior), 0.0), [prior])
    for rows in (np.zeros((3, 2)), scores[group == 0]):
        unknown = GroupLikelihood.fit(rows, np.zeros(len(rows), dtype=int))
        assert (unknown.slope, *unknown.bias) == (1, 0, 0)


def test_a_history_that_a_teacher_explains_without_doubt_is_not_empty():
    """In float64 the log likelihood of a large margin is 0, as that of no pair."""
    likelihood = GroupLikelihood(2.0, np.array([0.5, -0.5]))
    scores = np.array([[0.0, -3.0], [0.0, 0.0], [-1.0, -2.0]])
    assert likelihood.log_likelihood(scores).tolist() == [[0.5, -6.5], [0.0, 0.0], [-1.5, -4.5]]
    sure, group = np.array([[0.0, -3.0], [-2.0, 0.0]] * 4), np.array([0, 1] * 4)
    nearly = GroupLikelihood.fit(sure - 1e-9, group)
    assert GroupLikelihood.fit(sure, group).slope == pytest.approx(nearly.slope, rel=1e-6)


def test_all_is_in_float64_whatever_comes_in():
    margins = np.float32(np.random.default_rng(5).normal(size=(4, 2)) * 9)
    past, q = [[0, 1], [2, 3]], np.full((4, 2), 0.5)
    for found, expected in (
        (history_scores(margins, past), history_scores(margins.astype(np.float64), past)),
        (mixture_margin(margins, q), mixture_margin(margins.astype(np.float64), q)),
        (posterior(margins, margins[0], 0.3), posterior(margins.astype(np.float64), margins[0].astype(np.float64), 0.3)),
    ):
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("group", [[0, 2], [0], [0.5, 1.0]])
def test_a_group_that_has_no_score_is_an_error(group):
    with pytest.raises(DataError, match="place from 0 to 1 for each of the 2 rows"):
        GroupLikelihood.fit(-np.ones((2, 2)), group)


@pytest.mark.parametrize("tau", [0.0, 0.25, 1.0])
def test_the_posterior_and_its_mixture_follow_from_bayes(tau):
    num_groups = 3
    rng = np.random.default_rng(4)
    log_likelihood, margins = rng.normal(size=(2, 6, num_groups))
    prior = rng.dirichlet(np.ones(num_groups))
    q = posterior(log_likelihood, np.log(prior), tau)
    mixed = mixture_margin(margins, q)
    for row in range(6):
        joint = [math.exp(log_likelihood[row][g]) * prior[g] ** (1 - tau) for g in range(num_groups)]
        np.testing.assert_allclose(q[row], [value / sum(joint) for value in joint], rtol=1e-12)
        share = sum(q[row][g] / (1 + math.exp(-margins[row][g])) for g in range(num_groups))
        assert mixed[row] == pytest.approx(math.log(share / (1 - share)), rel=1e-10)


def test_the_mixture_is_exact_for_large_margins_and_certain_groups():
    assert mixture_margin([[900.0, 3.0], [-900.0, -900.0]], [[1.0, 0.0], [0.5, 0.5]]).tolist() == [900.0, -900.0]
    assert mixture_margin([[800.0, -800.0]], [[0.5, 0.5]])[0] == pytest.approx(0)
