"""What the sources of real people's pairs share: the split by user and prompt, the order of rows, support, groups."""

import json
import logging
import random
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray

from trl_pafo.data.groups import (
    ONE_GROUP,
    assign_groups,
    by_group,
    quantile_thresholds,
    support_rate_by_agreement,
    support_rate_by_type,
)
from trl_pafo.data.messages import content_key
from trl_pafo.data.overlap import pair_texts, telling_fields
from trl_pafo.data.rows import read_rows
from trl_pafo.data.sources.arguments import WAYS, DataArguments
from trl_pafo.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

MINORITY_QUANTILE = 0.2
TEST_USER_SHARE = 0.3
"""Share of the real people of a published data set that is for test."""


def note(rows: Dataset, **facts: str) -> Dataset:
    """The rows, which say of themselves what is given: `groups`, the rates that they were cut from, or `hold_out`."""
    rows.info.description = json.dumps(facts_of(rows) | facts)
    return rows


def facts_of(rows: Dataset) -> dict[str, str]:
    """What [`note`] said of the rows."""
    with suppress(ValueError):
        return dict(json.loads(rows.info.description))
    return {}


def split_users(group_of: Mapping[str, Hashable], test_share: float, seed: int) -> tuple[list[str], list[str]]:
    """Users of training and of test, drawn at random so that each group has about the same share in both.

    Where there are several groups, one of two users or more has users in both, and the user of a group of one is in training. Any
    first part of either list has the groups' shares too, so that a smaller study takes the first users of each. All users have one
    group where groups are not known yet.

    Raises:
        ConfigError: If one of the two would be left without users.
    """
    members: dict[Hashable, list[str]] = defaultdict(list)
    for user, group in group_of.items():
        members[group].append(user)
    rng = random.Random(seed)
    train: list[tuple[float, str]] = []
    test: list[tuple[float, str]] = []
    for users in members.values():
        rng.shuffle(users)
        num_test = round(test_share * len(users))
        if len(members) > 1:
            num_test = max(0, min(max(1, num_test), len(users) - 1))
        placed = [((place + 0.5) / len(users), user) for place, user in enumerate(users)]
        test += placed[:num_test]
        train += placed[num_test:]
    if not train or not test:
        raise ConfigError(
            f"{len(group_of)} users with a test share of {test_share} leave training or test without users. Give more users, or "
            "groups of two users or more."
        )
    return [user for _, user in sorted(train)], [user for _, user in sorted(test)]


def split_people(dataset: Dataset, data: DataArguments) -> DatasetDict:
    """Rows of real people as `train`, `validation` and `test`, see [`draw_people`]; the latter two share no prompt with training."""
    people = draw_people(one_value_per_user(dataset, "group"), data)
    splits = DatasetDict({split: rows_by_user(dataset, users) for split, users in people.items()})
    for split in people.keys() - {"train"}:
        new = are_new(splits["train"], splits[split], telling_fields(dataset))
        splits[split] = without(splits[split], new, "whose prompts occur in training")
    return splits


def draw_people(group_of: Mapping[str, Hashable], data: DataArguments) -> dict[str, list[str]]:
    """People of `train` and `test`, as [`split_users`] draws them, and of `validation`, unless `data.validation_share` is 0.

    At most `data.train_users`, `data.test_users` and `data.validation_users` are taken. Validation people are equally many of each group,
    as far as there are, of those whom training leaves over; where it takes all, of its own people, `data.validation_share` of each group.

    Raises:
        ConfigError: If there are fewer people than asked for.
    """
    people = dict(zip(("train", "test"), split_users(group_of, TEST_USER_SHARE, data.population_seed), strict=True))
    for split, users in people.items():
        number = getattr(data, f"{split}_users")
        if number is not None and number > len(users):
            raise ConfigError(f"`{split}_users` must be between 1 and {len(users)}, the people on that side; got {number}.")
    spare = [] if data.train_users is None else people["train"][data.train_users :]
    people = {"train": people["train"][: data.train_users], "test": people["test"][: data.test_users]}
    if data.validation_share:
        of_group: dict[Hashable, list[str]] = {group_of[user]: [] for user in people["train"]}
        for user in spare or people["train"]:
            if group_of[user] in of_group:
                of_group[group_of[user]].append(user)
        share = 1.0 if spare else data.validation_share
        most = data.validation_users // len(of_group)
        held_out = [user for users in of_group.values() for user in users[: min(most, int(share * len(users)))]]
        if held_out:
            people["train"] = [user for user in people["train"] if user not in set(held_out)]
            people["validation"] = held_out
    return people


def rows_by_user(dataset: Dataset, users: Iterable[str]) -> Dataset:
    """The rows of these users, each user's in the order in which they stand, one user after the other."""
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, user in enumerate(dataset["user"][:]):
        rows_of[user].append(row)
    return dataset.select(np.array([row for user in users for row in rows_of[user]], dtype=np.int64))


def drop_users_without_history(dataset: Dataset, min_pairs: int = 2) -> Dataset:
    """Without the users who have fewer than `min_pairs` pairs, or pairs on one prompt only; says how many, of which groups.

    A history holds no pair on the prompt that is judged, so that people need a second one, or a second pair where all have one prompt.
    """
    fields = telling_fields(dataset)
    rows_of: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for user, texts in zip(dataset["user"][:], texts_of(dataset, fields), strict=True):
        rows_of[user].append(texts)
    kept = [user for user, texts in rows_of.items() if len(texts) >= min_pairs and len(set(texts)) >= min(2, min_pairs)]
    if not kept:
        raise DataError(
            f"None of {len(rows_of)} users has {min_pairs} pairs on at least two prompts in one split. Give more pairs per user."
        )
    if len(kept) < len(rows_of):
        logger.info(
            "%d of %d users were dropped, who have fewer than %d pairs or pairs on one prompt only%s.",
            len(rows_of) - len(kept),
            len(rows_of),
            min_pairs,
            by_group(dataset, rows_of.keys() - set(kept)),
        )
    return rows_by_user(dataset, kept)


def texts_of(pairs: Dataset, fields: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The [`~trl_pafo.data.overlap.pair_texts`] of each pair."""
    return [pair_texts(row, fields) for row in read_rows(pairs, fields)]


def are_new(train: Dataset, test: Dataset, fields: tuple[str, ...]) -> NDArray[np.bool_]:
    """Whether the prompt of each test pair is in no training pair, be it in its history; of shape `(len(test),)`."""
    known = {text for texts in texts_of(train, fields) for text in texts}
    if "history" in train.column_names:
        past = (entry for row in read_rows(train, ["history"]) for entry in row["history"] or [])
        known |= {text for entry in past for text in pair_texts(entry, fields)}
    return np.array([known.isdisjoint(texts) for texts in texts_of(test, fields)], dtype=bool)


def without(test: Dataset, keep: NDArray[np.bool_], why: str) -> Dataset:
    """The test pairs that are kept; says how many are left out, and raises [`DataError`] if all are."""
    if not keep.any():
        raise DataError(
            f"None of {len(test)} test pairs is left without those {why}. Give test pairs of their own, or, for files and polis, choose "
            f"another way with --hold_out ({', '.join(WAYS)})."
        )
    if not keep.all():
        logger.warning("%d of %d test pairs are left out, %s.", len(test) - keep.sum(), len(test), why)
    return test.select(np.flatnonzero(keep))


def hold_out_prompts(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """The rows, and apart from them all rows of a random share of the prompts, or of the pairs where all have one prompt.

    At least one is held out unless the share is 0. None are held out, and it is said, where that would leave a group without rows.
    """
    fields = telling_fields(dataset)
    keys = texts_of(dataset, fields)
    prompts = sorted(set(keys), key=repr)  # the order in which the published splits were drawn
    random.Random(seed).shuffle(prompts)
    out = set(prompts[: max(1, round(share * len(prompts)))] if share else [])
    held_out = np.fromiter((key in out for key in keys), dtype=bool, count=len(keys))
    groups = np.array(dataset["group"][:], dtype=object) if "group" in dataset.column_names else np.array([])
    lost = set(groups) - set(groups[~held_out]) if len(groups) else set()
    if lost or held_out.all():
        logger.warning("No pairs are held out of training: that would leave %s without any.", ", ".join(sorted(lost)) or "it")
        return dataset, dataset.select([])
    # As arrays: a list of indices would be pickled number by number for the fingerprint.
    return dataset.select(np.flatnonzero(~held_out)), dataset.select(np.flatnonzero(held_out))


def users_in_order(dataset: Dataset) -> list[str]:
    """The users, each once, in the order in which they first occur."""
    return list(dict.fromkeys(dataset["user"][:]))


def check_test_groups(splits: DatasetDict) -> None:
    """Raise [`DataError`] if a test group has no training user."""
    known = set(splits["train"].unique("group"))
    unknown = sorted(set(splits["test"].unique("group")) - known)
    if unknown:
        raise DataError(
            f"The test split has users of the groups {', '.join(map(repr, unknown))}, of which training has none; it has "
            f"{', '.join(map(repr, sorted(known)))}. Add training pairs of these groups, or leave their test pairs out."
        )


def add_type_support(splits: DatasetDict) -> DatasetDict:
    """Add `support_rate`: the share of the training users that belong to the user's group.

    Raises:
        DataError: If a user is in several groups, or a test group has no training user.
    """
    check_test_groups(splits)
    population = list(one_value_per_user(splits["train"], "group").values())
    one_value_per_user(splits["test"], "group")
    rates = {split: support_rate_by_type(rows["group"][:], population) for split, rows in splits.items()}
    return DatasetDict({split: rows.add_column("support_rate", rates[split]) for split, rows in splits.items()})


def one_value_per_user(dataset: Dataset, column: str) -> dict[str, Any]:
    """Value of a column for each user; raises [`DataError`] if a user has several."""
    value_of: dict[str, Any] = {}
    for user, value in zip(dataset["user"][:], dataset[column][:], strict=True):
        if value_of.setdefault(user, value) != value:
            raise DataError(
                f"The user {user!r} has several values of `{column}` ({value_of[user]!r} and {value!r}); give each user one."
            )
    return value_of


def in_one_group(rows: Dataset) -> Dataset:
    """The rows with everybody in the group `"all"`, of support 1."""
    rows = rows.remove_columns([name for name in ("group", "support_rate") if name in rows.column_names])
    return rows.add_column("group", np.full(len(rows), ONE_GROUP)).add_column("support_rate", np.ones(len(rows)))


def agreement(dataset: Dataset) -> dict[str, float]:
    """Support rate of each user by leave-one-out agreement: pairs are the same if prompt and both responses are.

    NaN for users who share no pair with others, see [`~trl_pafo.data.groups.support_rate_by_agreement`].
    """
    number_of: dict[str, int] = {}
    names = ("prompt", "chosen", "rejected")
    keys = ([content_key(row[name]) for name in names] for row in read_rows(dataset, names))
    numbers = [[number_of.setdefault(key, len(number_of)) for key in row] for row in keys]
    prompt, chosen, rejected = np.array(numbers, dtype=np.int64).reshape(-1, 3).T
    # Which response of a pair comes first is all the same, as long as it does for everyone.
    labels = np.where(chosen < rejected, 1, -1)
    pairs = np.unique([prompt, np.minimum(chosen, rejected), np.maximum(chosen, rejected)], axis=1, return_inverse=True)[1]
    return support_rate_by_agreement(dataset["user"][:], pairs, labels)


def add_support_groups(
    splits: DatasetDict,
    support: Mapping[str, Mapping[str, float]],
    quantile: float | None = None,
    threshold: float | None = None,
    rate: str = "support",
) -> DatasetDict:
    """Add `support_rate` and `group`, majority or minority, cut at a threshold that the training users alone determine.

    `support` has for each split the rate of each user; users without one (NaN) are left out, and their number is said. The cut is
    as in [`~trl_pafo.data.groups.assign_groups`], the quantile that of the training users. With neither, the minority is the fifth
    of them with the lowest support. `rate` is what the rates are, of [`~trl_pafo.data.people.RATES`].

    Raises:
        ConfigError: If both quantile and threshold are given, or a group would have no training user.
        DataError: If no user of a split has a support rate, or they cannot be told apart.
    """
    if quantile is not None and threshold is not None:
        raise ConfigError("`minority_quantile` and `minority_threshold` both say where the groups are cut. Give one of them.")
    rated: dict[str, dict[str, float]] = {}
    for split, rows in splits.items():
        users = users_in_order(rows)
        rated[split] = {user: support[split][user] for user in users if not np.isnan(support[split][user])}
        if not rated[split]:
            raise DataError(
                f"No user of the {split} split judged a pair that another user judged too, so no support rate can "
                "be measured. Add a column `group` or `support_rate`, or find groups in the pairs with --infer_groups."
            )
        if len(rated[split]) < len(users):
            logger.warning(
                "%d of %d users of the %s split were dropped, since they share no pair with other users.",
                len(users) - len(rated[split]),
                len(users),
                split,
            )
    train_rates = list(rated["train"].values())
    if threshold is None:
        [threshold] = quantile_thresholds(train_rates, MINORITY_QUANTILE if quantile is None else quantile).tolist()
    built = DatasetDict()
    for split, rates in rated.items():
        group_of = dict(zip(rates, assign_groups(list(rates.values()), threshold=threshold).tolist(), strict=True))
        if split == "train" and len(set(group_of.values())) < 2:
            raise ConfigError(
                f"All training users fall into one group: support rates range from {min(train_rates):.3f} to {max(train_rates):.3f}. "
                "Move the threshold, or give a quantile."
            )
        rows = rows_by_user(splits[split], rates)
        rows = rows.add_column("group", np.array([group_of[user] for user in rows["user"][:]]))
        rows = rows.add_column("support_rate", np.array([rates[user] for user in rows["user"][:]]))
        built[split] = note(rows, groups=rate)
    return built


def is_cut_by_support(rows: Dataset) -> bool:
    """Whether [`add_support_groups`] made the groups, so that the data named none."""
    return "groups" in facts_of(rows)
