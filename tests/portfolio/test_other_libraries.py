"""Figures of other libraries that mean the same. They are no dependencies: each test is skipped without its library."""

import numpy as np
import pytest

from trl_pafo.portfolio import certify, random_weights, uniform_weights
from trl_pafo.portfolio.bounds import Pool
from trl_pafo.portfolio.certificate import corner_values


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


@pytest.mark.parametrize("d", [2, 3, 5])
def test_one_member_has_the_epsilon_indicators_of_moocore(d: int) -> None:
    moocore = pytest.importorskip("moocore")
    for seed in range(5):
        member, pool = members_and_pool(seed, d, 1)
        pool = np.vstack([pool, member])
        certificate = certify(member, pool)
        assert certificate.additive_gap == pytest.approx(moocore.epsilon_additive(member, ref=pool, maximise=True), abs=1e-9)
        factor = moocore.epsilon_mult(member, ref=pool, maximise=True)
        assert certificate.relative_gap == pytest.approx(1 - 1 / factor, abs=1e-9)


@pytest.mark.parametrize("d", [2, 3])
def test_more_members_have_at_most_the_epsilon_indicators(d: int) -> None:
    moocore = pytest.importorskip("moocore")
    for seed in range(5):
        members, pool = members_and_pool(seed, d, 4)
        certificate = certify(members, np.vstack([pool, members]))
        assert certificate.additive_gap <= moocore.epsilon_additive(members, ref=pool, maximise=True) + 1e-9


@pytest.mark.parametrize(("d", "steps"), [(2, 6), (3, 4), (4, 3)])
def test_even_weights_are_das_and_dennis(d: int, steps: int) -> None:
    directions = pytest.importorskip("pymoo.util.ref_dirs")
    theirs = directions.get_reference_directions("das-dennis", d, n_partitions=steps)
    ours = uniform_weights(d, len(theirs))
    assert np.allclose(np.unique(ours.round(9), axis=0), np.unique(theirs.round(9), axis=0))
