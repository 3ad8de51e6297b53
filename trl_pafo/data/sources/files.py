"""Your own pairs: files, saved datasets and Hub datasets that say who preferred what."""

import logging
import math
from typing import Any

from datasets import Dataset, DatasetDict, concatenate_datasets

from trl_pafo.data import HISTORY_FIELDS
from trl_pafo.data.checks import check_columns, check_rows
from trl_pafo.data.history import history_problem
from trl_pafo.data.labels import label_names, normalize_labels
from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.data.sources.reading import columns_to_dataset, open_dataset, single_split
from trl_pafo.data.sources.splits import (
    add_support_groups,
    add_type_support,
    agreement,
    drop_shared_prompts,
    in_one_group,
    one_value_per_user,
    rows_by_user,
    split_users,
    users_in_order,
)
from trl_pafo.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

TEST_USER_SHARE = 0.2
NEEDED = ("prompt", "chosen", "rejected", "user")
OPTIONAL = ("group", "support_rate", "history")


def load(data: DataArguments) -> DatasetDict:
    """Pairs with `prompt`, `chosen`, `rejected` and `user`, and optionally `group`, `support_rate` and `history`.

    The rows of a user must stand in the order of time; other users' rows may stand between them. Further columns are left
    out.

    Test users and test prompts do not occur in training. Without a test set, a fifth of the users is drawn for it. Either way, test
    pairs whose prompt occurs in training are left out, and the log says how many.

    Without a `group` column, groups follow from the support rates: those of the column `support_rate`, or else the
    leave-one-out agreement of users who judged the same pairs. The threshold between the groups is found on the training
    users alone, and the agreement of a training user comes from training pairs alone. Users who share no pair with others
    are then left out; with `infer_groups`, all users are in one group until groups are found. With a `group` but no `support_rate`, the latter is the group's share of the training users.

    Args:
        data ([`~trl_pafo.data.sources.arguments.DataArguments`]):
            `data_path`: file (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`; JSON and CSV also gzipped), folder written by
            `save_to_disk`, or Hub id of a dataset; if it has a split `test`, that is the test set. `test_data_path`: the same for the
            test set. `minority_quantile`, `minority_threshold`: where the groups are cut, the quantile 0.2 if neither is given.

    Raises:
        ConfigError: If an option has a value that cannot be used.
        DataError: If a column is missing or a row cannot be used (the message names it), if a given test set has users of
            the training set, or if no test pair is left.
    """
    what = str(data.data_path)
    opened = open_dataset(what, (*NEEDED, *OPTIONAL))
    train = _conform(single_split(opened, "train", what), what)
    given, used = None, {"train"}
    if data.test_data_path:
        path = data.test_data_path
        given = _conform(single_split(open_dataset(path, (*NEEDED, *OPTIONAL)), "test", path), path)
    elif isinstance(opened, DatasetDict) and "test" in opened and len(opened) > 1:
        given = _conform(opened["test"], f"{what}, split test")
        used.add("test")
    if isinstance(opened, DatasetDict) and len(opened) > 1 and (unused := [split for split in opened if split not in used]):
        logger.warning("%s: the splits %s are not used.", what, ", ".join(map(str, unused)))

    if given is None:
        everything = train
        group_of = one_value_per_user(train, "group") if "group" in train.column_names else dict.fromkeys(train["user"][:])
        chosen = set(split_users(group_of, TEST_USER_SHARE, data.population_seed)[1])
        users = users_in_order(train)
        test = rows_by_user(train, [user for user in users if user in chosen])
        train = rows_by_user(train, [user for user in users if user not in chosen])
    else:
        for column in OPTIONAL:
            if (column in train.column_names) != (column in given.column_names):
                raise DataError(f"Only one of training and test data has the column {column}; give it in both or in neither.")
        shared = sorted(set(train["user"][:]) & set(given["user"][:]))
        if shared:
            raise DataError(
                f"{len(shared)} users of the test data are in the training data too (the first: {shared[0]!r}). Leave them out "
                "of one of the two, or join the two into one file and let test users be drawn."
            )
        train, test = (rows_by_user(rows, users_in_order(rows)) for rows in (train, given))
        everything = concatenate_datasets([train, test])

    splits = DatasetDict(train=train, test=drop_shared_prompts(train, test))
    cut = (data.minority_quantile, data.minority_threshold)
    if "group" in train.column_names:
        if cut != (None, None):
            raise ConfigError(
                f"{what} has the column `group`, so `minority_quantile` and `minority_threshold` have no effect. Leave them out, or the "
                "column."
            )
        return splits if "support_rate" in train.column_names else add_type_support(splits)
    if data.infer_groups:
        return DatasetDict({split: in_one_group(rows) for split, rows in splits.items()})
    if "support_rate" in train.column_names:
        support = {split: one_value_per_user(rows, "support_rate") for split, rows in splits.items()}
        splits = splits.remove_columns("support_rate")
    else:
        # Test users are compared with all users: their own groups matter in evaluation only.
        support = {"train": agreement(splits["train"]), "test": agreement(everything)}
    return add_support_groups(splits, support, *cut)


def _conform(dataset: Dataset, what: str) -> Dataset:
    """The columns of the schema in their types, checked row by row."""
    check_columns(dataset.column_names, NEEDED, what)
    built: dict[str, Any] = {name: dataset[name][:] for name in (*NEEDED, *OPTIONAL) if name in dataset.column_names}
    for name in {"user", "group"} & set(built):
        built[name] = normalize_labels(built[name], name, what, names=label_names(dataset.features[name]))
    for name, read in (("support_rate", _rate), ("history", _history)):
        if name in built:
            built[name] = [read(value, f"{what}, row {row}") for row, value in enumerate(built[name])]
    conformed = columns_to_dataset(built, what)
    check_rows(conformed, what)
    for name in {"group", "support_rate"} & set(built):
        one_value_per_user(conformed, name)
    return conformed


def _rate(value: Any, place: str) -> float:
    try:
        rate = float(value)
    except (TypeError, ValueError):
        rate = math.nan
    if not 0 <= rate <= 1:
        raise DataError(f"{place}: `support_rate` must be a number in [0, 1], got {value!r}.")
    return rate


def _history(value: Any, place: str) -> list[dict[str, Any]]:
    if problem := history_problem(value):
        where = "; a CSV file cannot hold one (use JSON Lines or Parquet)" if isinstance(value, str) else ""
        raise DataError(f"{place}: {problem}{where}.")
    return [{name: entry[name] for name in HISTORY_FIELDS} for entry in value or []]
