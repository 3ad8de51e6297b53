"""Rows to tensors."""

from dataclasses import dataclass, field
from typing import Any

import torch
from trl.trainer.reward_trainer import DataCollatorForPreference


@dataclass
class DataCollatorForGroupPreference(DataCollatorForPreference):
    """
    TRL's [`~trl.trainer.reward_trainer.DataCollatorForPreference`] with the columns of group-fair reward modelling.

    Beside `"input_ids"`, `"attention_mask"` and `"margin"` it returns, for the columns that the rows have,

    - `"teacher_margin"`: float tensor of shape `(num_pairs,)`, the margin of the teacher of the row's group.
    - `"has_label"`: bool tensor of shape `(num_pairs,)`, false on counterfactual rows; all true without the column.
    - `"group_id"`: int tensor of shape `(num_pairs,)`, the position of the row's group in `groups`, -1 for a group that
      is not in it. Only if `groups` is set.

    Args:
        pad_token_id (`int`):
            Token ID to use for padding.
        pad_to_multiple_of (`int`, *optional*):
            If set, the sequences will be padded to a multiple of this value.
        return_tensors (`str`, *optional*, defaults to `"pt"`):
            Type of Tensor to return. Only `"pt"` is currently supported.
        groups (`list[str]`, *optional*):
            Names of the groups, in the order of their ids.

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

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        output = super().torch_call(examples)
        first = examples[0]
        if "teacher_margin" in first:
            margins = [example["teacher_margin"] for example in examples]
            output["teacher_margin"] = torch.tensor(margins, dtype=torch.float)
            output["has_label"] = torch.tensor([bool(example.get("has_label", True)) for example in examples])
        if self.groups and "group" in first:
            ids = {group: position for position, group in enumerate(self.groups)}
            output["group_id"] = torch.tensor([ids.get(example["group"], -1) for example in examples])
        return output
