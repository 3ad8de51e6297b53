"""EM against plain loops, and groups that are found where there are some, and only there."""

import itertools

import numpy as np
import pytest

from trl_pafo.errors import DataError
from trl_pafo.evaluation import tastes
from trl_pafo.evaluation.tastes import (
    Pairs,
    Setting,
    adjusted_rand,
    choose_setting,
    find_mixture,
    find_tastes,
    fit_mixture,
    folds_of,
    held_out_log_likelihood,
    own_head_gains,
)

ONE, OTHER = np.array([3.0, 0, 0, 1, 0]), np.array([-2.0, 3.0, 0, 1, 0])


@pytest.fixture(autouse=True, scope="module")
def quick():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"DIRECTIONS": (4,), "PENALTIES": (0.1,), "FOLDS": 3, "_CLUSTERINGS": 1}.items():
            patch.setattr(tastes, name, value)
        yield


@pytest.fixture(scope="module")
def two(quick):
    """Differences, users, prompts and groups of two tastes, and what is found in them."""
    rows = population([ONE, OTHER], (50, 12))
    return *rows, find_tastes(*rows[:3])


def population(heads, users, pairs_a_user=6, num_prompts=40, seed=0, wrong=0.0):
    """`users[g]` people who choose by `heads[g]`; with `wrong`, so many of the last group's labels are drawn by a coin."""
    rng = np.random.default_rng(seed)
    rows = [
        (f"u{group}{number:03d}", prompt, group)
        for group, count in enumerate(users)
        for number in range(count)
        for prompt in rng.choice(num_prompts, pairs_a_user, replace=False)
    ]
    differences = rng.normal(size=(len(rows), 5))
    group = np.array([row[2] for row in rows])
    margin = (differences * np.array(heads)[group]).sum(axis=1)
    chosen = rng.random(len(rows)) < 1 / (1 + np.exp(-margin))
    coin = (group == len(users) - 1) & (rng.random(len(rows)) < wrong)
    chosen[coin] = rng.random(coin.sum()) < 0.5
    differences *= np.where(chosen, 1, -1)[:, None]
    return differences, [row[0] for row in rows], [int(row[1]) for row in rows], group


def as_pairs(differences, user, prompt):
    users, code = np.unique(user, return_inverse=True)
    return Pairs(np.asarray(differences), code, np.asarray(prompt), len(users))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def groups_of(found, differences, user):
    return {name: group for name, (group, _) in found.assign(differences, user).items()}


def naive_head(differences, weights, penalty):
    """Newton's method, pair by pair."""
    head = np.zeros(differences.shape[1])
    for _ in range(60):
        gradient, curvature = penalty * head, penalty * np.eye(len(head))
        for d, w in zip(differences, weights, strict=True):
            p = sigmoid(-d @ head)
            gradient = gradient - w * p * d
            curvature = curvature + w * p * (1 - p) * np.outer(d, d)
        head = head - np.linalg.solve(curvature, gradient)
    return head


def test_one_step_of_em_equals_plain_loops(monkeypatch):
    monkeypatch.setattr(tastes, "_MAX_STEPS", 1)
    differences, user, prompt, _ = population([ONE, OTHER], (7, 5), pairs_a_user=3)
    pairs = as_pairs(differences, user, prompt)._replace(num_users=13)  # the last user has no pair
    start = np.random.default_rng(0).dirichlet([1, 1], size=13)
    mixture, posterior, [climbed] = fit_mixture(pairs, start, penalty=0.5)
    shares = [(sum(start[u][g] for u in range(12)) + 1) / 14 for g in range(2)]
    heads = [naive_head(differences, [start[u][g] for u in pairs.user], 0.5) for g in range(2)]
    assert np.exp(mixture.log_shares) == pytest.approx(shares)
    assert mixture.heads == pytest.approx(np.array(heads), abs=2e-3)
    total = sum(np.log(shares)) - 0.25 * sum((head**2).sum() for head in mixture.heads)
    for u in range(13):
        joint = [
            shares[g] * np.prod([sigmoid(d @ mixture.heads[g]) for d, v in zip(differences, pairs.user, strict=True) if v == u])
            for g in range(2)
        ]
        assert posterior[u] == pytest.approx(np.array(joint) / sum(joint))
        total += np.log(sum(joint)) if u < 12 else 0
    assert climbed == pytest.approx(total)


def test_the_likelihood_never_falls():
    differences, user, prompt, _ = population([ONE, OTHER], (30, 12), seed=3)
    pairs = as_pairs(differences, user, prompt)
    for groups in (2, 3):
        start = np.random.default_rng(groups).dirichlet(np.ones(groups), size=pairs.num_users)
        climbed = fit_mixture(pairs, start, penalty=0.1)[2]
        assert len(climbed) > 2
        assert (np.diff(climbed) > -1e-6).all()


def test_groups_are_found(two):
    differences, user, _, group, found = two
    assert found.names == ["majority", "minority"]
    group_of = groups_of(found, differences, user)
    true_of = dict(zip(user, group, strict=True))
    wrong = [name for name in group_of if (group_of[name] == "minority") != (true_of[name] == 1)]
    assert len(wrong) <= 2
    assert found.num_users == {name: list(group_of.values()).count(name) for name in found.names}
    assert found.gains["minority"]["gain"]["low"] > 0
    assert found.gains["minority"]["own"] > 0.7 > found.gains["minority"]["shared"]
    assert [one["groups"] for one in found.tried] == [1, 2, 3]
    assert found.summary()["users"] == found.num_users


def test_the_posterior_of_a_group_equals_plain_loops(two):
    differences, user, _, _, found = two
    for name, (group, posterior) in found.assign(differences, user).items():
        own = [i for i, u in enumerate(user) if u == name]
        joint = [
            np.exp(share) * np.prod([sigmoid(differences[i] @ head) for i in own])
            for head, share in zip(found.mixture.heads, found.mixture.log_shares, strict=True)
        ]
        assert group == found.names[int(np.argmax(joint))]
        assert posterior == pytest.approx(max(joint) / sum(joint))


def test_three_groups_are_numbered_by_size():
    heads = [ONE, OTHER, np.array([-2.0, -3.0, 0, 1, 0])]
    differences, user, prompt, group = population(heads, (40, 25, 15), pairs_a_user=8)
    found = find_tastes(differences, user, prompt)
    assert found.names == ["group_1", "group_2", "group_3"]
    assert list(found.num_users.values()) == sorted(found.num_users.values(), reverse=True)
    group_of = groups_of(found, differences, user)
    assert adjusted_rand([group_of[name] for name in user], group.tolist()) > 0.8


@pytest.mark.parametrize("wrong", [0.0, 1.0])
def test_no_groups_where_all_have_one_taste_even_if_some_are_careless(wrong):
    differences, user, prompt, _ = population([ONE, ONE], (45, 8), wrong=wrong)
    found = find_tastes(differences, user, prompt)
    assert found.num_users == {"all": 53}
    assert found.gains == {}
    assert set(found.assign(differences, user).values()) == {("all", 1.0)}


def test_the_order_of_rows_changes_nothing(two):
    differences, user, prompt, _, first = two
    order = np.random.default_rng(1).permutation(len(user))
    again = find_tastes(differences[order], [user[i] for i in order], [prompt[i] for i in order])
    assert first.assign(differences, user) == again.assign(differences, user)
    assert first.gains == again.gains
    assert first.mixture.heads == pytest.approx(again.mixture.heads, abs=1e-6)
    assert [one["log_likelihood"] for one in first.tried] == pytest.approx([one["log_likelihood"] for one in again.tried])
    assert [user[i] for i in first.rows] == [user[order[i]] for i in again.rows]


def test_held_out_likelihood_equals_plain_loops():
    differences, user, prompt, _ = population([ONE, OTHER], (14, 6), pairs_a_user=2, num_prompts=8)
    pairs, setting = as_pairs(differences, user, prompt), Setting(2, 4, 0.1)
    found, fold = held_out_log_likelihood(pairs, setting), folds_of(pairs.prompt, 0)
    assert all(len(set(fold[pairs.prompt == number])) == 1 for number in set(prompt))
    strangers = 0
    fitted = {held: find_mixture(pairs.of(fold != held, 4), setting)[0] for held in range(3)}
    for row in range(len(user)):
        known, mixture = fold != fold[row], fitted[fold[row]]
        own = [i for i in np.flatnonzero(known) if user[i] == user[row]]
        strangers += not own
        joint = [
            np.exp(mixture.log_shares[g]) * np.prod([sigmoid(differences[i, :4] @ mixture.heads[g]) for i in own])
            for g in range(2)
        ]
        chance = sum(q / sum(joint) * sigmoid(differences[row, :4] @ w) for q, w in zip(joint, mixture.heads, strict=True))
        assert found[row] == pytest.approx(np.log(chance))
    assert strangers


def test_groups_that_labels_make_must_be_made_anew_without_the_held_out_ones():
    """The fifth that errs most often, among people who all err alike: chance, which looks like a taste if held-out labels leak."""
    differences, user, prompt, _ = population([0.15 * ONE], (150,), pairs_a_user=4)
    pairs, setting = as_pairs(differences, user, prompt), Setting(1, 5, 0.1)
    right = differences @ ONE > 0

    def low_support(known):
        code = pairs.user[known]
        support = np.bincount(code, right[known], 150) / np.maximum(np.bincount(code, minlength=150), 1) + 1e-6 * np.arange(150)
        return (support < np.quantile(support, 0.2)).astype(int)

    leaking = low_support(np.ones(len(user), dtype=bool))
    names = ["majority", "minority"]
    assert own_head_gains(pairs, names, lambda known: leaking, setting)["minority"]["gain"]["low"] > 0.1
    assert own_head_gains(pairs, names, low_support, setting)["minority"]["gain"]["high"] < 0.1


@pytest.mark.parametrize("taste", [True, False])
def test_a_taste_is_told_from_noise(taste):
    differences, user, prompt, group = population([ONE, OTHER if taste else ONE], (50, 15), wrong=0.0 if taste else 1.0)
    of_user = np.array([group[user.index(name)] for name in sorted(set(user))])
    found = own_head_gains(as_pairs(differences, user, prompt), ["many", "few"], lambda known: of_user, Setting(1, 5, 0.1))
    assert (found["few"]["gain"]["low"] > 0) == taste
    assert found["few"]["pairs"] == 90
    assert found["few"]["gain"]["value"] == pytest.approx(found["few"]["own"] - found["few"]["shared"])
    nobody = own_head_gains(as_pairs(differences, user, prompt), ["a", "b"], lambda known: 0 * of_user - 1, Setting(1, 5, 0.1))
    assert nobody == {}


def test_one_group_more_must_raise_the_likelihood_by_a_standard_error(two):
    differences, user, prompt, _, _ = two
    pairs = as_pairs(differences, user, prompt)
    chosen, tried = choose_setting(pairs, max_groups=2)
    assert [setting.groups for setting in chosen] == [1, 2]
    one, two = (held_out_log_likelihood(pairs, setting) for setting in chosen)
    assert tried[1]["gain"] == pytest.approx((two - one).mean())
    assert tried[1]["gain"] > tried[1]["standard_error"]
    sums = [sum(g - (two - one).mean() for g, u in zip(two - one, pairs.user, strict=True) if u == v) for v in range(62)]
    assert tried[1]["standard_error"] == pytest.approx(np.sqrt(sum(s**2 for s in sums)) / len(user))


def test_a_sample_of_users_finds_the_groups_of_all(monkeypatch):
    differences, user, prompt, group = population([ONE, OTHER], (60, 25))
    monkeypatch.setattr(tastes, "MAX_PAIRS", 300)
    found = find_tastes(differences, user, prompt)
    assert len(found.rows) <= 300 < len(user)
    assert len(found.users) == sum(found.num_users.values()) < 85
    group_of = groups_of(found, differences, user)
    assert adjusted_rand([group_of[name] for name in user], group.tolist()) > 0.8


def test_one_prompt_is_refused():
    with pytest.raises(DataError, match="only one"):
        find_tastes(np.eye(3), ["a", "b", "c"], ["p", "p", "p"])


def test_adjusted_rand_equals_a_count_of_pairs():
    rng = np.random.default_rng(0)
    one, other = rng.integers(3, size=25).tolist(), rng.integers(2, size=25).tolist()
    both = first = second = number = 0
    for i, j in itertools.combinations(range(25), 2):
        both += one[i] == one[j] and other[i] == other[j]
        first, second, number = first + (one[i] == one[j]), second + (other[i] == other[j]), number + 1
    expected = first * second / number
    assert adjusted_rand(one, other) == pytest.approx((both - expected) / ((first + second) / 2 - expected))
    assert adjusted_rand(one, one) == adjusted_rand([0, 0], [1, 1]) == 1
