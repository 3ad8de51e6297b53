"""What must hold of a dataset before a model is loaded. Each failure is one clear error that names the fix."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset

from trl_pafo.data import HISTORY_FIELDS
from trl_pafo.data.history import history_of, history_problem
from trl_pafo.data.messages import is_message, message_text
from trl_pafo.data.overlap import pair_texts, telling_fields
from trl_pafo.data.rows import read_rows
from trl_pafo.errors import DataError, TeacherError

PAIR_COLUMNS = ("chosen", "rejected")
TEXTS = ("prompt", *PAIR_COLUMNS)
RESPONSES = ("response", *PAIR_COLUMNS)
TOKEN_COLUMNS = ("chosen_ids", "rejected_ids")
LEGACY_TOKEN_COLUMNS = ("chosen_input_ids", "rejected_input_ids")
NUMBERS = ("margin", "teacher_margin")
_WRITTEN_MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](role|content)['"]\s*:""")
_FROM_USERS = "Of rows that only name their `user`, `trl-pafo prepare` makes groups and histories."


def check_columns(columns: Iterable[str], needed: Iterable[str], what: str, fix: str = "") -> None:
    """Raise [`DataError`] if a needed column is missing; `fix` is a sentence on where it comes from."""
    columns = list(columns)
    missing = [name for name in needed if name not in columns]
    if missing:
        raise DataError(
            f"{what} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; it has {', '.join(columns)}."
            + (f" {fix}" if fix else "")
        )


def check_dataset(dataset: Any, argument: str) -> None:
    """Raise [`DataError`], which names the `argument` of the trainer, unless it is one dataset, with or without an end."""
    if not isinstance(dataset, Dataset | IterableDataset):
        splits = f", with the splits {', '.join(map(str, dataset))}" if isinstance(dataset, Mapping) else ""
        raise DataError(
            f"`{argument}` is of type {type(dataset).__name__}{splits}; it must be one Dataset or IterableDataset of the datasets library: "
            "one of several splits, or what Dataset.from_list makes of a list of rows."
        )


def check_filled(dataset: Dataset, what: str) -> None:
    """Raise [`DataError`] if a row lacks what its tokens and its loss are made of, or some columns are texts and others messages.

    An empty prompt is no gap. The message names column and row.
    """
    if not len(dataset):
        raise DataError(f"{what} has no rows.")
    names = _read_of_rows(dataset.column_names, what)
    kinds = {name: getattr(dataset.features[name], "dtype", None) for name in names if name in TEXTS}
    texts = [name for name, kind in kinds.items() if kind in ("string", "large_string")]
    others = [name for name in kinds if name not in texts and kinds[name] != "null"]
    if texts and others:
        raise DataError(
            f"{what}: {', '.join(f'`{name}`' for name in texts)} hold texts and {', '.join(f'`{name}`' for name in others)} do "
            "not. Give all as texts or all as messages."
        )
    # A column without gaps is not read, but for numbers, which may be NaN.
    names = [name for name in names if name in NUMBERS or dataset.data.column(name).null_count]
    for number, row in enumerate(read_rows(dataset, names) if names else ()):
        _check_gaps(row, names, number, what)


def filled_stream(dataset: IterableDataset, what: str) -> IterableDataset:
    """The same rows, each checked when it is read, by the rule of [`check_filled`]."""

    def look(row: dict[str, Any], number: int) -> dict[str, Any]:
        _check_gaps(row, _read_of_rows(row, what), number, what)
        return row

    return dataset.map(look, with_indices=True, features=dataset.features)


def _read_of_rows(columns: Iterable[str], what: str) -> list[str]:
    """The columns that tokens and losses are made of."""
    columns = list(columns)
    needed = next((kind for kind in (TOKEN_COLUMNS, LEGACY_TOKEN_COLUMNS) if set(kind) <= set(columns)), PAIR_COLUMNS)
    check_columns(columns, needed, what)
    optional = ("prompt", "chat_template_kwargs", *NUMBERS) if needed == PAIR_COLUMNS else NUMBERS
    return [*needed, *(name for name in optional if name in columns)]


def _check_gaps(row: Mapping[str, Any], names: Iterable[str], number: int, what: str) -> None:
    for name in names:
        value = row[name].item() if hasattr(row[name], "item") else row[name]
        if name in NUMBERS and not (isinstance(value, int | float) and math.isfinite(value)):
            raise DataError(f"{what}, row {number}: `{name}` is not a finite number. Fill it, or leave such rows out.")
        if value is None:
            raise DataError(f"{what}, row {number}: `{name}` is missing (None). Fill it, or leave such rows out.")


def check_texts(row: Mapping[str, Any], place: str, responses: Sequence[str] = PAIR_COLUMNS) -> None:
    """Raise [`DataError`], which names the `place`, if the prompt or a response of a row is missing, some are texts and some
    messages, or all are messages written as text.

    A row without a `prompt` is one whose responses begin with it.
    """
    names = [name for name in ("prompt", *responses) if name in row]
    kinds = {name: kind_of(row[name]) for name in names}
    for name, kind in kinds.items():
        if kind is None:
            raise DataError(
                f"{place}: `{name}` must be a text that is not empty, or messages with `role` and `content` (a text, text parts, "
                f"or null beside `tool_calls`); got "
                f"{row[name]!r:.200}."
            )
    # All of them: one alone may be a text about messages.
    if all(kind == "text" and is_written_messages(row[name]) for name, kind in kinds.items()):
        raise DataError(
            f"{place}: {' and '.join(f'`{name}`' for name in names)} are messages that are written as text, which would be read as it stands "
            f"({row[names[-1]]!r:.80}). Give lists of messages, in JSON Lines or Parquet."
        )
    if len(set(kinds.values())) > 1:
        found = ", ".join(f"`{name}` {kind}" for name, kind in kinds.items())
        raise DataError(f"{place}: {found}. Give all as texts or all as messages.")
    given = [row[name] for name in responses]
    if "prompt" not in row and not (
        all(response[0]["role"] != "assistant" for response in given)
        if isinstance(given[0], list)
        else len(given) > 1 and len({response.split()[0] for response in given}) == 1
    ):
        raise DataError(
            f"{place}: `prompt` is missing, and is not the start of {' and '.join(f'`{name}`' for name in responses)} either; the "
            f"row has {', '.join(map(str, row))}. Give the prompt."
        )


def check_responses(row: Mapping[str, Any], place: str) -> None:
    """Raise [`DataError`] if a row to score has no `response`, nor `chosen` and `rejected`, or its texts cannot be read: [`check_texts`]."""
    if "response" not in row and not set(PAIR_COLUMNS) <= set(row):
        raise DataError(f"{place} has neither `response` nor `chosen` and `rejected`; it has {', '.join(row) or 'nothing'}.")
    check_texts(row, place, [name for name in RESPONSES if name in row])
    if not isinstance(row.get("chat_template_kwargs") or {}, dict):
        raise DataError(f"{place}: `chat_template_kwargs` must be an object, the variables of the chat template.")


def is_written_messages(text: str) -> bool:
    """Whether a text looks like a list of messages, as JSON or as Python prints it."""
    return _WRITTEN_MESSAGES.match(text) is not None


def kind_of(value: Any) -> str | None:
    """`"text"` or `"messages"`; `None` for what is neither, or empty."""
    if isinstance(value, str) and value.strip():
        return "text"
    if isinstance(value, list) and value and all(map(is_message, value)):
        return "messages"
    return None


def check_pairs(dataset: Dataset, what: str) -> None:
    """Raise [`DataError`] if a pair is empty, or its chosen and rejected responses are the same."""
    if not len(dataset):
        raise DataError(f"{what} has no rows.")
    names = TOKEN_COLUMNS if set(TOKEN_COLUMNS) <= set(dataset.column_names) else PAIR_COLUMNS
    check_columns(dataset.column_names, names, what)
    for number, row in enumerate(read_rows(dataset, names)):
        for name in names:
            if _is_empty(row[name]):
                side = name.removesuffix("_ids")
                raise DataError(f"{what}, row {number}: the {side} response is empty. Leave such rows out.")
        if row[names[0]] == row[names[1]]:
            raise DataError(
                f"{what}, row {number}: chosen and rejected are identical, so the pair says nothing. Leave such rows out."
            )


def _is_empty(response: Any) -> bool:
    if response is None or len(response) == 0:
        return True
    if isinstance(response, str):
        return not response.strip()
    last = response[-1]
    return isinstance(last, dict) and not message_text(last).strip()


def check_groups(dataset: Dataset, teacher_groups: Iterable[str], what: str) -> None:
    """Raise if groups, which no row lacks, and teachers do not match one to one."""
    check_columns(dataset.column_names, ["group"], what, f"Add the group of each row's user. {_FROM_USERS}")
    present, given = set(dataset.unique("group")), set(teacher_groups)
    if present != given:
        raise TeacherError(
            f"{what} has pairs of the groups {_names(present)}, and there are teachers for {_names(given)}. Give one teacher to each of "
            "these groups, by its name, or leave out the pairs of a group."
        )


def _names(groups: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(groups)))


def check_group_numbers(dataset: Dataset, column: str, what: str) -> list[str]:
    """The groups that a column names, which holds a finite number for each of them in every row: `{"majority": 0.5, "minority": -1.0}`.

    Raises:
        DataError: If it holds something else; the message names the first such row.
    """
    names: list[str] = []
    for number, row in enumerate(read_rows(dataset, [column])):
        values = row[column]
        if not isinstance(values, dict) or not all(isinstance(v, int | float) and math.isfinite(v) for v in values.values()):
            raise DataError(
                f'{what}, row {number}: `{column}` must hold a finite number for each group, such as {{"majority": 0.5, "minority": '
                f"-1.0}}, got {values!r:.200}. Fill it, or leave such rows out."
            )
        names = names or sorted(values)
    return names


def check_history(dataset: Dataset, what: str, fields: Sequence[str] = HISTORY_FIELDS, may_lack: bool = False) -> int:
    """Raise [`DataError`] if a history cannot be shown with these fields, or, unless rows `may_lack` one, if there is none.

    The rows have `history`, or `history` in `chat_template_kwargs`. Returns the number of rows that have one.
    """
    num_with = 0
    name = "history" if "history" in dataset.column_names else "chat_template_kwargs"
    for number, row in enumerate(read_rows(dataset, [name])):
        history = history_of(row)
        problem = history_problem(history, fields)
        if problem is None and not history and not may_lack:
            problem = "the history is empty. Give the user past pairs, leave the row out, or set num_history to 0"
        if problem:
            raise DataError(f"{what}, row {number}: {problem}.")
        num_with += bool(history)
    return num_with


def check_personalized(has_history: bool, columns: Iterable[str], what: str) -> None:
    """Raise [`DataError`] if rows for teachers have no history, without which the student cannot tell the groups apart."""
    if not has_history:
        raise DataError(
            f"{what} has `teachers` and no histories; its columns are {', '.join(columns)}. Without the past pairs of its user, "
            "the student sees no difference between the groups and has one reward for all. Add the column `history`, or set "
            f"num_history=0 if that is intended. {_FROM_USERS}"
        )


def check_apart(train: Dataset, test: Dataset, hold_out: str = "users_and_prompts") -> None:
    """Raise [`DataError`] if what is held out is in training, be it in a history, or a test pair is in its own history.

    Where all pairs have one prompt, responses take the place of prompts. `hold_out` says what must be new, as in
    [`~trl_pafo.data.sources.holding_out.hold_out`]: users and prompts, `"users"` alone, or, with `"pairs"`, the prompts that a user
    is tested on to this user. With `"prompts"`, validation pairs of training users, which training rows may show as past.
    """
    fields = telling_fields(train, test)
    users = set(train["user"][:]) & set(test["user"][:])
    known = hold_out == "pairs"

    def parts(user: str, pair: Mapping[str, Any]) -> list[tuple[str, ...]]:
        """What must not stand on both sides."""
        texts = pair_texts(pair, fields)
        return [(user, *texts)] if known else [(text,) for text in texts]

    tested: set[tuple[str, ...]] = set()
    num_own = 0
    for row in read_rows(test, ["user", *fields, *(["history"] if "history" in test.column_names else [])]):
        tested.update(parts(row["user"], row))
        own = set(pair_texts(row, fields))
        num_own += any(own.intersection(pair_texts(past, fields)) for past in row.get("history") or [])
    shared: set[tuple[str, ...]] = set()
    for row in read_rows(train, ["user", *fields, "history"]) if hold_out != "users" else ():
        for pair in (row, *(row["history"] or [] if hold_out != "prompts" else [])):
            shared |= tested.intersection(parts(row["user"], pair))
    if shared or (users and hold_out not in ("pairs", "prompts")):
        raise DataError(
            f"Training and test share {len(users)} users and {len(shared)} prompts (histories included), but test users and "
            f"prompts must be new ({hold_out}). Give splits that share neither."
        )
    if num_own:
        raise DataError(
            f"{num_own} test rows have a history with their own prompt, whose answer it would tell. Leave such past pairs out."
        )
