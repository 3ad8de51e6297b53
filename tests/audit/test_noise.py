"""Votes and the noise ceiling against naive loops and closed forms."""

import itertools

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from helpers.parts import make_pairs

from trl_pafo.audit.noise import LabelNoise, noise_ceiling, votes_of, with_others
from trl_pafo.data.groups import support_rate_by_agreement
from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.errors import DataError


def make_votes(chance, num_pairs, votes_a_pair=5, seed=0):
    """`chance[user, pair]` that a user prefers the pair's first response; users drawn at random for each pair."""
    rng = np.random.default_rng(seed)
    user = np.array([rng.choice(len(chance), votes_a_pair, replace=False) for _ in range(num_pairs)]).ravel()
    pair = np.repeat(np.arange(num_pairs), votes_a_pair)
    label = (rng.random(len(user)) >= chance[user, pair]).astype(int)
    return with_others(pd.DataFrame({"user": user, "pair": pair, "label": label}))


def test_votes_of_finds_the_same_pair_in_either_order():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "user": "ann"}
    flipped = {"prompt": "p", "chosen": "b", "rejected": "a", "user": "bob"}
    other = {"prompt": "q", "chosen": "a", "rejected": "b", "user": "ann"}
    messages = {**row, "prompt": [{"role": "user", "content": "p"}], "user": "cy"}
    votes = votes_of([row, flipped, other, messages])
    assert votes["pair"].tolist() == [0, 0, 1, 0]  # as a text and as a message
    assert votes["label"][0] != votes["label"][1]
    assert votes["others"].tolist() == [2, 2, 0, 2]


def test_what_others_say_equals_a_naive_loop():
    rng = np.random.default_rng(0)
    user, pair, label = (rng.integers(high, size=60) for high in (9, 12, 2))  # some users label a pair twice
    votes = with_others(pd.DataFrame({"user": user, "pair": pair, "label": label}))
    for i in range(60):
        others = [j for j in range(60) if pair[j] == pair[i] and user[j] != user[i]]
        same = sum(label[j] == label[i] for j in others)
        assert votes["others"][i] == len(others)
        assert votes["agreement"][i] == pytest.approx(same / len(others) if others else np.nan, nan_ok=True)
        majority = np.nan if not others else 0.5 if 2 * same == len(others) else float(2 * same > len(others))
        assert votes["majority"][i] == pytest.approx(majority, nan_ok=True)
    assert set(votes["majority"].dropna()) == {0.0, 0.5, 1.0}


@pytest.mark.parametrize("q", [0.5, 0.8])
def test_the_best_shared_judge_lies_within_the_bounds(q):
    """Each pair is preferred one way by q of the people: pairwise agreement is q^2 + (1 - q)^2, the best judge max(q, 1 - q)."""
    found = noise_ceiling(make_votes(np.full((60, 1500), q), num_pairs=1500))
    assert found["pairwise"]["value"] == pytest.approx(q**2 + (1 - q) ** 2, abs=0.02)
    low, high = found["best_shared_bounds"]
    assert low - 0.01 <= max(q, 1 - q) <= high + 0.03
    assert found["leave_one_out"]["value"] <= max(q, 1 - q) + 0.02  # few annotators: too low, never too high
    if q > 0.5:  # of alike pairs the upper bound is the truth
        assert high == pytest.approx(q, abs=0.02)
    assert (found["num_votes"], found["votes_a_pair"]) == (7500, 5)


def judged_by_many(num_users=24, num_pairs=60, careless=6):
    """Everybody judges half of the pairs; the careless ones by coin, with their own low support rates."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(num_users):
        is_careless = user < careless
        group = {"group": "minority" if is_careless else "majority", "support_rate": 0.8 - 0.3 * is_careless + user / 1000}
        for pair in rng.permutation(num_pairs)[: num_pairs // 2]:
            chosen, rejected = ("good", "bad") if rng.random() < (0.5 if is_careless else 0.9) else ("bad", "good")
            texts = {"prompt": f"p{pair}", "chosen": f"{chosen} {pair}", "rejected": f"{rejected} {pair}"}
            rows.append({**texts, "user": f"u{user:02d}", **group})
    return Dataset.from_list(rows)


@pytest.mark.parametrize(
    ("options", "known"), [({"source": "styles", "label_noise": 0.2}, 0.8), ({"source": "personal_llm"}, 1.0)]
)
def test_made_labels_have_a_known_ceiling(options, known):
    rows = make_pairs(history=0)
    noise = LabelNoise(DataArguments(**options), rows, 0)
    assert noise.summary == {"known": known}
    assert np.isnan(noise.ceiling_of(rows)).all()


def test_without_common_pairs_it_is_said_that_nothing_can_be_estimated():
    rows = make_pairs(history=0).add_column("support_rate", [0.5] * 30)
    noise = LabelNoise(DataArguments(source="files"), rows, 0)
    assert noise.summary["reason"].startswith("Only 0 of 30 votes are on pairs")
    assert np.isnan(noise.ceiling_of(rows)).all()


def test_common_pairs_give_a_ceiling_for_each_row():
    rows = judged_by_many()
    noise = LabelNoise(DataArguments(source="files", minority_quantile=0.25), rows, 0)
    assert noise.minority_share is not None
    ceiling = noise.ceiling_of(rows)
    careless = np.array(rows["group"]) == "minority"
    assert ceiling[careless].mean() == pytest.approx(0.5, abs=0.1)
    assert ceiling[~careless].mean() == pytest.approx(0.9, abs=0.05)
    assert noise.summary["leave_one_out"]["value"] == pytest.approx(ceiling.mean())
    assert noise.ceiling_of(rows.select([5, 3])) == pytest.approx(ceiling[[5, 3]])


def test_groups_that_the_data_name_were_not_cut_from_agreement():
    rows = judged_by_many()
    rows = rows.remove_columns("support_rate").add_column(
        "support_rate", [0.8 if g == "majority" else 0.2 for g in rows["group"]]
    )
    noise = LabelNoise(DataArguments(source="files"), rows, 0)
    assert noise.minority_share is None


def test_low_support_without_held_out_prompts_equals_a_plain_count():
    rng = np.random.default_rng(0)
    rows = []
    for user, number in itertools.product(range(12), range(20)):
        liked = rng.random() < (0.15 if user < 3 else 0.85)
        chosen, rejected = ("a", "b") if liked else ("b", "a")
        rows.append({"prompt": f"p{number}", "chosen": chosen, "rejected": rejected, "user": f"u{user:02d}"})
    rates = support_rate_by_agreement(
        [r["user"] for r in rows], [r["prompt"] for r in rows], [1 if r["chosen"] == "a" else -1 for r in rows]
    )
    cut = [{**row, "support_rate": rates[row["user"]], "group": "few" if rates[row["user"]] < 0.5 else "many"} for row in rows]
    data = DataArguments(source="files", data_path="x", minority_quantile=0.25)
    noise = LabelNoise(data, Dataset.from_list(cut), seed=0)
    assert noise.minority_share == 0.25
    users, held_out = sorted(rates, reverse=True), {f"p{number}" for number in range(10)}
    votes = {(row["user"], row["prompt"]): row["chosen"] for row in rows if row["prompt"] not in held_out}
    support = {
        user: np.mean([votes[user, p] == votes[o, p] for u, p in votes if u == user for o in users if o != user])
        for user in users
    }
    lowest = sorted(users, key=support.get)[:3]
    assert noise.low_support(users, held_out).tolist() == [int(user in lowest) for user in users]
    assert noise.keys_of(rows[:1]) == ["p0"]
    everything = {f"p{number}" for number in range(20)}  # no vote is left
    with pytest.raises(DataError):
        noise.low_support(users, everything)
