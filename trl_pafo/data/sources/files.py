"""Your own pairs: files, saved datasets and Hub datasets that say who preferred what."""

import logging
from itertools import chain

import pandas as pd
from datasets import Dataset, DatasetDict, concatenate_datasets

from trl_pafo.data.checks import check_rows
from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.data.sources.reading import open_dataset, single_split
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
from trl_pafo.data.sources.tables import NAMES, read_table
from trl_pafo.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

TEST_USER_SHARE = 0.2
OPTIONAL = ("group", "support_rate", "history")


def load(data: DataArguments) -> DatasetDict:
    """Pairs of any table of judgments, read by [`~trl_pafo.data.sources.tables.read_table`], with groups.

    Test users and test prompts do not occur in training. Without a test set, a fifth of the users is drawn for it. Either way, test
    pairs whose prompt occurs in training are left out, and the log says how many.

    Without a `group` column, groups follow from the support rates: those of the column `support_rate`, or else the
    leave-one-out agreement of users who judged the same pairs. The threshold between the groups is found on the training
    users alone, and the agreement of a training user comes from training pairs alone. Users who share no pair with others
    are then left out; with `infer_groups`, all users are in one group until groups are found. With a `group` but no `support_rate`, the latter is the group's share of the training users.

    Args:
        data ([`~trl_pafo.data.sources.arguments.DataArguments`]):
            `data_path`: file (`.jsonl`, `.json`, `.csv`, `.tsv`, `.xlsx`, `.parquet`; JSON and CSV also gzipped), folder written by
            `save_to_disk`, or Hub id of a dataset; if it has a split `test`, that is the test set. `test_data_path`: the same for the
            test set. `columns`, `preferred_values`: what the columns and their values are. `minority_quantile`, `minority_threshold`:
            where the groups are cut, the quantile 0.2 if neither is given.

    Raises:
        ConfigError: If an option has a value that cannot be used.
        DataError: If a column is missing or a row cannot be used (the message names it), if a given test set has users of
            the training set, or if no test pair is left.
    """
    what = str(data.data_path)
    opened = _open(what, data)
    train = _conform(single_split(opened, "train", what), what, data)
    given, used = None, {"train"}
    if data.test_data_path:
        path = data.test_data_path
        given = _conform(single_split(_open(path, data), "test", path), path, data)
    elif isinstance(opened, DatasetDict) and "test" in opened and len(opened) > 1:
        given = _conform(opened["test"], f"{what}, split test", data)
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


def _open(path: str, data: DataArguments) -> Dataset | DatasetDict:
    named = [name for names in data.named("columns").values() for name in names]
    return open_dataset(path, {*named, *chain(*NAMES.values())})


def _conform(table: Dataset | pd.DataFrame, what: str, data: DataArguments) -> Dataset:
    """The pairs of a table in the columns and types of the schema, checked row by row; says what it holds."""
    columns = data.named("columns")
    if several := [role for role, names in columns.items() if len(names) > 1]:
        raise ConfigError(f"--columns names {several[0]} twice ({' and '.join(columns[several[0]])}). Name one column.")
    read = read_table(table, what, {role: name for role, [name] in columns.items()}, data.named("preferred_values"))
    for line in read.look:
        logger.info(line)
    pairs = read.pairs
    check_rows(pairs, what)
    for name in {"group", "support_rate"} & set(pairs.column_names):
        one_value_per_user(pairs, name)
    return pairs
