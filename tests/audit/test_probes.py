"""Probes against ridge regression on explicit features, the front on populations of which the truth is known."""

import numpy as np
import pytest

from trl_pafo.audit.probes import (
    KERNELS,
    Kernel,
    PairFeatures,
    PairKernels,
    _history_weights,
    best_probe,
    probe_front,
    probe_margins,
    validation_losses,
)
from trl_pafo.errors import DataError

RNG = np.random.default_rng(0)
DIFFERENCES, HISTORIES = RNG.normal(size=(40, 5)), RNG.normal(size=(40, 5))
HISTORIES[3] = 0  # a user's first pair
SCALED = HISTORIES / np.sqrt((HISTORIES**2).sum() / 39)
FITTED, JUDGED = np.arange(30), np.arange(30, 40)
ONE, OTHER = RNG.normal(size=12), RNG.normal(size=12)


@pytest.fixture
def kernels():
    return PairKernels(DIFFERENCES @ DIFFERENCES.T, HISTORIES @ HISTORIES.T)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_the_product_kernel_is_ridge_regression_on_all_products(share, kernels):
    """Weights linear in the history: features d and all products of d and h, and no constant."""
    products = (DIFFERENCES[:, :, None] * SCALED[:, None, :]).reshape(40, -1)
    features = np.hstack([np.sqrt(1 - share) * DIFFERENCES, np.sqrt(share) * products])
    penalty = 0.3 * (features[FITTED] ** 2).sum() / len(FITTED)
    x = features[FITTED]
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ np.ones(len(x)))
    margins = probe_margins(kernels, FITTED, JUDGED, Kernel(None, share), 0.3)
    assert margins == pytest.approx(features[JUDGED] @ weights, abs=1e-4)


def test_the_gaussian_kernel(kernels):
    found = kernels(FITTED, JUDGED, Kernel(2.0, 0.6))
    for i, j in ((0, 30), (3, 35), (29, 39)):
        near = np.exp(-2.0 * ((SCALED[i] - SCALED[j]) ** 2).sum())
        assert found[i, j - 30] == pytest.approx(DIFFERENCES[i] @ DIFFERENCES[j] * (0.4 + 0.6 * near), abs=1e-4)


@pytest.mark.parametrize("depends", [True, False])
def test_validation_prefers_the_history_where_it_matters_and_not_where_it_does_not(depends):
    rng = np.random.default_rng(1)
    user, prompt = np.repeat(np.arange(60), 5), rng.integers(40, size=300)
    taste = rng.choice([-1, 1], size=(60, 3))[user] * 1.0
    differences = rng.normal(size=(300, 3))
    differences *= np.sign((differences * (taste if depends else 1.0)).sum(axis=1))[:, None]
    kernels = PairKernels(differences @ differences.T, taste @ taste.T)
    losses = validation_losses(kernels, KERNELS, np.arange(300), user, prompt, np.random.default_rng(0))
    assert {kernel for kernel, _ in losses} == set(KERNELS)
    with_history, without = (min(v for (k, _), v in losses.items() if (k.share > 0) == shown) for shown in (True, False))
    assert (with_history < 0.7 * without) == depends


def test_nothing_to_fit_gives_no_preference_and_few_rows_no_validation(kernels):
    assert probe_margins(kernels, np.array([], dtype=int), JUDGED, *best_probe({})).tolist() == [0.0] * 10
    one = np.array([0])
    losses = validation_losses(kernels, KERNELS, one, np.zeros(40, int), np.zeros(40, int), np.random.default_rng(0))
    assert losses == {}
    assert np.isfinite(probe_margins(kernels, one, JUDGED, *best_probe(losses))).all()


def population(tastes, users=(50, 20), pairs_a_user=5, num_prompts=60, seed=0, noise=0.0):
    """Users of two groups, each with its weights `tastes[group]`; the history is the user's other pairs."""
    rng = np.random.default_rng(seed)
    rows = [
        (f"{group}{number}", group, prompt)
        for group, count in zip("ab", users, strict=True)
        for number in range(count)
        for prompt in rng.choice(num_prompts, pairs_a_user, replace=False)
    ]
    differences = rng.normal(size=(len(rows), len(tastes["a"])))
    likes = np.sign([difference @ tastes[group] for difference, (_, group, _) in zip(differences, rows, strict=True)])
    differences *= (likes * np.where(rng.random(len(rows)) < noise, -1, 1))[:, None]
    user = [name for name, _, _ in rows]
    past = [[j for j in range(len(rows)) if user[j] == user[i] and j != i] for i in range(len(rows))]
    return PairFeatures(differences, np.array([p for _, _, p in rows]), past, user, [g for _, g, _ in rows])


def accuracy(found, name, group):
    return found["points"][name][f"accuracy/{group}"]["value"]


def test_the_front_is_above_the_shared_probe_where_groups_differ_and_the_history_is_too_short_for_it():
    found = probe_front(population({"a": ONE, "b": OTHER - ONE}, users=(50, 30)), num_history=1, folds=2, repeats=1)
    assert found["worth"] is True
    assert found["sentence"].startswith(
        f"Worth distilling: with tau {found['tau']:g} the mixture of teachers is more accurate for"
    )
    assert accuracy(found, "group-routed teachers", "b") > accuracy(found, "shared probe", "b") + 0.1
    by_tau = [accuracy(found, place["name"], "b") for place in found["mixture"]]
    assert by_tau[-1] > by_tau[0]
    assert found["correct"][np.array(population({"a": ONE, "b": ONE}, users=(50, 30)).group) == "b"].mean() == pytest.approx(
        accuracy(found, "shared probe", "b")
    )


def test_nothing_is_above_it_where_groups_are_alike():
    pairs = population({"a": ONE, "b": ONE})
    found, again, other = (probe_front(pairs, num_history=3, folds=2, repeats=1, seed=seed) for seed in (0, 0, 1))
    assert found["worth"] is False
    assert found["sentence"].startswith("Nothing to distill: for no tau")
    assert accuracy(found, "shared probe", "b") > 0.8
    assert found["points"] == again["points"] != other["points"]


def test_nothing_is_above_it_where_the_history_says_it_all():
    """Opposite tastes in few dimensions: the shared probe, too, reads from a history what the mixture reads."""
    taste = np.array([1.0, 0.5])
    pairs = population({"a": taste, "b": -taste}, users=(40, 20), pairs_a_user=6)
    found = probe_front(pairs, num_history=5, folds=2, repeats=1)
    assert accuracy(found, "shared probe", "b") > 0.85
    assert accuracy(found, "mixture of teachers, tau 0", "b") > 0.85
    without = probe_front(pairs, num_history=0, folds=2, repeats=1)
    assert accuracy(without, "shared probe", "b") < 0.3
    assert accuracy(without, "mixture of teachers, tau 0", "b") < 0.3
    assert accuracy(without, "group-routed teachers", "b") > 0.9


@pytest.mark.parametrize("known_by", ["prompt", "user"])
def test_held_out_users_and_prompts_are_not_seen(known_by):
    """A label drawn for each prompt (or user), and features that name it: whoever has seen it knows, nobody else can."""
    rng = np.random.default_rng(0)
    pairs = population({"a": ONE, "b": OTHER}, users=(50, 20), pairs_a_user=4)
    code = pairs.prompt if known_by == "prompt" else np.unique(pairs.user, return_inverse=True)[1]
    number = code.max() + 1
    differences = (rng.normal(size=(number, 80)) * rng.choice([-1, 1], size=number)[:, None])[code]
    named = PairFeatures(differences, pairs.prompt, pairs.past, pairs.user, pairs.group)
    # A history of the user tells its label, as it should.
    found = probe_front(named, num_history=2 if known_by == "prompt" else 0, folds=2, repeats=1)
    for name, point in found["points"].items():
        assert point["overall"]["value"] < 0.7, name


def test_a_fitted_row_shows_no_held_out_prompt_and_a_judged_one_its_newest():
    judged, allowed = np.array([False, True, False]), np.array([True, False, True, True])
    weights = _history_weights([[1, 3, 2], [1, 3, 2], [1]], 2, judged, allowed).toarray()
    assert weights.tolist() == [[0, 0, 0.5, 0.5], [0, 0.5, 0, 0.5], [0, 0, 0, 0]]


def test_entries_that_only_serve_as_history():
    pairs = population({"a": ONE[:2], "b": -ONE[:2]}, users=(20, 10))
    extra = np.vstack([pairs.differences, ONE[:2] * 5, -ONE[:2] * 5])
    past = [[len(pairs.past) + (group == "b")] for group in pairs.group]
    told = PairFeatures(extra, np.r_[pairs.prompt, 98, 99], past, pairs.user, pairs.group)
    found = probe_front(told, num_history=1, folds=2, repeats=1)
    assert accuracy(found, "shared probe", "b") > 0.85
    assert accuracy(found, "mixture of teachers, tau 0.5", "b") > 0.85


def test_folds_are_lowered_for_small_groups_and_bad_input_is_refused():
    pairs = population({"a": ONE, "b": OTHER}, users=(12, 2))
    assert probe_front(pairs, folds=4, repeats=1)["folds"] == 2
    with pytest.raises(DataError, match=r"'b' has only one user .*'b': 1"):
        probe_front(population({"a": ONE, "b": OTHER}, users=(12, 1)))
    pairs.prompt[:] = pairs.prompt[0]
    with pytest.raises(DataError, match=r"there is only one\. Give pairs on several prompts"):
        probe_front(pairs)
