import math

import numpy as np
import pytest
from scipy import stats

from trl_pafo.errors import ConfigError
from trl_pafo.metrics import compare
from trl_pafo.metrics.bootstrap import UserCells, user_cells
from trl_pafo.metrics.power import group_spread, users_to_show, users_to_tell

TAIL = 0.05 / 4  # of one side, two groups, 95 %


class Users:
    """Measured users, to draw studies of other sizes from. `rates(rng, n)` gives numbers of pairs and both models' rates."""

    def __init__(self, sizes, rates, seed=0):
        self.rng = np.random.default_rng(seed)
        self.group_of_user = np.repeat(np.arange(len(sizes)), sizes)
        counts, ours, theirs = (
            np.concatenate(parts)
            for parts in zip(*[rate(self.rng, n) for rate, n in zip(rates, sizes, strict=True)], strict=True)
        )
        ends = np.cumsum(counts)
        self.places = [np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)]
        user = np.repeat(np.arange(len(counts)), counts)
        self.correct = (self.rng.random(ends[-1]) < ours[user]).astype(float)
        self.reference = (self.rng.random(ends[-1]) < theirs[user]).astype(float)
        self.measured = self.compare(np.arange(len(counts)))

    def compare(self, drawn, **options):
        places = np.concatenate([self.places[u] for u in drawn])
        lengths = [len(self.places[u]) for u in drawn]
        user, group = np.repeat(np.arange(len(drawn)), lengths), np.repeat(self.group_of_user[drawn], lengths)
        return compare(self.correct[places], self.reference[places], user, group, **options)

    def study(self, sizes):
        """A study of so many users of each group, drawn from the measured ones."""
        drawn = [self.rng.choice(np.flatnonzero(self.group_of_user == g), size) for g, size in enumerate(sizes)]
        return self.compare(np.concatenate(drawn), seed=int(self.rng.integers(2**31)), num_resamples=999)

    def share_told(self, num_users, num_runs):
        sizes = np.bincount(self.group_of_user) * num_users / len(self.group_of_user)
        verdicts = [self.study(np.maximum(np.round(sizes), 1).astype(int)).verdict for _ in range(num_runs)]
        return 1 - verdicts.count("cannot tell") / num_runs

    def share_shown(self, group, num_users, num_runs):
        sizes = [num_users if g == group else 5 for g in range(self.group_of_user.max() + 1)]
        sign = np.sign(self.measured.differences[str(group)]["value"])
        shown = [self.study(sizes).differences[str(group)] for _ in range(num_runs)]
        return np.mean([(d["low"] > 0) if sign > 0 else (d["high"] < 0) for d in shown])


def small_gain(rng, n):
    return np.full(n, 4), np.full(n, 0.74), np.full(n, 0.66)


def uneven_gain(rng, n):
    ours = rng.beta(4, 2, n)
    return np.minimum(rng.geometric(0.15, n), 40), ours, np.clip(ours - rng.beta(1, 8, n), 0, 1)


def small_loss(rng, n):
    return np.full(n, 6), rng.beta(5, 3, n), rng.beta(6, 2.6, n)


def rare_gain(rng, n):
    helped = rng.random(n) < 0.15
    return np.full(n, 4), np.where(helped, 1.0, 0.0), np.zeros(n)


def test_so_many_users_tell_in_about_the_stated_share_of_studies():
    users = Users([30, 25], [uneven_gain, small_gain], seed=0)
    assert users.measured.verdict == "cannot tell"
    needed = users.measured.users_needed
    assert 60 < needed < 1000
    assert 0.68 < users.share_told(needed, 100) < 0.92
    assert users.share_told(needed // 3, 100) < 0.6
    shown = users.measured.group_users_needed["1"]
    assert 0.68 < users.share_shown(1, shown, 100) < 0.92


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("sizes", "rates"),
    [
        ([30, 25], [uneven_gain, small_gain]),
        ([40, 20], [small_loss, uneven_gain]),
        ([60, 20], [rare_gain, small_gain]),
        ([40, 20, 10], [small_gain, small_loss, uneven_gain]),
        ([40], [small_loss]),
    ],
)
def test_users_needed_tell_with_the_stated_power(sizes, rates, seed):
    users = Users(sizes, rates, seed)
    needed = users.measured.users_needed
    if needed is None or needed > 4000:
        pytest.skip(f"{needed} users are too many to simulate")
    told = users.share_told(needed, 400)
    print(needed, users.measured.group_users_needed, told)
    assert 0.7 <= told <= 0.92
    for group, size in enumerate(users.measured.group_users_needed.values()):
        if size is not None and 20 <= size <= 3000:
            shown = users.share_shown(group, size, 400)
            print(group, size, shown)
            assert 0.7 <= shown <= 0.92


def cells_of(*groups):
    """Users of each group as `(sum of differences, pairs)`."""
    rows = np.array([(g, *row) for g, rows in enumerate(groups) for row in rows], dtype=float)
    return UserCells(rows[:, 1][None], rows[:, 2], rows[:, 0].astype(int), np.ones(len(rows), dtype=np.int64))


def test_spread_matches_a_naive_loop_and_cells_count_as_their_users():
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(30), rng.integers(1, 4, size=30))
    group = np.repeat([0, 1], [18, 12])
    change = rng.integers(-1, 2, size=len(user)).astype(float)
    cells = user_cells(user, group, change)
    assert len(cells.users) < 30
    spread = group_spread(cells)
    for g in (0, 1):
        sums = np.array([change[user == u].sum() for u in np.flatnonzero(group == g)])
        pairs = np.array([(user == u).sum() for u in np.flatnonzero(group == g)])
        d = sums.sum() / pairs.sum()
        assert spread.d[g] == pytest.approx(d)
        assert spread.s_0[g] == pytest.approx(np.sqrt(np.mean(sums**2)) / pairs.mean())
        assert spread.s_1[g] == pytest.approx(np.std(sums - d * pairs, ddof=1) / pairs.mean())
        assert spread.differing[g] == np.mean(sums != 0)
        assert spread.users[g] == len(sums)


@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_one_group_follows_the_closed_form(power):
    rng = np.random.default_rng(1)
    rows = np.column_stack([rng.integers(-3, 5, size=60), np.full(60, 5)])
    for sign in (1, -1):
        spread = group_spread(cells_of(rows * [sign, 1]))
        z, z_power = stats.norm.isf(TAIL), stats.norm.ppf(power)
        expected = ((z * spread.s_0[0] + z_power * spread.s_1[0]) / abs(spread.d[0])) ** 2
        assert users_to_show(spread, TAIL, power) == [math.ceil(expected)]
        # A single group is told where it is shown, or where chance shows the opposite.
        assert users_to_tell(spread, TAIL, power, 0.0) == pytest.approx(math.ceil(expected), abs=1)


def test_at_least_so_many_must_differ_as_a_sign_flip_test_needs():
    # All gain alike: the normal formula asks for 6 users, but 2^-6 is above the tail.
    spread = group_spread(cells_of([(1, 4)] * 5))
    assert users_to_show(spread, TAIL, 0.8) == [7]
    assert users_to_tell(spread, TAIL, 0.8, 0.0) == 7
    # Nine in ten gain: 7 of them must be met.
    most = group_spread(cells_of([(4, 4)] * 90 + [(0, 4)] * 10))
    (needed,) = users_to_show(most, TAIL, 0.8)
    assert needed == next(n for n in range(7, 100) if stats.binom.sf(6, n, 0.9) >= 0.8) == 8


def test_half_the_difference_takes_about_four_times_the_users():
    def needed(difference):
        rows = [(difference + spread, 10) for spread in (-3.0, 3.0)] * 20
        return users_to_show(group_spread(cells_of(rows)), TAIL, 0.8)[0]

    assert needed(0.1) / needed(0.2) == pytest.approx(4, rel=0.02)


def test_where_no_number_of_users_would_tell():
    gain, even = [(2, 4), (0, 4), (1, 4)] * 5, [(1, 4), (-1, 4)] * 6
    never, lone = [(0, 4)] * 9, [(1, 4)]
    assert users_to_show(group_spread(cells_of(gain, even, never, lone)), TAIL, 0.8)[1:] == [None, None, None]
    assert users_to_tell(group_spread(cells_of(even, never)), TAIL, 0.8, 0.0) is None
    # A difference of just 0 falls below 0 half the time; a margin passes over it, and so does a difference that never varies.
    assert users_to_tell(group_spread(cells_of(gain, even)), TAIL, 0.8, 0.0) is None
    assert users_to_tell(group_spread(cells_of(gain, even)), TAIL, 0.4, 0.0) is not None
    assert users_to_tell(group_spread(cells_of(gain, even)), TAIL, 0.8, 0.05) is not None
    assert users_to_tell(group_spread(cells_of(gain, never)), TAIL, 0.8, 0.0) is not None
    assert users_to_tell(group_spread(cells_of(gain, lone)), TAIL, 0.8, 0.0) is None
    hopeless = [(1e-6 + spread, 10) for spread in (-3.0, 3.0)] * 20
    assert users_to_tell(group_spread(cells_of(hopeless)), TAIL, 0.8, 0.0) is None


def test_a_loss_that_is_no_more_than_measured_must_be_shown_too():
    gain, slight_loss = [(2, 4), (0, 4), (1, 4)] * 5, [(1, 4), (-1, 4), (-1, 4), (1, 4), (-1, 4)] * 3
    spread = group_spread(cells_of(gain, slight_loss))
    alone = users_to_show(spread, TAIL, 0.8)
    assert alone[1] > 10 * alone[0]
    # Both groups hold half of the users. The loss must be shown; a margin that covers it leaves the gain.
    assert users_to_tell(spread, TAIL, 0.8, 0.0) == pytest.approx(2 * alone[1], rel=0.05)
    assert users_to_tell(spread, TAIL, 0.8, 0.2) < 4 * alone[0]


def test_more_power_takes_more_users():
    rng = np.random.default_rng(1)
    rows = np.column_stack([rng.integers(-3, 5, size=60), np.full(60, 5)])
    user = np.repeat(np.arange(60), 5)
    correct = np.concatenate([[1.0] * max(d, 0) + [0.0] * (5 - max(d, 0)) for d, _ in rows])
    reference = np.concatenate([[1.0] * max(-d, 0) + [0.0] * (5 - max(-d, 0)) for d, _ in rows])
    needed = [compare(correct, reference, user, ["g"] * 300, power=power).users_needed for power in (0.5, 0.8, 0.95)]
    assert needed == sorted(needed)
    assert needed[0] < needed[2]
    for power in (0.0, 1.0, 80):
        with pytest.raises(ConfigError, match=r"`power` must be above 0 and below 1 \(0.8 for 80 %\)"):
            compare(correct, reference, user, ["g"] * 300, power=power)
