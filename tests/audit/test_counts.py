"""Counts against hand-made rows, lengths against TRL's own filter."""

import pytest
from helpers.parts import make_pairs, make_tokenizer
from trl import RewardConfig, RewardTrainer

from trl_pafo.audit.counts import count_all, dropped_by_length, support_histogram
from trl_pafo.data.history import HistoryCutter, render_history
from trl_pafo.data.template import add_history_template


@pytest.fixture
def rows():
    rows = make_pairs(num_users=6, pairs_per_user=5, num_minority=2)
    return rows.add_column("support_rate", [1 / 3 if g == "minority" else 0.98 for g in rows["group"]])


def test_users_pairs_and_groups_are_counted(rows):
    counts = count_all(rows.select(range(28)))  # the last user has three pairs
    assert (counts["pairs"], counts["users"]) == (28, 6)
    assert counts["pairs_a_user"] == {"min": 3, "median": 5, "max": 5}
    assert list(counts["groups"]) == ["majority", "minority"]  # the largest first
    assert counts["groups"]["minority"] == {
        "users": 2,
        "share_of_users": 2 / 6,
        "pairs": 10,
        "support_rate": {"min": 1 / 3, "median": 1 / 3, "max": 1 / 3},
    }


def test_each_user_stands_once_in_the_histogram_in_the_bin_around_its_support(rows):
    found = support_histogram(rows)
    assert {name: sum(users) for name, users in found["users"].items()} == {"majority": 4, "minority": 2}
    edges = found["edges"]
    for name, rate in (("majority", 0.98), ("minority", 0.35)):
        place = found["users"][name].index(max(found["users"][name]))
        assert edges[place] <= rate <= edges[place + 1]
    ends = rows.remove_columns("support_rate").add_column("support_rate", [float(g == "majority") for g in rows["group"]])
    users = support_histogram(ends)["users"]
    assert (users["minority"][0], users["majority"][-1]) == (2, 4)


def test_dropped_pairs_are_those_that_the_trainer_drops(rows, encoder, tmp_path):
    tokenizer = add_history_template(make_tokenizer("encoder"))
    cutter = HistoryCutter(tokenizer, 2)
    whole = dropped_by_length(rows, tokenizer, cutter, None)
    assert all(group["dropped"] == 0 for group in whole["groups"].values())
    longest = max(group["max"] for group in whole["groups"].values())
    for limit, drops in ((longest, False), (longest - 1, True)):
        groups = dropped_by_length(rows, tokenizer, cutter, limit)["groups"].values()
        assert any(group["dropped"] for group in groups) == drops
    limit = int(whole["groups"]["majority"]["median"])
    found = dropped_by_length(rows, tokenizer, cutter, limit)["groups"]
    assert 0 < found["majority"]["dropped"] < found["majority"]["pairs"] == 20

    ready = render_history(rows, cutter).select_columns(["prompt", "chosen", "rejected", "chat_template_kwargs"])
    args = RewardConfig(str(tmp_path), max_length=limit, use_cpu=True, bf16=False, report_to="none")
    trainer = RewardTrainer(encoder, args, train_dataset=ready, processing_class=tokenizer)
    assert sum(group["pairs"] - group["dropped"] for group in found.values()) == len(trainer.train_dataset)
    assert found["majority"]["share"] == found["majority"]["dropped"] / 20
