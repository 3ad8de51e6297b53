"""Which past pairs a row shows: the user's own, or, for a counterfactual row, those of a user of another group."""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from trl_pafo.data import HISTORY_FIELDS
from trl_pafo.data.arrow import IntArray, Numbers, Rows, build_rows, column, joined, lengths_of, list_array
from trl_pafo.data.history import content_keys
from trl_pafo.data.label_columns import normalize_columns
from trl_pafo.errors import DataError

logger = logging.getLogger(__name__)


def attach_history(dataset: Dataset, num_history: int, past_only: bool = True, min_history: int = 1) -> Dataset:
    """Add the `history` column: for each row, the newest `num_history` other pairs of the same user, newest first.

    The rows of a user are taken to be in the order of time. A history never holds a pair with the prompt of its own row,
    so neither the evaluated pair nor its prompt's answer can leak into it.

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

    Returns:
        [`~datasets.Dataset`]: The rows with a history, unless `num_history` is 0.

    Raises:
        DataError: If a row has no user, or a user has no pair with a history.
    """
    dataset = normalize_columns(dataset, "The pairs", ["user"])
    if num_history == 0:
        return dataset.add_column("history", [[] for _ in range(len(dataset))])
    prompts, users = Numbers(), Numbers()
    read = [
        (prompts(content_keys(column(rows, "prompt"))), users(column(rows, "user").to_pylist()))
        for rows in Rows(dataset, ["prompt", "user"])
    ]
    prompt, user = (joined(parts) for parts in zip(*read, strict=True)) if read else (joined([]), joined([]))
    past = past_pairs(user, prompt, num_history, past_only)
    count = (past >= 0).sum(axis=1)
    most = np.zeros(len(users), np.int64)
    np.maximum.at(most, user, count)
    without = np.flatnonzero(most == 0)
    if len(without):
        raise DataError(
            f"{len(without)} of {len(users)} users have no history (the first: {users.values()[without[0]]!r}): each needs at least "
            "two pairs on different prompts. Leave these users out, or set num_history to 0."
        )
    kept = np.flatnonzero(count >= np.maximum(1, np.minimum(min_history, most))[user])
    if not len(kept):  # there are no rows
        return dataset.add_column("history", [])
    if len(kept) < len(user):
        logger.info("%d of %d pairs only serve as history: earlier ones of the same users.", len(user) - len(kept), len(user))
    shown = past[kept]
    plan = pa.table({"row": kept, "past": list_array(count[kept], pa.array(shown[shown >= 0]))})
    rows, pairs = Rows(dataset), Rows(dataset, HISTORY_FIELDS)

    def build(plan: pa.Table) -> pa.Table:
        past = column(plan, "past")
        entries = pairs.take(np.asarray(pc.list_flatten(past)))
        history = pa.StructArray.from_arrays([column(entries, name) for name in HISTORY_FIELDS], list(HISTORY_FIELDS))
        return rows.take(np.asarray(column(plan, "row"))).append_column("history", list_array(lengths_of(past), history))

    features = {**dataset.features, "history": [{name: dataset.features[name] for name in HISTORY_FIELDS}]}
    return build_rows(dataset, plan, build, features, "Attaching histories", times=1 + num_history)


def past_pairs(user: IntArray, prompt: IntArray, num_history: int, past_only: bool) -> IntArray:
    """Which rows make the history of each row: the newest first, -1 where there are no more.

    Args:
        user (`numpy.ndarray`):
            User of each row, of shape `(num_rows,)`, as numbers from 0 on.
        prompt (`numpy.ndarray`):
            Prompt of each row, of shape `(num_rows,)`, as numbers.
        num_history (`int`):
            k, the largest number of past pairs.
        past_only (`bool`):
            As in [`attach_history`].

    Returns:
        `numpy.ndarray`: Of shape `(num_rows, num_history)`. All rows are walked at once, one step for each past pair, so
        that the cost is linear in rows whatever a user's number of rows.
    """
    rows = np.argsort(user, kind="stable")  # a user's rows side by side, in the order of time
    user, prompt = user[rows], prompt[rows]
    here = np.arange(len(rows))
    first = _starts(user[1:] != user[:-1], here)
    last = np.searchsorted(user, user, side="right") - 1
    # The row before all those next to each other on one prompt: where a walk meets the prompt that it must not show, it goes on
    # there. Below `first`, there is none.
    other = _starts((user[1:] != user[:-1]) | (prompt[1:] != prompt[:-1]), here) - 1
    past = np.full((len(rows), num_history), -1, dtype=np.int64)
    walker, at, end = here, here, first  # walkers that are still under way, where they are, where their walk ends
    turned = np.zeros(len(rows), dtype=bool)
    for step in range(num_history):
        at = at - 1
        for _ in range(1 if past_only else 2):
            again = (at >= end) & (prompt[at] == prompt[walker])
            at = np.where(again, other[at], at)
            if not past_only:  # past the user's first row, on with the latest, down to the row after the walker's own
                turn = (at < end) & ~turned
                at, end = np.where(turn, last[walker], at), np.where(turn, walker + 1, end)
                turned |= turn
        on = at >= end
        walker, at, end, turned = walker[on], at[on], end[on], turned[on]
        past[rows[walker], step] = rows[at]
    return past


def _starts(breaks: np.ndarray, here: IntArray) -> IntArray:
    """Where the stretch that each place belongs to begins; `breaks` says between which places a new one does."""
    return np.maximum.accumulate(np.where(np.concatenate([[True], breaks])[: len(here)], here, 0))
