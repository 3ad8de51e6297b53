"""The name of a preference group in front of the prompt: by whose taste a model is to score. (Not from the paper.)

A model that is trained on such prompts needs no group label: it is asked once for each group, and the user's past pairs say how much
each answer counts ([`~trl_pafo.models.group_scorer.GroupScorer`]). Its tokenizer remembers that, and is saved with it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_pafo.data.history import is_rendered, read_record, without_history
from trl_pafo.data.rows import rows_of_batch

_RECORD = "trl_pafo_groups"
_KEYS = {"groups", "temperature", "slope", "bias", "share", "tau"}
_PARTS = ("prompt", "response", "chosen", "rejected")


def group_line(group: str) -> str:
    """What stands in front of a prompt."""
    return f"Preference group: {group}\n"


def name_group(row: Mapping[str, Any], group: str) -> dict[str, Any]:
    """A row whose prompt, a text or messages, begins with a line that names a group; without a prompt, its responses do."""
    line = group_line(group)
    parts = ["prompt"] if row.get("prompt") else [name for name in _PARTS[1:] if row.get(name)]
    return {**row, **{name: _after(line, row[name]) for name in parts}}


def name_groups(rows: Dataset, groups: Sequence[str]) -> Dataset:
    """Rows each of which names the group of its place in `groups`, see [`name_group`]."""
    names = [name for name in _PARTS if name in rows.column_names]

    def named(batch: Mapping[str, list[Any]], places: Sequence[int]) -> dict[str, list[Any]]:
        shown = [name_group(row, groups[place]) for row, place in zip(rows_of_batch(batch), places, strict=True)]
        return {name: [row[name] for row in shown] for name in names}

    plain = rows.with_format(None)
    return plain.map(named, batched=True, with_indices=True, features=rows.features, desc="Naming groups")


def plain_rows(rows: Dataset) -> Dataset:
    """Rows without histories, neither in a column nor rendered."""
    if "history" in rows.column_names:
        rows = rows.remove_columns("history")
    return without_history(rows) if is_rendered(rows) else rows


def remember_groups(tokenizer: PreTrainedTokenizerBase, mixture: Mapping[str, Any], tau: float) -> None:
    """Write into the tokenizer how the answers for all groups become one reward.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer that is saved with the model.
        mixture (`Mapping`):
            [`~trl_pafo.data.group_mixture.GroupMixture.as_json`].
        tau (`float`):
            The prior: 0 takes groups for as frequent as in training, 1 for equally frequent.
    """
    tokenizer.init_kwargs[_RECORD] = {**mixture, "tau": tau}


def remembered_groups(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """What [`remember_groups`] wrote; `None` where nothing did.

    Raises:
        ConfigError: If it is not readable.
    """
    return read_record(tokenizer, _RECORD, _KEYS)


def forget_groups(tokenizer: PreTrainedTokenizerBase) -> None:
    """Take away what [`remember_groups`] wrote."""
    tokenizer.init_kwargs.pop(_RECORD, None)


def reads_groups(folder: Path) -> bool:
    """Whether the tokenizer in the folder of a saved model remembers groups; it is not loaded."""
    file = folder / "tokenizer_config.json"
    try:
        return _RECORD in json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whoever loads it says more
        return False


def _after(line: str, value: Any) -> Any:
    """A text or messages that begin with a line."""
    if isinstance(value, str):
        return line + value
    first = value[0]
    content = first.get("content") or ""
    begun = line + content if isinstance(content, str) else [{"type": "text", "text": line}, *content]
    return [{**first, "content": begun}, *value[1:]]
