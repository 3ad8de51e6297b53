"""Which column of a table of judgments is what, and the values that stand there."""

import difflib
import json
import math
import re
import shlex
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset

from trl_pafo.data import HISTORY_FIELDS
from trl_pafo.data.checks import is_written_messages, kind_of
from trl_pafo.data.history import history_problem
from trl_pafo.data.labels import as_label
from trl_pafo.errors import ConfigError, DataError

FORMS = {
    "chosen and rejected": ("chosen", "rejected"),
    "A against B": ("response_a", "response_b", "preferred"),
    "ratings": ("response", "score"),
    "ranks": ("response", "rank"),
}
"""The forms of a table, and the columns that each needs beside `user` and `prompt`. The first that a table has counts."""

_ANSWERS = ("response", "answer", "completion", "output", "option", "conversation")
_WHO = ("user", "annotator", "participant", "respondent", "rater", "worker", "judge", "person")

NAMES: dict[str, tuple[str, ...]] = {
    "user": (*_WHO, *(f"{name}_id" for name in _WHO), "userid"),
    "prompt": ("prompt", "question", "query", "instruction"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "response_a": tuple(f"{name}{end}" for name in _ANSWERS for end in ("_a", "_1", "1", "_left")),
    "response_b": tuple(f"{name}{end}" for name in _ANSWERS for end in ("_b", "_2", "2", "_right")),
    "preferred": ("preferred", "preference", "winner", "choice", "vote"),
    "response": _ANSWERS[:4],
    "score": ("score", "rating"),
    "rank": ("rank", "ranking"),
    "group": ("group",),
    "support_rate": ("support_rate",),
    "history": ("history",),
    "time": ("time", "timestamp", "tstamp", "created_at"),
    "model_a": ("model_a",),
    "model_b": ("model_b",),
}
"""What a column can be, and the names by which it is recognized, in small letters with `_` for all else."""


def recognize_columns(names: list[str], given: dict[str, str], what: str, needs_user: bool) -> tuple[dict[str, str], str]:
    """The column of each role that the table has, and its form."""
    has = f"Its columns are {', '.join(names)}."
    if unknown := [role for role in given if role not in NAMES]:
        raise ConfigError(
            f"--columns names {', '.join(unknown)}, which is none of {', '.join(NAMES)}. Write --columns user=COLUMN."
        )
    for role, name in given.items():
        if name:
            check_column(name, names, what, f"--columns {role}={name}", f"--columns {role}={{}}")
    column_of = {role: name for role, name in given.items() if name}
    several = {}
    for role in NAMES:
        found = [name for name in names if plain(name) in NAMES[role] and name not in given.values()]
        found = [name for name in found if name == role] or found
        if role not in given and len(found) == 1:
            column_of[role] = found[0]
        elif role not in given and found:
            several[role] = found
    told = {role for role in column_of if role in given and any(role in needed for needed in FORMS.values())}
    form = next((form for form, needed in FORMS.items() if told <= set(needed) <= set(column_of)), None)
    unclear = "".join(f" {role} could be {' or '.join(found)}." for role, found in several.items())
    if form is None:
        known = f" Recognized: {used_columns(column_of)}." if column_of else ""
        ways = "; ".join(" ".join(f"{role}=COLUMN" for role in needed) for needed in FORMS.values())
        raise DataError(
            f"{what}: which columns hold the judgments cannot be told. {has}{known}{unclear} Name the others, with --columns user=COLUMN "
            f"prompt=COLUMN and one of: {ways}."
        )
    if needs_user and "user" not in column_of:
        raise DataError(f"{what}: no column says who judged. {has}{unclear} Name it: --columns user=COLUMN.")
    return column_of, form


def check_column(name: str, names: list[str], what: str, given: str, form: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = (
            f"Did you mean {form.format(shlex.quote(near[0]))}?" if near else f"Write {form.format('COLUMN')} with one of them."
        )
        raise DataError(f"{what} has no column {name!r} ({given}). Its columns are {', '.join(names)}. {hint}")


def used_columns(column_of: Mapping[str, str]) -> str:
    return ", ".join(f"{role}={name}" for role, name in column_of.items())


def plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def read_column(table: Dataset | pd.DataFrame, name: str, names: list[str]) -> list[Any]:
    if not isinstance(table, pd.DataFrame):
        return table[name][:]  # type: ignore[no-any-return]
    values = (v.tolist() if isinstance(v, np.ndarray) else v for v in table.iloc[:, names.index(name)])
    return [None if not isinstance(v, list | dict) and pd.isna(v) else v for v in values]


def parse_messages(values: list[Any], what: str) -> list[Any]:
    """Texts as they are, numbers as text; messages that stand as JSON in a column of texts are read, if all are such."""
    values = [as_label(v) if isinstance(v, int | float) else v for v in values]
    texts = [v for v in values if isinstance(v, str) and v.strip()]
    if not texts or not all(v.lstrip().startswith("[") for v in texts):
        return values
    with suppress(ValueError):
        parsed = {text: json.loads(text) for text in texts}
        if all(kind_of(v) == "messages" for v in parsed.values()):
            return [parsed.get(v, v) if isinstance(v, str) else v for v in values]
    if all(map(is_written_messages, texts)):
        raise DataError(
            f"{what} holds messages as text that is no JSON ({texts[0]!r:.80}), which would be read as it stands. Write each cell with json.dumps, "
            "or the table as JSON Lines or Parquet."
        )
    return values


def as_number(value: Any) -> float:
    """NaN for what is no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def rate_of(value: Any, place: str) -> float:
    rate = as_number(value)
    if not 0 <= rate <= 1:
        raise DataError(f"{place}: `support_rate` must be a number in [0, 1], got {value!r}.")
    return rate


def history_of(value: Any, place: str) -> list[dict[str, Any]]:
    if problem := history_problem(value):
        where = "; a CSV file cannot hold one (use JSON Lines or Parquet)" if isinstance(value, str) else ""
        raise DataError(f"{place}: {problem}{where}.")
    return [{name: entry[name] for name in HISTORY_FIELDS} for entry in value or []]
