"""What each group likes: planted tastes with counts by hand, and nothing where there is only chance."""

import math
from collections import Counter

import numpy as np
import pytest

from trl_pafo.evaluation import likes
from trl_pafo.evaluation.likes import FEWEST_USERS, Pairs, find_likes, log_odds

WORDS = ("sun", "rain", "wind", "snow", "mist", "frost")


def pairs_of(chance, users=(40, 20), seed=0, part="train", known=False):
    """Six pairs a user: responses of three of six words, one with an exclamation mark. `chance(group, one, other)`: of choosing the first."""
    rng = np.random.default_rng([seed, part != "train"])
    rows = []
    for group, number in zip(("many", "few"), users, strict=True):
        for user in range(number):
            for _ in range(6):
                one, other = (" ".join(rng.permutation(WORDS)[:3]) for _ in range(2))
                one += "!"
                if rng.random() >= chance(group, one, other):
                    one, other = other, one
                rows.append((one, other, f"{'' if known else part}-{group}-{user}", group))
    return Pairs(*zip(*rows, strict=True))


def same_taste(group, one, other):
    return 0.5 + 0.4 * (("sun" in one) - ("sun" in other))


def tastes(group, one, other):
    """The few like snow, the many exclamation marks; both like the sun."""
    wanted = "snow" if group == "few" else "!"
    likes = [2 * (wanted in text) + ("sun" in text) for text in (one, other)]
    return 1 / (1 + math.exp(3 * (likes[1] - likes[0])))


@pytest.fixture(scope="module")
def planted():
    train, test = (pairs_of(tastes, part=part) for part in ("train", "test"))
    return test, find_likes(train, test)


def test_tastes_are_found_and_what_all_like_is_none(planted):
    _, found = planted
    signs = {group: [sign["sign"] for sign in of_group["signs"]] for group, of_group in found["groups"].items()}
    assert signs == {"few": ["with the word “snow”"], "many": ["with more exclamation marks"]}
    assert (found["found_in"], found["checked_on"]) == (60, 60)
    assert found["groups"]["few"]["signs"][0]["is_word"]
    assert not found["groups"]["many"]["signs"][0]["is_word"]


@pytest.mark.parametrize(("group", "has"), [("few", lambda text: "snow" in text), ("many", lambda text: "!" in text)])
def test_counts_are_those_of_a_loop(planted, group, has):
    test, found = planted
    sign, counts, users = found["groups"][group]["signs"][0], Counter(), set()
    for chosen, rejected, user, owner in zip(*test, strict=True):
        if has(chosen) != has(rejected):
            side = "" if owner == group else "other_"
            counts[f"{side}pairs"] += 1
            counts[f"{side}chosen"] += has(chosen)
            users |= {user} if owner == group else set()
    assert {name: sign[name] for name in counts} == counts
    assert sign["users"] == len(users) >= FEWEST_USERS


def test_examples_have_the_sign_and_are_of_different_users(planted):
    test, found = planted
    for group, sign in (("few", "snow"), ("many", "!")):
        rows = found["groups"][group]["examples"]
        assert len({test.user[row] for row in rows}) == 2
        assert all(test.group[row] == group and sign in test.chosen[row] and sign not in test.rejected[row] for row in rows)


@pytest.mark.parametrize("chance", [lambda group, one, other: 0.5, same_taste])
def test_chance_is_named_in_at_most_one_of_twenty(chance, monkeypatch):
    monkeypatch.setattr(likes, "_RESAMPLES", 399)
    named = 0
    for seed in range(20):
        found = find_likes(*(pairs_of(chance, seed=seed, part=part) for part in ("train", "test")), seed=seed)
        named += any(of_group["signs"] for of_group in found["groups"].values())
    # With 5 %, four or more have a chance of 2 %; what is held to be chance here is half of it by the second test.
    assert named <= 3


def test_a_group_that_only_minds_less_likes_nothing():
    def less(group, one, other):
        return (0.35 if group == "few" else 0.02) if ("snow" in one) > ("snow" in other) else 0.5

    found = find_likes(*(pairs_of(less, users=(60, 60), part=part) for part in ("train", "test")))
    assert "with the word “snow”" not in {sign["sign"] for sign in found["groups"]["few"]["signs"]}


def test_known_people_are_divided():
    train, test = (pairs_of(tastes, users=(60, 60), seed=1, part=part, known=True) for part in ("train", "test"))
    found = find_likes(train, test)
    assert (found["found_in"], found["checked_on"]) == (60, 60)
    assert [sign["sign"] for sign in found["groups"]["few"]["signs"]] == ["with the word “snow”"]
    assert find_likes(train, test) == found


def test_few_people_and_one_group_show_nothing():
    train, test = (pairs_of(tastes, users=(40, FEWEST_USERS - 1), part=part) for part in ("train", "test"))
    assert find_likes(train, test)["groups"]["few"] == {"signs": [], "examples": []}
    alone = test._replace(group=["many"] * len(test.user))
    assert find_likes(train, alone)["groups"] == {}


def test_log_odds_are_those_of_the_formula():
    counts = [Counter(a=9, b=2, c=5), Counter(a=3, b=4, c=7), Counter(a=1, b=8, c=6), Counter(a=4, b=4, c=4)]
    found = log_odds(counts, ["a", "c"])
    for word, score in zip(["a", "c"], found, strict=True):
        prior = 1000 * sum(of[word] for of in counts) / sum(sum(of.values()) for of in counts)
        delta, variance = 0.0, 0.0
        for of, sign in zip(counts, (1, -1, -1, 1), strict=True):
            y, n = of[word], sum(of.values())
            delta += sign * math.log((y + prior) / (n + 1000 - y - prior))
            variance += 1 / (y + prior)
        assert score == pytest.approx(delta / math.sqrt(variance))
