"""Rows to tensors, and in evaluation rows that know which pair they are."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from trl.trainer.reward_trainer import DataCollatorForPreference

from trl_pafo.data.labels import as_label
from trl_pafo.prefix_sharing.rows import collate_pairs

NUMBER_COLUMN = "pair_number"
"""Column that [`number_rows`] adds: the place of a row in its dataset."""


@dataclass
class PairBatch:
    """
    What a batch says of its pairs beside their tokens; `None` for what it does not say.

    Models swallow unknown keyword arguments in silence, so all of it is taken out before a model is called.
    """

    margin: Any = None
    """TRL's column: what the student's margin must exceed."""
    teacher_margin: Any = None
    has_label: Any = None
    group_id: Any = None
    user_id: Any = None
    pair_lengths: Any = None
    """Of shared rows, see [`~trl_pafo.prefix_sharing.rows.PAIR_LENGTHS`]."""
    pair_number: Any = None
    pair_group: Any = None
    pair_user: Any = None

    @classmethod
    def pop_from(cls, inputs: dict[str, Any]) -> "PairBatch":
        """Take these keys out of a batch."""
        return cls(**{f.name: inputs.pop(f.name) for f in fields(cls) if f.name in inputs})


@dataclass
class DataCollatorForGroupPreference(DataCollatorForPreference):
    """
    TRL's [`~trl.trainer.reward_trainer.DataCollatorForPreference`] with the columns of group-fair reward modeling.

    Beside `"input_ids"`, `"attention_mask"` and `"margin"` it returns, for the columns that the rows have,

    - `"teacher_margin"`: float tensor of shape `(num_pairs,)`, what the student's margin is to be.
    - `"has_label"`: bool tensor of shape `(num_pairs,)`, false on pairs under the history of another user.
    - `"group_id"`: int tensor of shape `(num_pairs,)`, the position of the row's group in `groups`, -1 for a group that
      is not in it. Only if `groups` is set.
    - `"user_id"`: int tensor of shape `(num_pairs,)`, the number of the row's user in `users`, -1 for one that is not in it.
      Only if `users` is set.
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
        users (`dict[str, int]`, *optional*):
            The number of each user.
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
    users: dict[str, int] = field(default_factory=dict)
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
        if self.users and "user" in first:
            output["user_id"] = torch.tensor([self.users.get(as_label(row["user"]) or "", -1) for row in examples])
        return output


@dataclass
class NumberedCollator:
    """
    Any collator, with `"pair_number"`, `"pair_group"` and `"pair_user"` (`""` for none) beside what it returns.

    Samplers fill up the last batch with copies of earlier rows; the number tells a copy from another pair. Names go beside the
    collator, not through it, so that every collator will do.
    """

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        names = {f"pair_{column}": [as_label(row.get(column)) or "" for row in examples] for column in ("group", "user")}
        numbers = [row[NUMBER_COLUMN] for row in examples]
        rows = [{key: value for key, value in row.items() if key != NUMBER_COLUMN} for row in examples]
        return {**self.collator(rows), **names, NUMBER_COLUMN: numbers}


def number_rows(dataset: Any) -> torch.utils.data.Dataset:
    """A dataset, streaming or not, whose rows know their place in it under `"pair_number"`; nothing is copied."""
    return _NumberedStream(dataset) if isinstance(dataset, torch.utils.data.IterableDataset) else _NumberedRows(dataset)


class _NumberedRows(torch.utils.data.Dataset):
    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, places: list[int]) -> list[dict[str, Any]]:
        read = getattr(self.dataset, "__getitems__", None)  # one read for the batch where the dataset can
        rows = [self.dataset[place] for place in places] if read is None else read(places)
        return [{**row, NUMBER_COLUMN: place} for place, row in zip(places, rows, strict=True)]


class _NumberedStream(torch.utils.data.IterableDataset):
    """Every process reads the stream to its end and accelerate deals out its rows: dealt out by file, processes with fewer rows
    would leave the others waiting."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Each worker of a data loader reads files of its own, so each counts numbers of its own.
        worker = torch.utils.data.get_worker_info()
        number, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for row in self.dataset:
            yield {**row, NUMBER_COLUMN: number}
            number += step
