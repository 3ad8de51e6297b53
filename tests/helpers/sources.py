"""What the tests of the data sources share: loading, files of rows, and what holds of the splits of every source."""

import json
from collections.abc import Iterable, Mapping
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from trl_pafo.data.attaching import attach_history
from trl_pafo.data.checks import check_apart, check_columns, check_pairs
from trl_pafo.data.sources import DataArguments
from trl_pafo.data.sources.registry import SOURCES, check_source
from trl_pafo.data.sources.splits import facts_of

ALWAYS = {"source", "population_seed", "validation_share", "validation_users", "infer_groups"}


class Watched(DataArguments):
    """Options that note which of them are read."""

    def __getattribute__(self, name: str) -> Any:
        if name in DataArguments.__dataclass_fields__:
            object.__getattribute__(self, "__dict__").setdefault("read", set()).add(name)
        return super().__getattribute__(name)


def load(source: str, path: Any = None, **options: Any) -> DatasetDict:
    """The splits of a source, which has looked at the options that it is said to look at, and at no other."""
    options |= {"source": source, "data_path": None if path is None else str(path)}
    check_source(DataArguments(**options))
    watched = Watched(**options)
    vars(watched)["read"].clear()
    splits: DatasetDict = import_module(f"trl_pafo.data.sources.{source}").load(watched)
    assert vars(watched)["read"] - ALWAYS == SOURCES[source] - ALWAYS
    return splits


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def check_splits(splits: DatasetDict) -> None:
    """The one schema, with users and prompts apart, and the rows of each user next to each other, with a history for all."""
    for name, rows in splits.items():
        check_columns(rows.column_names, ["prompt", "chosen", "rejected", "user", "group", "support_rate"], name)
        check_pairs(rows, name)
        users = rows["user"][:]
        changes = sum(user != other for user, other in pairwise(users))
        assert changes == len(set(users)) - 1, name
    train = attach_history(splits["train"], 1, past_only=False, missing="keep")
    check_apart(train, splits["test"], facts_of(splits["train"]).get("hold_out", "users_and_prompts"))
