"""Which past pairs of its user a row shows."""

import logging
from collections import Counter, defaultdict
from itertools import chain, islice
from typing import Any

import numpy as np
from datasets import Dataset, Features
from datasets.fingerprint import Hasher

from trl_pafo.data import HISTORY_FIELDS
from trl_pafo.data.groups import by_group
from trl_pafo.data.label_columns import normalize_columns
from trl_pafo.data.overlap import PairNumbers, telling_fields
from trl_pafo.data.rows import read_rows, rows_of_batch
from trl_pafo.errors import DataError
from trl_pafo.storage.versions import __version__

logger = logging.getLogger(__name__)

_Key = tuple[int, ...]


def attach_history(
    dataset: Dataset,
    num_history: int,
    past_only: bool = True,
    min_history: int = 1,
    missing: str = "error",
    pool: Dataset | None = None,
) -> Dataset:
    """Add the `history` column: for each row, the newest `num_history` other pairs of the same user, newest first.

    The rows of a user are taken to be in the order of time. A history never holds a pair with the prompt of its own row,
    so neither the evaluated pair nor its prompt's answer can leak into it. Where all rows have one prompt, such as the topic of a
    conversation, it holds no pair with a response of its own row.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with `prompt`, `chosen`, `rejected`, `user`.
        num_history (`int`):
            k, the largest number of past pairs a row gets.
        past_only (`bool`, *optional*, defaults to `True`):
            Take only earlier pairs of the user. If `False`, the search goes on cyclically with the user's latest pairs
            (leave one out), so that a training set loses no rows.
        min_history (`int`, *optional*, defaults to `1`):
            Rows with fewer past pairs only serve as history and are left out; for a user who never has so many, rows with
            as many as the user ever has are kept.
        missing (`str`, *optional*, defaults to `"error"`):
            What becomes of a user who has no history at all: `"error"`, `"drop"`, which is logged by group, or `"keep"`, with an empty one.
        pool ([`~datasets.Dataset`], *optional*):
            The pairs that histories are made of, in place of the rows themselves; all of them are taken as earlier.

    Returns:
        [`~datasets.Dataset`]: The rows with a history, unless `num_history` is 0.

    Raises:
        DataError: If a row has no user, a user has no pair with a history and is not to be dropped or kept, or nobody is left.
    """
    dataset = normalize_columns(dataset, "The pairs", ["user"])
    users = dataset.with_format(None)["user"][:]
    shown = dataset if pool is None else normalize_columns(pool, "The past pairs", ["user"])
    fields = telling_fields(dataset, shown)
    numbers = PairNumbers(fields)
    keys = list(map(numbers, read_rows(dataset, fields)))
    of_pool = None if pool is None else (shown.with_format(None)["user"][:], [*map(numbers, read_rows(shown, fields))])
    past = _past_pairs(users, keys, num_history, past_only, of_pool)
    most: defaultdict[str, int] = defaultdict(int)
    for user, rows in zip(users, past, strict=True):
        most[user] = max(most[user], len(rows))
    without = [user for user, number in most.items() if not number]
    lost = set(without) if num_history and missing == "drop" else set()
    if without and num_history and (missing == "error" or len(lost) == len(most)):
        raise DataError(
            f"{len(without)} of {len(most)} users have no history (the first: {without[0]!r}): each needs at least "
            "two pairs on different prompts, or with different responses where all pairs have one prompt. Leave these users out, or set "
            "num_history to 0."
        )
    least = max(1, min_history)
    kept = [row for row, user in enumerate(users) if user not in lost and len(past[row]) >= min(least, most[user])]
    if lost:
        logger.info("%d of %d users are left out, who have no history%s.", len(lost), len(most), by_group(dataset, lost))
    only_shown = sum(user not in lost for user in users) - len(kept)
    if only_shown:
        logger.info("%d of %d pairs only serve as history: earlier ones of the same users.", only_shown, len(users))
    pairs = shown.select_columns(list(HISTORY_FIELDS)).with_format(None)

    def show(_: Any, numbers: list[int]) -> dict[str, list[list[dict[str, str]]]]:
        wanted = [past[kept[number]] for number in numbers]
        entries = iter(rows_of_batch(pairs[list(chain(*wanted))]))
        return {"history": [list(islice(entries, len(rows))) for rows in wanted]}

    rows = dataset.select(np.array(kept, dtype=np.int64))
    return rows.map(
        show,
        batched=True,
        with_indices=True,
        features=Features({**rows.features, "history": [{name: pairs.features[name] for name in HISTORY_FIELDS}]}),
        new_fingerprint=Hasher.hash((rows._fingerprint, shown._fingerprint, num_history, past_only, __version__)),
        desc="Attaching histories",
    )


def _past_pairs(
    users: list[str], keys: list[_Key], num_history: int, past_only: bool, pool: tuple[list[str], list[_Key]] | None
) -> list[list[int]]:
    """Numbers of the rows, or of those of the pool, that make the history of each row, the newest first."""
    pool_users, pool_keys = pool or (users, keys)
    rows_of: defaultdict[str, list[int]] = defaultdict(list)
    for row, user in enumerate(pool_users):
        rows_of[user].append(row)
    past, seen = [], Counter[str]()
    for user, key in zip(users, keys, strict=True):
        rows, own = rows_of[user], set(key)
        place = len(rows) if pool else seen[user]
        seen[user] += 1
        latest = () if past_only else range(len(rows) - 1, place, -1)
        others = (rows[other] for other in chain(range(place - 1, -1, -1), latest))
        past.append(list(islice((other for other in others if own.isdisjoint(pool_keys[other])), num_history)))
    return past
