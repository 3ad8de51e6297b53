"""TRL's collator, and beside it the columns of PAFO; rows that know which pair they are."""

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from trl.trainer.reward_trainer import DataCollatorForPreference

from trl_pafo import DataCollatorForGroupPreference
from trl_pafo.trainer.collator import NumberedCollator, PairBatch, number_rows

ROWS = [
    {"chosen_ids": [1, 2, 3], "rejected_ids": [4], "group": "minority", "teacher_margin": 0.5, "has_label": True},
    {"chosen_ids": [5], "rejected_ids": [6, 7], "group": "majority", "teacher_margin": -2.0, "has_label": False},
    {"chosen_ids": [8, 9], "rejected_ids": [1], "group": "other", "teacher_margin": 0.0, "has_label": True},
]


def without(*names):
    return [{key: value for key, value in row.items() if key not in names} for row in ROWS]


@pytest.mark.parametrize("multiple", [None, 4])
def test_the_tokens_are_those_of_trl(multiple):
    rows = [{**row, "margin": float(i)} for i, row in enumerate(ROWS)]
    batch = DataCollatorForGroupPreference(pad_token_id=99, pad_to_multiple_of=multiple)(rows)
    for name, expected in DataCollatorForPreference(pad_token_id=99, pad_to_multiple_of=multiple)(rows).items():
        torch.testing.assert_close(batch[name], expected)
    assert batch["input_ids"].tolist()[0] == ([1, 2, 3, 99] if multiple else [1, 2, 3])


def test_rows_bring_margins_labels_and_the_position_of_their_group():
    collator = DataCollatorForGroupPreference(pad_token_id=0, groups=["majority", "minority"])
    batch = collator(ROWS)
    pairs = PairBatch.pop_from(batch)
    assert set(batch) == {"input_ids", "attention_mask"}  # what a model takes
    assert pairs.teacher_margin.tolist() == [0.5, -2.0, 0.0]
    assert pairs.has_label.tolist() == [True, False, True]
    assert pairs.group_id.tolist() == [1, 0, -1]  # the last one is not among the groups
    assert pairs.margin is None
    assert collator(without("has_label"))["has_label"].all()
    assert "group_id" not in collator(without("group"))
    assert set(collator(without("teacher_margin", "group"))) == set(batch)


def test_rows_bring_the_number_of_their_user():
    rows = [{**row, "user": user} for row, user in zip(ROWS, ("b", 7, "unknown"), strict=True)]
    collator = DataCollatorForGroupPreference(pad_token_id=0, users={"a": 0, "b": 1, "7": 2})
    batch = collator(rows)
    assert PairBatch.pop_from(batch).user_id.tolist() == [1, 2, -1]
    assert set(batch) == {"input_ids", "attention_mask"}
    assert "user_id" not in collator(ROWS)
    assert "user_id" not in DataCollatorForGroupPreference(pad_token_id=0)(rows)


def test_shared_rows_bring_the_same_columns():
    rows = [{**row, "margin": float(i)} for i, row in enumerate(ROWS)]
    options = {"pad_token_id": 99, "pad_to_multiple_of": 4, "groups": ["majority", "minority"]}
    two = DataCollatorForGroupPreference(**options)(rows)
    shared = DataCollatorForGroupPreference(**options, share_prefix=True)(rows)
    assert set(shared) == {*two, "pair_lengths"}
    assert shared["input_ids"].tolist()[0] == [1, 2, 3, 4]
    assert shared["pair_lengths"].tolist() == [[0, 3, 1], [0, 1, 2], [0, 2, 1]]
    assert shared["attention_mask"].sum() == two["attention_mask"].sum()  # here nothing is shared
    for name in ("margin", "teacher_margin", "has_label", "group_id"):
        assert torch.equal(shared[name], two[name])


# --- numbered rows


def numbered(dataset, **options) -> tuple[list[int], list[int]]:
    """Numbers of the rows that a data loader gives, and the rows' own mark."""
    loader = DataLoader(number_rows(dataset), batch_size=3, collate_fn=list, **options)
    rows = [row for batch in loader for row in batch]
    return [row["pair_number"] for row in rows], [row["mark"] for row in rows]


def test_rows_know_their_place_in_any_order():
    rows = Dataset.from_dict({"mark": list(range(100, 108))}).select([7, 0, 3, 4, 1])
    assert numbered(rows, sampler=[4, 0, 2]) == ([4, 0, 2], [101, 107, 103])
    assert numbered([{"mark": 5}, {"mark": 6}], sampler=[1]) == ([1], [6])


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_of_a_stream_have_numbers_of_their_own(workers):
    stream = Dataset.from_dict({"mark": list(range(11))}).to_iterable_dataset(num_shards=3)
    numbers, marks = numbered(stream, num_workers=workers)
    assert sorted(marks) == list(range(11))
    assert len(set(numbers)) == 11
    if not workers:
        assert numbers == marks


def test_any_collator_gets_its_rows_and_the_pairs_go_beside():
    seen = []

    def collate(rows):
        seen.extend(rows)
        return {"input_ids": torch.zeros(len(rows))}

    rows = [{"group": "a", "user": 7, "pair_number": 5}, {"group": None, "user": None, "pair_number": 2}]
    batch = NumberedCollator(collate)(rows)
    assert {k: v for k, v in batch.items() if k != "input_ids"} == {
        "pair_number": [5, 2],
        "pair_group": ["a", ""],
        "pair_user": ["7", ""],
    }
    assert seen == [{"group": "a", "user": 7}, {"group": None, "user": None}]
    bare = NumberedCollator(collate)([{"pair_number": 0}])
    assert (bare["pair_group"], bare["pair_user"]) == ([""], [""])
