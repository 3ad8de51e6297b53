"""Rows to tensors, and in evaluation rows that know which pair they are."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from trl.trainer.reward_trainer import DataCollatorForPreference

from trl_pafo.data.labels import as_label
from trl_pafo.prefix_sharing.rows import collate_pairs

NUMBER_COLUMN = "pair_number"
"""Column that [`number_rows`] adds: the place of a row in its dataset."""

PAIR_KEYS = (NUMBER_COLUMN, "pair_group", "pair_user")
"""Keys that [`NumberedCollator`] adds to a batch: lists of whole numbers and of names, `""` for none."""


@dataclass
class DataCollatorForGroupPreference(DataCollatorForPreference):
    """
    TRL's [`~trl.trainer.reward_trainer.DataCollatorForPreference`] with the columns of group-fair reward modeling.

    Beside `"input_ids"`, `"attention_mask"` and `"margin"` it returns, for the columns that the rows have,

    - `"teacher_margin"`: float tensor of shape `(num_pairs,)`, the margin of the teacher of the row's group.
    - `"has_label"`: bool tensor of shape `(num_pairs,)`, false on counterfactual rows; all true without the column.
    - `"group_id"`: int tensor of shape `(num_pairs,)`, the position of the row's group in `groups`, -1 for a group that
      is not in it. Only if `groups` is set.
    - `"pair_lengths"`: int tensor of shape `(num_pairs, 3)`. Only if `share_prefix` is set, and `"input_ids"` then has one
      row a pair ([`~trl_pafo.prefix_sharing.rows.collate_pairs`]).

    Args:
        pad_token_id (`int`):
            Token ID to use for padding.
        pad_to_multiple_of (`int`, *optional*):
            If set, the sequences will be padded to a multiple of this value.
        return_tensors (`str`, *optional*, defaults to `"pt"`):
            Type of Tensor to return. Only `"pt"` is currently supported.
        groups (`list[str]`, *optional*):
            Names of the groups, in the order of their ids.
        share_prefix (`bool`, *optional*, defaults to `False`):
            One row a pair, `[prefix | rest of chosen | rest of rejected]`, in the place of two.

    Examples:
    ```python
    >>> from trl_pafo import DataCollatorForGroupPreference

    >>> collator = DataCollatorForGroupPreference(pad_token_id=0, groups=["majority", "minority"])
    >>> batch = collator([{"chosen_ids": [1, 2], "rejected_ids": [3], "group": "minority", "teacher_margin": 0.5}])
    >>> batch["teacher_margin"], batch["has_label"], batch["group_id"]
    (tensor([0.5000]), tensor([True]), tensor([1]))
    ```
    """

    groups: list[str] = field(default_factory=list)
    share_prefix: bool = False

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        first = examples[0]
        output: dict[str, Any]
        if self.share_prefix:
            output = {**collate_pairs(examples, self.pad_token_id, self.pad_to_multiple_of)}
            if "margin" in first:
                output["margin"] = torch.tensor([example["margin"] for example in examples], dtype=torch.float)
        else:
            output = super().torch_call(examples)
        if "teacher_margin" in first:
            margins = [example["teacher_margin"] for example in examples]
            output["teacher_margin"] = torch.tensor(margins, dtype=torch.float)
            output["has_label"] = torch.tensor([bool(example.get("has_label", True)) for example in examples])
        if self.groups and "group" in first:
            ids = {as_label(group): position for position, group in enumerate(self.groups)}
            output["group_id"] = torch.tensor([ids.get(as_label(example["group"]), -1) for example in examples])
        return output


@dataclass
class NumberedCollator:
    """
    Any collator, with `"pair_number"`, `"pair_group"` and `"pair_user"` beside what it returns: lists, one entry a pair.

    Samplers fill up the last batch with copies of earlier rows, and streams have no length to cut them off by. The number
    tells a copy from another pair. Names go beside the collator, not through it, so that every collator will do.

    Args:
        collator (`Callable`):
            Collator of the rows.
    """

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        numbers = [example[NUMBER_COLUMN] for example in examples]
        groups, users = ([as_label(row.get(column)) or "" for row in examples] for column in ("group", "user"))
        rows = [{key: value for key, value in example.items() if key != NUMBER_COLUMN} for example in examples]
        return {**self.collator(rows), **dict(zip(PAIR_KEYS, (numbers, groups, users), strict=True))}


def number_rows(dataset: Any) -> torch.utils.data.Dataset:
    """A dataset, streaming or not, whose rows know their place in it under `"pair_number"`; nothing is copied."""
    return _NumberedStream(dataset) if isinstance(dataset, torch.utils.data.IterableDataset) else _NumberedRows(dataset)


class _NumberedRows(torch.utils.data.Dataset):
    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {**self.dataset[place], NUMBER_COLUMN: place}

    def __getitems__(self, places: list[int]) -> list[dict[str, Any]]:
        # One read for the whole batch where the dataset can.
        rows = (
            self.dataset.__getitems__(places) if hasattr(self.dataset, "__getitems__") else map(self.dataset.__getitem__, places)
        )
        return [{**row, NUMBER_COLUMN: place} for place, row in zip(places, rows, strict=True)]


class _NumberedStream(torch.utils.data.IterableDataset):
    """Every process reads the whole stream and accelerate deals out its rows, so that all take equally many steps.

    A stream of several files would otherwise be dealt out by file, and processes with fewer rows would leave the others
    waiting.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Each worker of a data loader reads files of its own, so each counts numbers of its own.
        worker = torch.utils.data.get_worker_info()
        number, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for row in self.dataset:
            yield {**row, NUMBER_COLUMN: number}
            number += step
