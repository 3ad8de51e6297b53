"""Pairs that all have one prompt: no response of a pair in its history, and other rules by prompt hold by pair."""

import random

import pytest
from datasets import Dataset

from trl_pafo.data.attaching import attach_history
from trl_pafo.data.checks import check_apart
from trl_pafo.data.messages import as_messages
from trl_pafo.data.overlap import telling_fields
from trl_pafo.data.sources.splits import hold_out_prompts
from trl_pafo.errors import DataError


def one_topic(num_users=6, pairs_per_user=5, num_statements=9):
    """Pairs of a few statements, so that many share one."""
    rng = random.Random(0)
    rows = []
    for user in range(num_users):
        for _ in range(pairs_per_user):
            chosen, rejected = rng.sample(range(num_statements), 2)
            rows.append({"prompt": "Parks", "chosen": f"s{chosen}", "rejected": f"s{rejected}", "user": f"u{user}"})
    return Dataset.from_list([row | {"group": f"g{int(row['user'][1:]) % 2}"} for row in rows])


def share_a_statement(row, past):
    return bool({row["chosen"], row["rejected"]} & {past["chosen"], past["rejected"]})


def test_pairs_are_told_apart_by_the_prompt_unless_there_is_only_one():
    topic = one_topic()
    other = topic.map(lambda row: {"prompt": "Roads"})
    assert telling_fields(topic) == telling_fields(topic.select([])) == ("chosen", "rejected")
    assert telling_fields(topic, other) == telling_fields(topic.map(lambda row: {"prompt": row["user"]})) == ("prompt",)
    as_message = topic.map(lambda row: {"prompt": as_messages(row["prompt"], "user")}, features=None)
    assert telling_fields(topic, as_message) == ("chosen", "rejected")


@pytest.mark.parametrize("past_only", [True, False])
def test_a_history_holds_no_statement_of_its_pair_and_every_other_pair(past_only):
    rows = one_topic(num_statements=15).to_list()
    expected = []
    for place, row in enumerate(rows):
        own = [other for other, r in enumerate(rows) if r["user"] == row["user"]]
        others = [p for p in own[::-1] if p < place] + ([] if past_only else [p for p in own[::-1] if p > place])
        expected.append([rows[p]["chosen"] for p in others if not share_a_statement(row, rows[p])][:3])
    attached = attach_history(Dataset.from_list(rows), 3, past_only=past_only)
    found = [[past["chosen"] for past in history] for history in attached["history"]]
    assert found == [history for history in expected if history]
    assert len(found) > 10


def test_the_one_prompt_may_be_in_training_and_test_but_no_user():
    rows = attach_history(one_topic(), 1, past_only=False)
    train, test = (rows.filter(lambda row, users=users: row["user"] in users) for users in (("u0", "u1"), ("u2", "u3")))
    check_apart(train, test, "users")
    with pytest.raises(DataError, match="share 2 users and 0 prompts"):
        check_apart(rows, test, "users")
    said = [{text for row in part for text in (row["chosen"], row["rejected"])} for part in (train, test)]
    with pytest.raises(DataError, match=f"share 0 users and {len(said[0] & said[1])} prompts"):
        check_apart(train, test)


def test_pairs_are_held_out_whichever_side_was_chosen():
    rows = one_topic(num_users=20)
    kept, out = hold_out_prompts(rows, 0.25, seed=0)
    pairs = [{frozenset((row["chosen"], row["rejected"])) for row in part} for part in (kept, out)]
    assert not pairs[0] & pairs[1]
    assert len(kept) + len(out) == len(rows)
    assert len(pairs[1]) == round(0.25 * len(pairs[0] | pairs[1]))
