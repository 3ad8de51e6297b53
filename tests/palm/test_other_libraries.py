"""Figures of other libraries that mean the same. They are no dependencies: each test is skipped without its library."""

import sys
import types

import numpy as np
import pytest

from trl_pafo.palm import OracleResult, Pool, UpperBound, build_portfolio, certify, random_weights, uniform_weights
from trl_pafo.palm.solver.certificate import corner_values


def members_and_pool(seed: int, d: int, num_members: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 1, (num_members, d)), rng.uniform(0.1, 1, (10, d))


@pytest.mark.parametrize("d", [2, 3, 4])
def test_morl_baselines_loses_as_much_at_the_corner_weights(d: int) -> None:
    indicators = pytest.importorskip("morl_baselines.common.performance_indicators")
    members, pool = members_and_pool(d, d, 4)
    pool = np.vstack([pool, members])
    gap = certify(members, pool).additive_gap
    corners, _, _ = corner_values(members, np.zeros(4), Pool(pool, np.zeros(len(pool))))
    assert indicators.maximum_utility_loss(list(members), list(pool), corners) == pytest.approx(gap, abs=1e-9)
    # Its own way, sampled weights, sees less.
    assert indicators.maximum_utility_loss(list(members), list(pool), random_weights(d, 300)) < gap


@pytest.mark.parametrize(("d", "tolerance"), [(2, 0.02), (3, 0.03), (4, 0.08)])
def test_optimistic_linear_support_of_morl_baselines(
    d: int, tolerance: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    # It logs to a service that is not needed here, and is not always installed beside it.
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    module = pytest.importorskip("morl_baselines.multi_policy.linear_support.linear_support")
    search = module.LinearSupport(d, epsilon=tolerance, verbose=False)
    while (weights := search.next_weight()) is not None:
        search.add_solution(weights / np.linalg.norm(weights), weights)
    asked = np.array(search.visited_weights)
    # From the same answers, the same gap: what its queue would still gain is what we certify. It knows no range of the rewards,
    # and rounds values to 4 decimals.
    bound = UpperBound(asked, np.linalg.norm(asked, axis=1), reward_range=(-10.0, 10.0))
    theirs = max(map(search.ols_priority, search.compute_corner_weights()))
    assert certify(np.array(search.ccs), bound).additive_gap == pytest.approx(theirs, abs=2e-4)
    ours = build_portfolio(lambda w: OracleResult(values=w / np.linalg.norm(w)), d, epsilon=0.0, delta=tolerance)
    assert ours.oracle_calls <= len(asked)
    assert len(ours.values) < len(search.ccs) / 1.5


@pytest.mark.parametrize("d", [2, 3, 5])
def test_one_member_has_the_epsilon_indicators_of_moocore(d: int) -> None:
    moocore = pytest.importorskip("moocore")
    for seed in range(5):
        member, pool = members_and_pool(seed, d, 1)
        pool = np.vstack([pool, member])
        certificate = certify(member, pool)
        assert certificate.additive_gap == pytest.approx(moocore.epsilon_additive(member, ref=pool, maximize=True), abs=1e-9)
        factor = moocore.epsilon_mult(member, ref=pool, maximize=True)
        assert certificate.relative_gap == pytest.approx(1 - 1 / factor, abs=1e-9)


@pytest.mark.parametrize(("d", "steps"), [(2, 6), (3, 4), (4, 3)])
def test_even_weights_are_das_and_dennis(d: int, steps: int) -> None:
    directions = pytest.importorskip("pymoo.util.ref_dirs")
    theirs = directions.get_reference_directions("das-dennis", d, n_partitions=steps)
    ours = uniform_weights(d, len(theirs))
    assert np.allclose(np.unique(ours.round(9), axis=0), np.unique(theirs.round(9), axis=0))
