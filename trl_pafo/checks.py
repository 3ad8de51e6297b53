"""What must hold of a dataset before a model is loaded. Each failure is one clear error that names the fix."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from datasets import Dataset

from trl_pafo.errors import DataError, TeacherError
from trl_pafo.history import HISTORY_FIELDS, content_text

PAIR_COLUMNS = ("chosen", "rejected")
TOKEN_COLUMNS = ("chosen_ids", "rejected_ids")


def check_columns(columns: Iterable[str], needed: Iterable[str], what: str) -> None:
    """Raise [`DataError`] if a needed column is missing."""
    columns = list(columns)
    missing = [name for name in needed if name not in columns]
    if missing:
        raise DataError(
            f"{what} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; it has {', '.join(columns)}."
        )


def check_pairs(dataset: Dataset, what: str) -> None:
    """Raise [`DataError`] if a pair is empty, or its chosen and rejected responses are the same."""
    if not len(dataset):
        raise DataError(f"{what} has no rows.")
    names = TOKEN_COLUMNS if set(TOKEN_COLUMNS) <= set(dataset.column_names) else PAIR_COLUMNS
    check_columns(dataset.column_names, names, what)
    position = 0
    for batch in dataset.select_columns(list(names)).iter(batch_size=10_000):
        for chosen, rejected in zip(batch[names[0]], batch[names[1]], strict=True):
            if _is_empty(chosen) or _is_empty(rejected):
                side = "chosen" if _is_empty(chosen) else "rejected"
                raise DataError(f"{what}, row {position}: the {side} response is empty. Leave such rows out.")
            if chosen == rejected:
                raise DataError(
                    f"{what}, row {position}: chosen and rejected are identical, so the pair says nothing. Leave such rows out."
                )
            position += 1


def _is_empty(response: Any) -> bool:
    if response is None or len(response) == 0:
        return True
    if isinstance(response, str):
        return not response.strip()
    last = response[-1]
    return isinstance(last, dict) and not str(last.get("content") or "").strip()


def check_groups(dataset: Dataset, teacher_groups: Iterable[str], what: str) -> None:
    """Raise if groups and teachers do not match one to one."""
    check_columns(dataset.column_names, ["group"], what)
    present = set(dataset.unique("group"))
    if None in present or "" in present:
        raise DataError(f"{what}: some rows have no group. Give each row the group of its user, or leave it out.")
    given = set(teacher_groups)
    if present - given:
        raise TeacherError(
            f"No teacher for the group{_s(present - given)} {_names(present - given)} of {what.lower()}; teachers were given for "
            f"{_names(given)}. Add the missing teacher, or leave out the group's pairs."
        )
    if given - present:
        raise TeacherError(
            f"{what} has no pairs of the group{_s(given - present)} {_names(given - present)}, for which a teacher was given; it "
            f"has the groups {_names(present)}. Correct the name, or leave the teacher out."
        )


def check_teacher_margins(dataset: Dataset, what: str) -> None:
    """Raise [`DataError`] if a `teacher_margin` is missing, NaN or infinite."""
    try:
        margins = np.asarray(dataset.with_format("numpy")["teacher_margin"][:], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what}: `teacher_margin` must hold one number a row ({error}).") from error
    bad = np.flatnonzero(~np.isfinite(margins))
    if len(bad):
        raise DataError(
            f"{what}: {len(bad)} of {len(margins)} values of `teacher_margin` are NaN, infinite or missing (the first in row "
            f"{bad[0]}). Compute them again, or leave these rows out."
        )


def check_history(dataset: Dataset, what: str) -> None:
    """Raise [`DataError`] if a row has no history, or an entry of one lacks a field."""
    names = ["history", *(["user"] if "user" in dataset.column_names else [])]
    position = 0
    for batch in dataset.select_columns(names).iter(batch_size=10_000):
        for row, history in enumerate(batch["history"]):
            who = f" of user {batch['user'][row]!r}" if "user" in batch else ""
            if not history:
                raise DataError(
                    f"{what}, row {position}{who}: the history is empty. Give the user past pairs, leave the row out, or set "
                    "num_history to 0."
                )
            for entry in history:
                missing = [name for name in HISTORY_FIELDS if not isinstance(entry, dict) or not entry.get(name)]
                if missing:
                    raise DataError(f"{what}, row {position}{who}: an entry of the history lacks {', '.join(missing)}.")
            position += 1


def check_apart(train: Dataset, test: Dataset) -> None:
    """Raise [`DataError`] if a test user or a test prompt is in training, be it in a history."""
    users = set(train["user"]) & set(test["user"])
    seen = {content_text(prompt) for prompt in train["prompt"]}
    seen |= {content_text(entry["prompt"]) for history in train["history"] for entry in history}
    shared = seen & {content_text(prompt) for prompt in test["prompt"]}
    if users or shared:
        raise DataError(
            f"Training and test share {len(users)} users and {len(shared)} prompts (histories included), so the test would not be "
            "one of people and prompts never trained on. Give splits that are apart."
        )


def _names(groups: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(groups))


def _s(groups: set[str]) -> str:
    return "s" if len(groups) > 1 else ""
