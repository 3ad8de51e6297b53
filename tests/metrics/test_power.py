import math

import numpy as np
import pytest
from scipy import stats

from trl_pafo.metrics import compare
from trl_pafo.metrics.bootstrap import UserCells, user_cells
from trl_pafo.metrics.power import group_spread, users_to_show, users_to_tell

TAIL = 0.05 / 4  # of one side, two groups, 95 %


def spread_of(*groups):
    """The spread of users given as `(sum of differences, pairs)`, a list for each group."""
    rows = np.array([(g, *row) for g, rows in enumerate(groups) for row in rows], dtype=float)
    return group_spread(UserCells(rows[:, 1][None], rows[:, 2], rows[:, 0].astype(int), np.ones(len(rows), dtype=np.int64)))


def test_so_many_users_tell_in_about_the_stated_share_of_studies():
    rng = np.random.default_rng(0)
    num_pairs, group = 4, np.repeat([0, 1], [30, 25])
    rates = rng.beta(4, 2, 55)
    correct = (rng.random((55, num_pairs)) < np.minimum(rates + 0.08, 1)[:, None]).astype(float)
    reference = (rng.random((55, num_pairs)) < rates[:, None]).astype(float)

    def verdict_of(drawn, **options):
        user = np.repeat(np.arange(len(drawn)), num_pairs)
        return compare(correct[drawn].ravel(), reference[drawn].ravel(), user, np.repeat(group[drawn], num_pairs), **options)

    def share_told(num_users):
        """Of studies of so many users, drawn from the measured ones."""
        sizes = [round(num_users * size / 55) for size in (30, 25)]
        draws = (np.concatenate([rng.choice(np.flatnonzero(group == g), n) for g, n in enumerate(sizes)]) for _ in range(100))
        return np.mean([verdict_of(d, seed=i, num_resamples=499).verdict != "cannot tell" for i, d in enumerate(draws)])

    measured = verdict_of(np.arange(55))
    assert measured.verdict == "cannot tell"
    assert 60 < measured.users_needed < 1000
    assert 0.68 < share_told(measured.users_needed) < 0.92
    assert share_told(measured.users_needed // 3) < 0.6


def test_spread_matches_a_naive_loop_and_cells_count_as_their_users():
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(30), rng.integers(1, 4, size=30))
    group = np.repeat([0, 1], [18, 12])
    change = rng.integers(-1, 2, size=len(user)).astype(float)
    cells = user_cells(user, group, change[None])
    assert len(cells.users) < 30
    spread = group_spread(cells)
    for g in (0, 1):
        sums = np.array([change[user == u].sum() for u in np.flatnonzero(group == g)])
        pairs = np.array([(user == u).sum() for u in np.flatnonzero(group == g)])
        d = sums.sum() / pairs.sum()
        s_0, s_1 = np.sqrt(np.mean(sums**2)) / pairs.mean(), np.std(sums - d * pairs, ddof=1) / pairs.mean()
        assert [part[g] for part in spread] == pytest.approx([d, s_0, s_1, np.mean(sums != 0), len(sums)])


@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("sign", [1, -1])
def test_one_group_follows_the_closed_form(power, sign):
    gained = sign * np.random.default_rng(1).integers(-3, 5, size=60)
    spread = spread_of([(gain, 5) for gain in gained])
    z, z_power = stats.norm.isf(TAIL), stats.norm.ppf(power)
    expected = math.ceil(((z * spread.s_0[0] + z_power * spread.s_1[0]) / abs(spread.d[0])) ** 2)
    assert users_to_show(spread, TAIL, power) == [expected]
    # A single group is told where it is shown, or where chance shows the opposite.
    assert users_to_tell(spread, TAIL, power, 0.0) == pytest.approx(expected, abs=1)


def test_at_least_so_many_must_differ_as_a_sign_flip_test_needs():
    # All gain alike: the normal formula asks for 6 users, but 2^-6 is above the tail.
    spread = spread_of([(1, 4)] * 5)
    assert users_to_show(spread, TAIL, 0.8) == [7]
    assert users_to_tell(spread, TAIL, 0.8, 0.0) == 7
    # Nine in ten gain: 7 of them must be met.
    expected = next(n for n in range(7, 100) if stats.binom.sf(6, n, 0.9) >= 0.8)
    assert users_to_show(spread_of([(4, 4)] * 90 + [(0, 4)] * 10), TAIL, 0.8) == [expected] == [8]


def test_half_the_difference_takes_about_four_times_the_users():
    small, large = (
        users_to_show(spread_of([(difference + spread, 10) for spread in (-3.0, 3.0)] * 20), TAIL, 0.8)[0]
        for difference in (0.1, 0.2)
    )
    assert small / large == pytest.approx(4, rel=0.02)


GAIN, EVEN, NEVER, LONE = [(2, 4), (0, 4), (1, 4)] * 5, [(1, 4), (-1, 4)] * 6, [(0, 4)] * 9, [(1, 4)]
HOPELESS = [(1e-6 + spread, 10) for spread in (-3.0, 3.0)] * 20


@pytest.mark.parametrize(
    ("groups", "power", "margin", "known"),
    [
        ((EVEN, NEVER), 0.8, 0.0, False),
        # A difference of just 0 falls below 0 half the time; a margin passes over it, and so does a difference that never varies.
        ((GAIN, EVEN), 0.8, 0.0, False),
        ((GAIN, EVEN), 0.4, 0.0, True),
        ((GAIN, EVEN), 0.8, 0.05, True),
        ((GAIN, NEVER), 0.8, 0.0, True),
        ((GAIN, LONE), 0.8, 0.0, False),
        ((HOPELESS,), 0.8, 0.0, False),
    ],
)
def test_where_no_number_of_users_would_tell(groups, power, margin, known):
    assert (users_to_tell(spread_of(*groups), TAIL, power, margin) is not None) == known
    assert users_to_show(spread_of(GAIN, EVEN, NEVER, LONE), TAIL, 0.8)[1:] == [None, None, None]


def test_a_loss_that_is_no_more_than_measured_must_be_shown_too():
    spread = spread_of(GAIN, [(1, 4), (-1, 4), (-1, 4), (1, 4), (-1, 4)] * 3)
    alone = users_to_show(spread, TAIL, 0.8)
    assert alone[1] > 10 * alone[0]
    # Both groups hold half of the users. The loss must be shown; a margin that covers it leaves the gain.
    assert users_to_tell(spread, TAIL, 0.8, 0.0) == pytest.approx(2 * alone[1], rel=0.05)
    assert users_to_tell(spread, TAIL, 0.8, 0.2) < 4 * alone[0]
