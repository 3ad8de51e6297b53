"""Which past pairs a row shows: the user's own, or, for a counterfactual row, those of a user of another group."""

import logging
import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Value, concatenate_datasets

from trl_pafo.data import HISTORY_FIELDS
from trl_pafo.data.arrow import IntArray, Numbers, Rows, build_rows, column, joined, lengths_of, list_array
from trl_pafo.data.history import content_keys, past_prompts
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


def counterfactual_rows(dataset: Dataset, groups: list[str], share: float, seed: int) -> Dataset:
    """`dataset` and, below it, its pairs under histories of users of the other groups. (Not from the paper.)

    A new row keeps prompt, chosen and rejected, takes history, `user` and `group` from a donor row of another group, and
    has `has_label` false: nobody of that group judged the pair, only that group's teacher can. A donor whose history
    holds the prompt of the pair is never taken.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with `prompt`, `chosen`, `rejected`, `user`, `group`, `history`; a history that is rendered already (in
            `chat_template_kwargs`) goes with it.
        groups (`list[str]`):
            The groups.
        share (`float`):
            Share of each group's rows that get a row under each other group, in [0, 1]. At 1, every row does.
        seed (`int`):
            Seed of the choice of rows and donors.
    """
    dataset = normalize_columns(dataset, "The pairs", ["group"])
    if share == 0:
        return dataset.add_column("has_label", [True] * len(dataset))
    rng = random.Random(seed)
    prompts = Numbers()
    own, seen, lengths = [], [], []
    for rows in Rows(dataset, ["history", "prompt"]):
        history = column(rows, "history")
        own.append(prompts(content_keys(column(rows, "prompt"))))
        seen.append(prompts(content_keys(past_prompts(history))))
        lengths.append(lengths_of(history))
    histories = _Histories(joined(seen).tolist(), [0, *np.cumsum(joined(lengths)).tolist()])
    keys = joined(own).tolist()
    of_group = np.array(dataset["group"][:], dtype=object)
    rows_of = {group: np.flatnonzero(of_group == group).tolist() for group in groups}
    sources: list[int] = []
    donors: list[int] = []
    for group in groups:
        picked = rng.sample(rows_of[group], round(share * len(rows_of[group])))
        for other in groups:
            if other == group:
                continue
            for row in picked:
                donor = _draw_donor(rng, rows_of[other], histories, keys[row])
                if donor is not None:
                    sources.append(row)
                    donors.append(donor)
    labeled = dataset.add_column("has_label", np.ones(len(dataset), dtype=bool))
    if not sources:
        return labeled
    taken_from_donor = ["history", "chat_template_kwargs", "user", "group", "support_rate"]
    pair_rows = Rows(dataset, [name for name in dataset.column_names if name not in taken_from_donor])
    donor_rows = Rows(dataset, [name for name in dataset.column_names if name in taken_from_donor])

    def build(plan: pa.Table) -> pa.Table:
        new = pair_rows.take(np.asarray(column(plan, "source")))
        donor = donor_rows.take(np.asarray(column(plan, "donor")))
        for name in donor.column_names:
            new = new.append_column(name, donor.column(name))
        return new.append_column("has_label", pa.repeat(False, len(new))).select(list(features))

    features = {**dataset.features, "has_label": Value("bool")}
    new = build_rows(
        dataset, pa.table({"source": sources, "donor": donors}), build, features, "Showing pairs under other histories"
    )
    return concatenate_datasets([labeled, new])


class _Histories:
    """Prompts, as numbers, in the history of each row."""

    def __init__(self, prompts: list[int], ends: list[int]):
        self._prompts = prompts
        self._ends = ends

    def fits(self, row: int, prompt: int) -> bool:
        """Whether a row has a history, and none of its pairs is on the prompt."""
        start, end = self._ends[row], self._ends[row + 1]
        return start < end and prompt not in self._prompts[start:end]


def _draw_donor(rng: random.Random, rows: list[int], histories: _Histories, prompt: int) -> int | None:
    for _ in range(50):
        donor = rng.choice(rows)
        if histories.fits(donor, prompt):
            return donor
    # Rare prompts in long histories: look at all before giving up.
    fitting = [row for row in rows if histories.fits(row, prompt)]
    return rng.choice(fitting) if fitting else None


def count_by_group(dataset: Dataset) -> Counter[str]:
    """Number of rows of each group, of those with a label; all under `"all"` without a `group` column."""
    if "has_label" in dataset.column_names:
        dataset = dataset.select(np.flatnonzero(dataset["has_label"][:]))
    if "group" not in dataset.column_names:
        return Counter(all=len(dataset))
    return Counter("no group" if group is None else group for group in dataset["group"][:])
