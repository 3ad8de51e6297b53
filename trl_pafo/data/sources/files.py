"""Your own pairs: files, saved datasets and Hub datasets that say who preferred what."""

import logging
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, DatasetDict, concatenate_datasets

from trl_pafo.data.people import SEVERAL, add_about
from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.data.sources.columns import NAMES
from trl_pafo.data.sources.holding_out import add_validation, hold_out
from trl_pafo.data.sources.reading import open_dataset, single_split
from trl_pafo.data.sources.registry import check_source
from trl_pafo.data.sources.splits import (
    add_support_groups,
    add_type_support,
    agreement,
    drop_users_without_history,
    in_one_group,
    one_value_per_user,
)
from trl_pafo.data.sources.tables import Table, read_table
from trl_pafo.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

OPTIONAL = ("group", "support_rate", "history")
_MOST_NAMED = 5
_READ_BY_MODELS = ("chat_template_kwargs", "tools")
_NO_CUT = (
    "{} has the column `group`, so `minority_quantile` and `minority_threshold` have no effect. Leave them out, or the column."
)
_NAME_USER = "Name the column: --columns user=COLUMN."


def load(data: DataArguments) -> DatasetDict:
    """Pairs of any table of judgments, read by [`~trl_pafo.data.sources.tables.read_table`], with groups.

    A part of them is held out for test: [`~trl_pafo.data.sources.holding_out.hold_out`]. Each path is what
    [`~trl_pafo.data.sources.reading.open_dataset`] reads; of a dataset with a split `test`, that is the test set, and its split
    `validation` is the validation set, if [`~trl_pafo.data.sources.holding_out.add_validation`] can use it.

    Without a `group` column, groups follow from the support rates: those of the column `support_rate`, or else the leave-one-out
    agreement of users who judged the same pairs. The threshold between the groups is found on the training users alone, and the
    agreement of a training user comes from training pairs alone. Users who share no pair with others are then left out; with
    `infer_groups`, all users are in one group until groups are found. With a `group` but no `support_rate`, the latter is the
    group's share of the training users. What the columns `describe` say of the users is then in the column `about` of the rows.

    Raises:
        ConfigError: If an option has a value that cannot be used.
        DataError: If a column is missing or a row cannot be used (the message names it), if a given test set has some users of the
            training set, or if no test pair is left.
    """
    what = str(data.data_path)
    opened = _open(what, data)
    train = single_split(opened, "train", what)
    splits = opened if isinstance(opened, DatasetDict) and len(opened) > 1 else {}  # one alone is the data, whatever its name
    used = {"train", *(["validation"] if data.validation_share else []), *([] if data.test_data_path else ["test"])}
    if unused := [split for split in splits if split not in used]:
        logger.warning("%s: the splits %s are not used.", what, ", ".join(map(str, unused)))
    validation = splits.get("validation") if data.validation_share else None
    given = (
        single_split(_open(data.test_data_path, data), "test", data.test_data_path) if data.test_data_path else splits.get("test")
    )
    return _split(train, given, data, what, data.test_data_path or f"{what}, split test", validation)


def load_table(table: pd.DataFrame | Dataset, test: pd.DataFrame | Dataset | None = None, **options: Any) -> DatasetDict:
    """The same for a table in memory.

    Args:
        table (`pandas.DataFrame` or [`~datasets.Dataset`]):
            Rows of judgments.
        test (`pandas.DataFrame` or [`~datasets.Dataset`], *optional*):
            Rows for test.
        **options:
            Those of [`~trl_pafo.data.sources.arguments.DataArguments`] that have an effect on files, such as `columns={"user": "worker"}` or
            `hold_out="users"`.

    Example:

    ```python
    >>> import pandas as pd
    >>> from trl_pafo.data.sources import load_table

    >>> rows = [(f"u{n % 40}", f"{n} apples or pears?", "apples", "pears", "ab"[n % 2]) for n in range(120)]
    >>> table = pd.DataFrame(rows, columns=["user_id", "prompt", "response_a", "response_b", "preferred"])
    >>> splits = load_table(table.assign(group=table["preferred"]))
    >>> {name: rows.num_rows for name, rows in splits.items()}
    {'train': 96, 'test': 24}
    ```
    """
    data = DataArguments(source="files", **options)
    check_source(replace(data, data_path="the table"))
    return _split(table, test, data, "The table", "The test table")


def load_pairs(table: str | Path | pd.DataFrame | Dataset, split: str | None = None, **options: Any) -> tuple[Dataset, list[str]]:
    """All pairs of a table, none held out and no user left out, to evaluate models on; and what was read and left out, in lines for people.

    `table` may be a path or Hub id, of which the `split` "test" or the only one is read unless another is named. Nothing but chosen and
    rejected is needed. `options` are `columns` and `preferred_values`, `minority_quantile` or `minority_threshold`, which make groups of
    support rates where there is no column `group`, and `scores`, as in [`~trl_pafo.data.sources.tables.read_table`]. The pairs keep the
    other columns of the table and the number of their row ([`~trl_pafo.data.sources.judgments.ROW`]).

    Raises:
        ConfigError: If an option cannot be used, or has no effect.
        DataError: If the table cannot be read.
    """
    scores = options.pop("scores", ())
    data = DataArguments(source="files", **options)
    what = "The table"
    if isinstance(table, str | Path):
        what, alone = str(table), Path(table) / f"{split or 'test'}.parquet"
        opened = DatasetDict({split or "test": _open(str(alone), data)}) if alone.is_file() else _open(what, data, scores)
        if split is not None and isinstance(opened, Dataset):
            raise ConfigError(f"{table} has no splits, so --dataset_split {split} has no effect. Leave it out.")
        if isinstance(opened, DatasetDict) and (split or "test") not in opened and (split or len(opened) > 1):
            found = ", ".join(map(str, opened))
            raise DataError(f"{table} has no split {split or 'test'!r}; it has {found}. Give --dataset_split.")
        table = single_split(opened, split or "test", what)
    read = _read(table, what, data, needed=(), scores=scores, keep_others=True)
    cut = (data.minority_quantile, data.minority_threshold)
    if cut == (None, None):
        return read.pairs, read.look
    if "group" in read.pairs.column_names:
        raise ConfigError(_NO_CUT.format(what))
    if "user" not in read.pairs.column_names:
        raise ConfigError(f"{what} does not say who judged, so there are no support rates to make groups of. {_NAME_USER}")
    rows = read.pairs
    rated = "support_rate" in rows.column_names
    if not rated:
        read.look.append(
            f"{what}: the groups are made of the users' agreement on these very pairs, so who errs is in the minority too: a part of the gap "
            "is noise. `trl-pafo audit` shows how much"
        )
        logger.info(read.look[-1])
    support = one_value_per_user(rows, "support_rate") if rated else agreement(rows)
    rows = rows.remove_columns("support_rate") if rated else rows
    return add_support_groups(DatasetDict(train=rows), {"train": support}, *cut, "support" if rated else "agreement")[
        "train"
    ], read.look


def _split(table: Any, test: Any, data: DataArguments, what: str, test_what: str, validation: Any = None) -> DatasetDict:
    names = {"train": (table, what), "test": (test, test_what), "validation": (validation, f"{what}, split validation")}
    read = {split: _read(rows, name, data) for split, (rows, name) in names.items() if rows is not None}
    for role in ("user", "group"):
        _warn_of_alike(role, {name for own in read.values() if role in own.pairs.column_names for name in own.pairs.unique(role)})
    splits = _with_groups({split: own.pairs for split, own in read.items()}, read["train"].timed, data, what)
    return add_about(splits, _values_of_users(list(read.values()), data.describe)) if data.describe else splits


def _warn_of_alike(role: str, names: Iterable[str]) -> None:
    """Say which users or groups may be one, as where a program has written "007" as 7, or a person "ann " for "ann"."""
    written: dict[str, list[str]] = {}
    for name in sorted(names):
        written.setdefault(unicodedata.normalize("NFC", name).strip().casefold().lstrip("0"), []).append(name)
    if alike := [own for own in written.values() if len(own) > 1]:
        logger.warning(
            "%d names of a %s are written in several ways, which count as several: %s%s. Write each in one way.",
            len(alike),
            role,
            ", ".join(" and ".join(map(repr, own)) for own in alike[:_MOST_NAMED]),
            " and others" if alike[_MOST_NAMED:] else "",
        )


def _values_of_users(tables: Sequence[Table], described: Iterable[str]) -> dict[str, dict[str, str]]:
    """The value of each user in each described column; who has several is counted and named."""
    value_of: dict[str, dict[str, str]] = {}
    for name in described:
        values: dict[str, dict[str, None]] = {}
        for user, value in chain.from_iterable(table.described[name] for table in tables):
            if user is not None and value is not None:
                values.setdefault(user, {})[value] = None
        value_of[name] = {user: next(iter(own)) if len(own) == 1 else SEVERAL for user, own in values.items()}
        if several := [f"{user!r} ({', '.join(own)})" for user, own in values.items() if len(own) > 1]:
            logger.warning(
                "%d of %d users have several values of %s and count as such: %s%s.",
                len(several),
                len(values),
                name,
                ", ".join(several[:_MOST_NAMED]),
                " and others" if several[_MOST_NAMED:] else "",
            )
    return value_of


def _with_groups(pairs: dict[str, Dataset], timed: bool, data: DataArguments, what: str) -> DatasetDict:
    train, given = pairs["train"], pairs.get("test")
    if given is not None:
        for column in OPTIONAL:
            if (column in train.column_names) != (column in given.column_names):
                raise DataError(f"Only one of training and test data has the column {column}; give it in both or in neither.")
    if "history" not in train.column_names:
        train = drop_users_without_history(train, data.min_pairs)
    splits = hold_out(train, given, timed, data)
    if "validation" in pairs:
        add_validation(splits, pairs["validation"], data, what)
    cut = (data.minority_quantile, data.minority_threshold)
    if "group" in train.column_names:
        if cut != (None, None):
            raise ConfigError(_NO_CUT.format(what))
        return splits if "support_rate" in train.column_names else add_type_support(splits)
    if data.infer_groups:
        return DatasetDict({split: in_one_group(rows) for split, rows in splits.items()})
    if "support_rate" in train.column_names:
        rate, support = "support", {split: one_value_per_user(rows, "support_rate") for split, rows in splits.items()}
        splits = splits.remove_columns("support_rate")
    else:
        rate, support = "agreement", {"train": agreement(splits["train"])}
        # New people are compared with all: their own groups matter in evaluation only.
        new = set(splits["test"]["user"]) - set(splits["train"]["user"])
        everything = train if given is None else concatenate_datasets([train, given])
        support["test"] = agreement(everything) if new else support["train"]
    return add_support_groups(splits, support, *cut, rate)


def _open(path: str, data: DataArguments, scores: Sequence[str] = ()) -> Dataset | DatasetDict:
    named = [name for names in data.named("columns").values() for name in names]
    return open_dataset(path, {*named, *(data.describe or ()), *scores, *_READ_BY_MODELS, *chain(*NAMES.values())})


def _read(table: Dataset | pd.DataFrame, what: str, data: DataArguments, **options: Any) -> Table:
    """A table whose pairs have the columns and types of the schema; says what there is. `options` are those of [`read_table`]."""
    columns = data.named("columns")
    if several := [role for role, names in columns.items() if len(names) > 1]:
        raise ConfigError(f"--columns names {several[0]} twice ({' and '.join(columns[several[0]])}). Name one column.")
    named = {role: name for role, [name] in columns.items()}
    read = read_table(table, what, named, data.named("preferred_values"), data.describe or (), **data.table_options(), **options)
    for line in read.look:
        logger.info(line)
    for name in {"group", "support_rate"} & set(read.pairs.column_names) if "user" in read.pairs.column_names else ():
        one_value_per_user(read.pairs, name)
    return read
