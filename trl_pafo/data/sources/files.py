"""Your own pairs: files, saved datasets and Hub datasets that say who preferred what."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, concatenate_datasets

from trl_pafo.data import HISTORY_FIELDS
from trl_pafo.data.checks import TEXTS, check_columns, check_pairs, check_texts
from trl_pafo.data.history import history_problem
from trl_pafo.data.labels import label_names, normalize_labels
from trl_pafo.data.sources.reading import open_dataset, rows_to_dataset, single_split
from trl_pafo.data.sources.splits import (
    add_support_groups,
    add_type_support,
    agreement,
    drop_shared_prompts,
    one_value_per_user,
    rows_by_user,
    split_users,
    users_in_order,
)
from trl_pafo.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

NEEDED = ("prompt", "chosen", "rejected", "user")
OPTIONAL = ("group", "support_rate", "history")


def load_files(
    path: str | Path,
    test_path: str | Path | None = None,
    test_user_share: float = 0.2,
    *,
    columns: Mapping[str, str] | None = None,
    name: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    minority_quantile: float | Sequence[float] | None = None,
    minority_threshold: float | Sequence[float] | None = None,
    group_names: Sequence[str] = ("majority", "minority"),
    seed: int = 0,
) -> DatasetDict:
    """Pairs with `prompt`, `chosen`, `rejected` and `user`, and optionally `group`, `support_rate` and `history`.

    The rows of a user must stand in the order of time; other users' rows may stand between them. Further columns are left
    out.

    Test users and test prompts do not occur in training. Without a test set, users are drawn for it. Either way, test
    pairs whose prompt occurs in training are left out, and the log says how many.

    Without a `group` column, groups follow from the support rates: those of the column `support_rate`, or else the
    leave-one-out agreement of users who judged the same pairs. The threshold between the groups is found on the training
    users alone, and the agreement of a training user comes from training pairs alone. Users who share no pair with others
    are then left out. With a `group` but no `support_rate`, the latter is the group's share of the training users.

    Args:
        path (`str` or `Path`):
            File (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`; JSON and CSV also gzipped), folder written by
            `save_to_disk`, or Hub id of a dataset. If it has the split `test_split`, that is the test set.
        test_path (`str` or `Path`, *optional*):
            The same for the test set.
        test_user_share (`float`, *optional*, defaults to `0.2`):
            Share of the users that are drawn for the test where no test set is given, in (0, 1).
        columns (`Mapping[str, str]`, *optional*):
            Where a column has another name: from the name here to the name in the data, such as `{"user": "annotator"}`.
        name (`str`, *optional*):
            Configuration of a Hub dataset.
        train_split (`str`, *optional*, defaults to `"train"`):
            Split to train on, where the data has several.
        test_split (`str`, *optional*, defaults to `"test"`):
            Split to test on, where the data has several.
        minority_quantile (`float` or `Sequence[float]`, *optional*):
            Share of the training users with the lowest support that make the minority, see
            [`~trl_pafo.data.groups.quantile_thresholds`]. Refused if there is a `group` column.
        minority_threshold (`float` or `Sequence[float]`, *optional*):
            Users with a support rate below it are the minority. With neither of the two, the quantile is 0.2.
        group_names (`Sequence[str]`, *optional*, defaults to `("majority", "minority")`):
            Names of the groups that are made, from the highest support to the lowest.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draw of test users.

    Returns:
        [`~datasets.DatasetDict`]: `train` and `test` in the one schema, the rows of a user next to each other.

    Raises:
        ConfigError: If an option has a value that cannot be used.
        DataError: If a column is missing or a row cannot be used (the message names it), if a given test set has users of
            the training set, or if no test pair is left.
    """
    wanted = [*NEEDED, *OPTIONAL, *(columns or {}).values()]
    data = open_dataset(path, name, wanted)
    what = str(path)
    given: Dataset | None = None
    if test_path is not None:
        given = _conform(single_split(open_dataset(test_path, name, wanted), test_split, str(test_path)), columns, str(test_path))
    elif isinstance(data, DatasetDict) and test_split in data and len(data) > 1:
        given = _conform(data[test_split], columns, f"{what}, split {test_split}")
    train = _conform(single_split(data, train_split, what), columns, what)
    used = {train_split} | ({test_split} if test_path is None else set())
    if isinstance(data, DatasetDict) and len(data) > 1 and (unused := [split for split in data if split not in used]):
        logger.warning("%s: the splits %s are not used.", what, ", ".join(map(str, unused)))

    if given is None:
        everything = train
        group_of = one_value_per_user(train, "group") if "group" in train.column_names else dict.fromkeys(train["user"][:])
        chosen = set(split_users(group_of, test_user_share, seed)[1])
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
    if "group" in train.column_names and (minority_quantile, minority_threshold) != (None, None):
        raise ConfigError(
            f"{what} has the column `group`, so `minority_quantile` and `minority_threshold` have no effect. Leave them out, or the "
            "column."
        )
    if "group" not in train.column_names:
        splits = _group_by_support(splits, everything, minority_quantile, minority_threshold, group_names)
    elif "support_rate" not in train.column_names:
        splits = add_type_support(splits)
    order = [column for column in (*NEEDED, *OPTIONAL) if column in splits["train"].column_names]
    return splits.select_columns(order)


def _group_by_support(
    splits: DatasetDict,
    everything: Dataset,
    quantile: float | Sequence[float] | None,
    threshold: float | Sequence[float] | None,
    names: Sequence[str],
) -> DatasetDict:
    if "support_rate" in everything.column_names:
        support = {split: one_value_per_user(rows, "support_rate") for split, rows in splits.items()}
        splits = splits.remove_columns("support_rate")
    else:
        # Test users are compared with all users: their own groups matter in evaluation only.
        support = {"train": agreement(splits["train"]), "test": agreement(everything)}
    return add_support_groups(splits, support, quantile, threshold, names)


def _conform(dataset: Dataset, columns: Mapping[str, str] | None, what: str) -> Dataset:
    """The columns of the schema under their names and in their types, checked row by row."""
    renamed = dict(columns or {})
    unknown = sorted(set(renamed) - {*NEEDED, *OPTIONAL})
    if unknown:
        raise ConfigError(f"`columns` names {', '.join(unknown)}; it may name {', '.join((*NEEDED, *OPTIONAL))}.")
    check_columns(dataset.column_names, [renamed.get(name, name) for name in NEEDED] + list(renamed.values()), what)
    source_of = {name: renamed.get(name, name) for name in (*NEEDED, *OPTIONAL)}
    if len(set(renamed.values())) < len(renamed):
        raise ConfigError(f"`columns` gives one column two names: {renamed}. Give each its own.")
    built: dict[str, Any] = {name: dataset[source][:] for name, source in source_of.items() if source in dataset.column_names}
    if not len(dataset):
        raise DataError(f"{what} has no rows.")
    for name in {"user", "group"} & set(built):
        built[name] = normalize_labels(built[name], name, what, names=label_names(dataset.features[source_of[name]]))
    for row in range(len(dataset)):
        place = f"{what}, row {row}"
        check_texts({name: built[name][row] for name in TEXTS}, place)
        if "support_rate" in built:
            built["support_rate"][row] = _rate(built["support_rate"][row], place)
        if "history" in built:
            built["history"][row] = _history(built["history"][row], place)
    conformed = rows_to_dataset([dict(zip(built, values, strict=True)) for values in zip(*built.values(), strict=True)], what)
    check_pairs(conformed, what)
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
