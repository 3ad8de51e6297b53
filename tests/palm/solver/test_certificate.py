"""The certificate against linear programs over the simplex, and against a million sampled weights."""

import json

import numpy as np
import pytest
from helpers.fronts import Gibbs, Sphere, worst_sample
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from trl_pafo.errors import PortfolioError
from trl_pafo.palm import Pool, UpperBound, certify
from trl_pafo.palm.solver.certificate import Measure, corner_values


def additive_by_programs(members: np.ndarray, pool: np.ndarray) -> float:
    """max over q of max {t : w in the simplex, w.(q - p_j) >= t for all j}."""
    d, worst = members.shape[1], 0.0
    for q in pool:
        answer = linprog(
            np.append(np.zeros(d), -1.0),
            A_ub=np.column_stack([members - q, np.ones(len(members))]),
            b_ub=np.zeros(len(members)),
            A_eq=[np.append(np.ones(d), 0.0)],
            b_eq=[1.0],
            bounds=[(0, None)] * d + [(None, None)],
        )
        worst = max(worst, -answer.fun)
    return worst


def relative_by_programs(members: np.ndarray, pool: np.ndarray) -> float:
    """max over q of 1 - min {s : w >= 0, w.q = 1, w.p_j <= s for all j}."""
    d, worst = members.shape[1], 0.0
    for q in pool[(pool > 1e-9).any(axis=1)]:
        answer = linprog(
            np.append(np.zeros(d), 1.0),
            A_ub=np.column_stack([members, -np.ones(len(members))]),
            b_ub=np.zeros(len(members)),
            A_eq=[np.append(q, 0.0)],
            b_eq=[1.0],
            bounds=[(0, None)] * (d + 1),
        )
        worst = max(worst, 1 - answer.fun)
    return worst


def pools(seed: int, d: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    members, pool = rng.random((rng.integers(1, 6), d)), rng.random((8, d))
    if kind == "few numbers":
        members, pool = (members * 3).round() / 3, (pool * 3).round() / 3
    return members, np.vstack([pool, members])


@settings(max_examples=8)
@given(st.integers(0, 10**6), st.integers(2, 5), st.sampled_from(["even", "few numbers"]))
def test_a_pool_as_by_linear_programs(seed: int, d: int, kind: str) -> None:
    members, pool = pools(seed, d, kind)
    certificate = certify(members, pool)
    assert certificate.additive_gap == pytest.approx(additive_by_programs(members, pool), abs=1e-7)
    assert certificate.relative_gap == pytest.approx(relative_by_programs(members, pool), abs=1e-6)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(2, 4))
def test_the_gap_is_reached_at_the_weights_that_are_named(seed: int, d: int) -> None:
    members, pool = pools(seed, d, "even")
    certificate = certify(members, pool, delta=0.02)
    w = certificate.relative_weights
    best, own = (pool @ w).max(), (members @ w).max()
    assert max((best - own - 0.02) / best, 0) == pytest.approx(certificate.relative_gap, abs=1e-8)
    w = certificate.additive_weights
    assert (pool @ w).max() - (members @ w).max() == pytest.approx(certificate.additive_gap, abs=1e-8)


def test_one_member_against_one_policy_by_hand() -> None:
    certificate = certify([[0.6, 0.3]], [[0.5, 0.4]])
    assert certificate.additive_gap == pytest.approx(0.1)
    assert certificate.relative_gap == pytest.approx(0.25)
    assert certificate.relative_weights == pytest.approx([0, 1])
    assert certificate.objective == "w.R"
    assert certify([[0.6, 0.3]], [[0.5, 0.4]], delta=0.04).relative_gap == pytest.approx(0.15)


def test_a_certificate_says_all_in_one_line_and_as_json() -> None:
    certificate = certify([[0.6, 0.3]], [[0.5, 0.4]], delta=0.04)
    assert str(certificate) == (
        "relative gap 0.1500 beyond delta = 0.04 at w = (0.000, 1.000); additive gap 0.1000 at w = (0.000, 1.000); "
        "over all w (2 corner weights); objective w.R; against the pool of 1 policies"
    )
    assert str(certify([[0.6, 0.3]], [[0.5, 0.4]])).startswith("relative gap 0.2500 at w = (0.000, 1.000); additive")
    assert json.loads(json.dumps(certificate.to_json())) == (
        {
            "relative_gap": pytest.approx(0.15),
            "relative_weights": pytest.approx([0.0, 1.0]),
            "additive_gap": pytest.approx(0.1),
            "additive_weights": pytest.approx([0.0, 1.0]),
            "delta": 0.04,
            "objective": "w.R",
            "reference": "pool of 1 policies",
            "num_corners": 2,
        }
    )


def test_a_pool_and_members_that_cost() -> None:
    members, pool = [[0.6, 0.3]], [[0.5, 0.4]]
    # At (0, 1) the pool is worth 0.4 - 0.05, the member 0.3 - 0.1.
    certificate = certify(members, pool, kl=[1.0], reference_kl=[0.5], beta=0.1)
    assert certificate.additive_gap == pytest.approx(0.15)
    assert certificate.relative_gap == pytest.approx(0.15 / 0.35)
    assert certificate.objective == "w.R - 0.1 KL"
    assert certify(members, pool, kl=[1.0], reference_kl=[0.5]).additive_gap == pytest.approx(
        0.1
    )  # without beta they cost nothing


def sphere_members(d: int, num_members: int) -> tuple[np.ndarray, UpperBound]:
    weights = np.vstack([np.eye(d), np.random.default_rng(d).dirichlet(np.ones(d), 2 * num_members)])
    norms = Sphere.optimum(weights)
    return (weights / norms[:, None])[:num_members], UpperBound(weights, norms)


@pytest.mark.parametrize("num_samples", [40_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("d", [2, 3, 4, 5])
def test_agrees_with_sampled_weights(d: int, num_samples: int) -> None:
    members, bound = sphere_members(d, 20)
    certificate = certify(members, bound)
    relative = worst_sample(lambda w: 1 - (w @ members.T).max(axis=1) / bound.at(w), d, num_samples)
    additive = worst_sample(lambda w: bound.at(w) - (w @ members.T).max(axis=1), d, num_samples)
    assert relative <= certificate.relative_gap + 1e-9 <= relative + 1e-4
    assert additive <= certificate.additive_gap + 1e-9 <= additive + 1e-4


@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_with_a_kl_term(beta: float) -> None:
    gibbs = Gibbs(np.random.default_rng(0).random((8, 3)), beta)
    answers = [gibbs(w) for w in np.vstack([np.eye(3), np.full((1, 3), 1 / 3)])]
    members, kl = np.array([a.values for a in answers]), np.array([a.kl for a in answers])
    certificate = certify(members, gibbs.optimum, kl=kl, beta=beta)
    sampled = worst_sample(lambda w: gibbs.optimum(w) - (w @ members.T - beta * kl).max(axis=1), 3, 40_000)
    assert sampled <= certificate.additive_gap + 1e-9 <= sampled + 1e-4
    assert certificate.objective == f"w.R - {beta:g} KL"


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_a_measure_is_the_least_that_keeps_the_promise(epsilon: float) -> None:
    measure, goal = Measure.of(epsilon, 0.05)
    assert goal == (epsilon or 0.05)
    assert measure.name == ("relative gap" if epsilon else "additive gap")
    upper, lower = np.array([0.8, 0.8, 0.8, 0.5, 0.0, 0.2]), np.array([0.8, 0.7, 0.76, 0.6, 0.0, -0.3])

    def kept(high: float, low: float, gap: float) -> bool:
        return low >= ((1 - gap) * high - 0.05 if epsilon else high - gap) - 1e-7

    for high, low, gap in zip(upper, lower, measure.gaps(upper, lower), strict=True):
        assert kept(high, low, gap)
        assert gap == 0 or not kept(high, low, gap - 1e-6)
    certificate = certify([[0.6, 0.3]], [[0.5, 0.4]], delta=measure.delta)
    assert certificate.gap(measure) == pytest.approx(0.125 if epsilon else 0.1)


def test_what_members_earn_at_a_corner_is_never_taken_too_high() -> None:
    # Cells that meet in one point: Qhull needs their planes moved.
    members = np.vstack([np.eye(3), np.full((4, 3), 1 / 3)])
    weights, _, lower = corner_values(members, np.zeros(7), Pool(members, np.zeros(7)))
    assert (lower < (weights @ members.T).max(axis=1)).all()
    assert lower == pytest.approx((weights @ members.T).max(axis=1), abs=1e-8)


@pytest.mark.filterwarnings("error")
def test_where_nothing_can_be_earned_nothing_is_lost_or_no_relative_gap_is_enough() -> None:
    assert Measure(True).gaps(np.array([0.0, -0.1]), np.array([-0.1, -0.3])).tolist() == [np.inf, np.inf]
    assert certify([[0.5, 0.0]], [[0.5, 0.0]]).relative_gap == 0
    assert certify([[0.4, 0.0]], [[0.5, 0.0]]).relative_gap == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((0, 2)), [[0.5, 0.5]], {}), r"`values` must have shape.*got \(0, 2\)"),
        (([0.5, 0.5], [[0.5, 0.5]], {}), r"`values` must have shape.*got \(2,\)"),
        (([[0.5]], [[0.5]], {}), r"`values` must have shape.*2 rewards or more, got \(1, 1\)"),
        (([[0.5, 0.5]], [[0.5, 0.5, 0.5]], {}), "have 2 rewards, `reference` has 3"),
        (([[0.5, np.nan]], [[0.5, 0.5]], {}), "`values` holds NaN"),
        (([[0.5, 0.5]], [[0.5, np.inf]], {}), "`reference` holds NaN"),
        (([[0.5, 0.5]], [[0.5, 0.5]], {"beta": 0.1}), "pass `kl`"),
        (([[0.5, 0.5]], [[0.5, 0.5]], {"beta": 0.1, "kl": [0.1]}), "pass `reference_kl`"),
        (([[0.5, 0.5]], [[0.5, 0.5]], {"beta": 0.1, "kl": [0.1, 0.2]}), "one finite KL for each of the 1 policies"),
        (([[0.5, 0.5]] * 2, [[0.5, 0.5]], {"beta": 0.1, "kl": [0.1, np.nan]}), "one finite KL for each of the 2 policies"),
        (([[0.5, 0.5]], [[0.5, 0.5]], {"beta": -0.1}), "beta must not be negative"),
        (([[0.5, 0.5]], np.linalg.norm, {}), r"one value for each of 2 rows of weights, .* got shape \(\)"),
        (([[0.5, 0.5]], UpperBound(np.eye(2), np.ones(2)), {"beta": 0.1, "kl": [0.1]}), "made for beta=0"),
    ],
)
def test_bad_input(arguments: tuple, message: str) -> None:
    values, reference, options = arguments
    with pytest.raises(PortfolioError, match=message):
        certify(values, reference, **options)
