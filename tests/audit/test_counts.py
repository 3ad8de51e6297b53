"""Counts against hand-made rows, lengths against TRL's own filter."""

import pytest
from helpers.parts import make_pairs, make_tokenizer
from trl import RewardConfig, RewardTrainer

from trl_pafo.audit.counts import count_all, dropped_by_length
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
        "support_rates": [1 / 3, 1 / 3],
    }


def test_dropped_pairs_are_those_that_the_trainer_drops(rows, encoder, tmp_path):
    tokenizer = add_history_template(make_tokenizer("encoder"))
    cutter = HistoryCutter(tokenizer, 2)
    for limit, some in ((None, False), (10_000, False), (1, True)):
        groups = dropped_by_length(rows, tokenizer, cutter, limit)["groups"]
        assert {name: group["pairs"] for name, group in groups.items()} == {"majority": 20, "minority": 10}
        assert all(group["dropped"] == some * group["pairs"] for group in groups.values())

    ready = render_history(rows, cutter).select_columns(["prompt", "chosen", "rejected", "chat_template_kwargs"])
    kept = []
    for limit in range(50, 80, 5):
        groups = dropped_by_length(rows, tokenizer, cutter, limit)["groups"]
        kept.append(sum(group["pairs"] - group["dropped"] for group in groups.values()))
        args = RewardConfig(str(tmp_path), max_length=limit, use_cpu=True, bf16=False, report_to="none")
        trainer = RewardTrainer(encoder, args, train_dataset=ready, processing_class=tokenizer)
        assert kept[-1] == len(trainer.train_dataset)
    assert len(set(kept)) > 1
