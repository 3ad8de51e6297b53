"""What must hold of a dataset before a model is loaded. Each failure is one clear error that names the fix."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset

from trl_pafo.data import HISTORY_FIELDS
from trl_pafo.data.arrow import IntArray, Rows, column, filled, is_list, is_list_of, is_text, joined, lengths_of, to_python
from trl_pafo.data.history import content_texts, history_column, history_problem, past_prompts
from trl_pafo.data.messages import is_message, message_text
from trl_pafo.errors import DataError, TeacherError

PAIR_COLUMNS = ("chosen", "rejected")
TEXTS = ("prompt", *PAIR_COLUMNS)
TOKEN_COLUMNS = ("chosen_ids", "rejected_ids")
LEGACY_TOKEN_COLUMNS = ("chosen_input_ids", "rejected_input_ids")
NUMBERS = ("margin", "teacher_margin")


def check_columns(columns: Iterable[str], needed: Iterable[str], what: str) -> None:
    """Raise [`DataError`] if a needed column is missing."""
    columns = list(columns)
    missing = [name for name in needed if name not in columns]
    if missing:
        raise DataError(
            f"{what} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; it has {', '.join(columns)}."
        )


def check_dataset(dataset: Any, argument: str) -> None:
    """Raise [`DataError`] unless it is one dataset, with or without an end.

    Args:
        dataset (`Any`):
            What a trainer was given.
        argument (`str`):
            As which argument, for the message.
    """
    if isinstance(dataset, Dataset | IterableDataset):
        return
    kind = type(dataset).__name__
    if isinstance(dataset, Mapping):
        names = list(map(str, dataset))
        raise DataError(
            f"`{argument}` is of type {kind}, with {'the splits ' + ', '.join(names) if names else 'no splits'}. Give one of them: "
            f"{argument}=dataset[{names[0] if names else 'train'!r}]."
        )
    raise DataError(
        f"`{argument}` is of type {kind}; it must be a Dataset or IterableDataset of the datasets library, as Dataset.from_list makes of "
        "a list of rows."
    )


def check_filled(dataset: Dataset, what: str) -> None:
    """Raise [`DataError`] if a row lacks what its tokens and its loss are made of, or some columns are texts and others messages.

    An empty prompt is no gap. The message names column and row.
    """
    if not len(dataset):
        raise DataError(f"{what} has no rows.")
    names = _read_of_rows(dataset.column_names, what)
    kinds = {name: dataset.features.arrow_schema.field(name).type for name in names if name in TEXTS}
    texts = [name for name, kind in kinds.items() if is_text(kind)]
    others = [name for name, kind in kinds.items() if not is_text(kind) and not pa.types.is_null(kind)]
    if texts and others:
        raise DataError(
            f"{what}: {', '.join(f'`{name}`' for name in texts)} hold texts and {', '.join(f'`{name}`' for name in others)} do not. "
            "Give all as texts or all as messages."
        )
    first = 0
    for table in Rows(dataset, names):
        for name in names:
            values = column(table, name)
            bad = np.flatnonzero(~np.asarray(values.is_valid()))
            if name in NUMBERS and not len(bad):
                bad = np.flatnonzero(~_are_numbers(values))
            if len(bad):
                raise _gap(what, first + int(bad[0]), name)
        first += len(table)


def filled_stream(dataset: IterableDataset, what: str) -> IterableDataset:
    """The same rows, each looked at as it comes by: see [`check_filled`]."""

    def look(row: dict[str, Any], number: int) -> dict[str, Any]:
        for name in _read_of_rows(row, what):
            if row[name] is None or (name in NUMBERS and not _is_number(row[name])):
                raise _gap(what, number, name)
        return row

    return dataset.map(look, with_indices=True, features=dataset.features)


def _read_of_rows(columns: Iterable[str], what: str) -> list[str]:
    """The columns that tokens and losses are made of."""
    columns = list(columns)
    needed = next((kind for kind in (TOKEN_COLUMNS, LEGACY_TOKEN_COLUMNS) if set(kind) <= set(columns)), PAIR_COLUMNS)
    check_columns(columns, needed, what)
    optional = ("prompt", "chat_template_kwargs", *NUMBERS) if needed == PAIR_COLUMNS else NUMBERS
    return [*needed, *(name for name in optional if name in columns)]


def _are_numbers(values: pa.Array) -> np.ndarray:
    """Which values of a column without gaps are finite numbers, told by a column operation where their type allows it."""
    if pa.types.is_floating(values.type) or pa.types.is_integer(values.type):
        return np.isfinite(values.to_numpy(zero_copy_only=False))
    return np.array([_is_number(value) for value in values.to_pylist()], dtype=bool)


def _is_number(value: Any) -> bool:
    value = value.item() if hasattr(value, "item") else value
    return isinstance(value, int | float) and math.isfinite(value)


def _gap(what: str, row: int, name: str) -> DataError:
    kind = "is no finite number" if name in NUMBERS else "is missing (None)"
    return DataError(f"{what}, row {row}: `{name}` {kind}. Fill it, or leave such rows out.")


def check_rows(dataset: Dataset, what: str) -> None:
    """Raise [`DataError`] if a row cannot be read as a preference pair: see [`check_texts`] and [`check_pairs`]."""
    check_columns(dataset.column_names, PAIR_COLUMNS, what)
    names = [name for name in TEXTS if name in dataset.column_names]
    first = 0
    for table in Rows(dataset, names):
        for row, texts in enumerate(zip(*(to_python(column(table, name)) for name in names), strict=True), start=first):
            check_texts(dict(zip(names, texts, strict=True)), f"{what}, row {row}")
        first += len(table)
    check_pairs(dataset, what)


def check_texts(row: Mapping[str, Any], place: str, responses: Sequence[str] = PAIR_COLUMNS) -> None:
    """Raise [`DataError`] if the prompt or a response of a row is missing, or some are texts and some messages.

    A row without a `prompt` is one whose responses begin with it.

    Args:
        row (`Mapping`):
            The row.
        place (`str`):
            Where it is, for the message.
        responses (`Sequence[str]`, *optional*, defaults to `("chosen", "rejected")`):
            Its responses.
    """
    names = [name for name in ("prompt", *responses) if name in row]
    kinds = {name: kind_of(row[name]) for name in names}
    for name, kind in kinds.items():
        if kind is None:
            raise DataError(
                f"{place}: `{name}` must be a text that is not empty, or messages with `role` and `content` (a text, text parts, or null "
                f"beside `tool_calls`); got "
                f"{row[name]!r:.200}."
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
            f"{place}: `prompt` is missing, and does not stand in {' and '.join(f'`{name}`' for name in responses)} either; the row has "
            f"{', '.join(map(str, row))}. Give the prompt."
        )


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
    first = 0
    for table in Rows(dataset, names):
        doubtful = first + _doubtful_pairs(column(table, names[0]), column(table, names[1]))
        first += len(table)
        if not len(doubtful):
            continue
        pairs = dataset.select_columns(list(names))[doubtful.tolist()]
        for position, chosen, rejected in zip(doubtful.tolist(), pairs[names[0]], pairs[names[1]], strict=True):
            if _is_empty(chosen) or _is_empty(rejected):
                side = "chosen" if _is_empty(chosen) else "rejected"
                raise DataError(f"{what}, row {position}: the {side} response is empty. Leave such rows out.")
            if chosen == rejected:
                raise DataError(
                    f"{what}, row {position}: chosen and rejected are identical, so the pair says nothing. Leave such rows out."
                )


def _doubtful_pairs(chosen: pa.Array, rejected: pa.Array) -> np.ndarray:
    """Numbers of the rows that have to be looked at: of all others a column operation tells that they are good."""
    if chosen.type != rejected.type:
        return np.arange(len(chosen))
    if is_list(chosen.type) and pa.types.is_integer(chosen.type.value_type):
        length, other = lengths_of(chosen), lengths_of(rejected)
        return np.flatnonzero((length == 0) | (other == 0) | (length == other))
    texts = [_last_texts(side) for side in (chosen, rejected)]
    if texts[0] is None or texts[1] is None:
        return np.arange(len(chosen))
    # A letter of any script, a digit or a sign of ASCII says that a text is not empty.
    good = pc.not_equal(*texts)
    for text in texts:
        good = pc.and_(good, pc.match_substring_regex(text, r"[!-~\pL]"))
    return np.flatnonzero(~np.asarray(pc.fill_null(good, False)))


def _last_texts(responses: pa.Array) -> pa.Array | None:
    """Each text, or that of the last message, missing where there is none; `None` if the column holds neither."""
    if is_text(responses.type):
        return responses
    if not is_list_of(responses.type, ["content"]):
        return None
    contents, lengths = pc.struct_field(pc.list_flatten(responses), "content"), lengths_of(responses)
    return contents.take(pa.array(np.cumsum(lengths) - 1, mask=lengths == 0)) if is_text(contents.type) else None


def _is_empty(response: Any) -> bool:
    if response is None or len(response) == 0:
        return True
    if isinstance(response, str):
        return not response.strip()
    last = response[-1]
    return isinstance(last, dict) and not message_text(last).strip()


def check_groups(dataset: Dataset, teacher_groups: Iterable[str], what: str) -> None:
    """Raise if groups, which no row lacks, and teachers do not match one to one."""
    check_columns(dataset.column_names, ["group"], what)
    present, given = set(dataset.unique("group")), set(teacher_groups)
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


def check_history(dataset: Dataset, what: str, fields: Sequence[str] = HISTORY_FIELDS, may_lack: bool = False) -> IntArray:
    """Raise [`DataError`] if a history cannot be shown, or, unless rows `may_lack` one, if there is none.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with `history`, or with `history` in `chat_template_kwargs`.
        what (`str`):
            Name of the dataset, for the error.
        fields (`Sequence[str]`, *optional*):
            What of a past pair is shown.
        may_lack (`bool`, *optional*, defaults to `False`):
            Whether rows may have none.

    Returns:
        `numpy.ndarray`: Number of past pairs of each row.
    """
    name = "history" if "history" in dataset.column_names else "chat_template_kwargs"
    lengths = []
    first = 0
    for table in Rows(dataset, [name]):
        histories = history_column(table)
        if is_list(histories.type) and _all_filled(histories, fields, may_lack):
            lengths.append(lengths_of(histories))
        else:
            whole = to_python(histories)
            for row, history in enumerate(whole):
                problem = history_problem(history, fields)
                if problem is None and not history and not may_lack:
                    problem = "the history is empty. Give the user past pairs, leave the row out, or set num_history to 0"
                if problem:
                    who = f" of user {dataset['user'][first + row]!r}" if "user" in dataset.column_names else ""
                    raise DataError(f"{what}, row {first + row}{who}: {problem}.")
            lengths.append(np.array([len(history or []) for history in whole], dtype=np.int64))
        first += len(table)
    return joined(lengths)


# Columns of pairs that the trainer looks at, beside the history.
_USED = ("prompt", "chosen", "rejected", "user", "group", "support_rate", "has_label", "margin", "tools", "chat_template_kwargs")


def check_personalized(has_history: bool, columns: Iterable[str], what: str) -> None:
    """Raise [`DataError`] if rows for teachers have no history, without which the student cannot tell the groups apart."""
    if has_history:
        return
    unused = [name for name in columns if name not in _USED]
    found = f"; the columns that are not used are {', '.join(unused)}" if unused else ""
    raise DataError(
        f"{what} has `teachers` and no histories{found}. Without the past pairs of its user, the student sees no difference "
        "between the groups and is one reward for all. Give the column `history`, or set num_history=0 if that is meant."
    )


def _all_filled(history: pa.Array, fields: Sequence[str], may_lack: bool) -> bool:
    """Whether a column operation tells that all rows can be shown; if not, they have to be looked at."""
    if not is_list_of(history.type, fields) or not (may_lack or filled(history).all()):
        return False
    entries = pc.list_flatten(history)
    values = [pc.struct_field(entries, name) for name in fields]
    return all(is_text(value.type) and np.asarray(pc.match_substring_regex(value, r"\S")).all() for value in values)


def check_apart(train: Dataset, test: Dataset) -> None:
    """Raise [`DataError`] if a test user or a test prompt is in training, be it in a history."""
    users = set(train["user"][:]) & set(test["user"][:])
    tested = {text for rows in Rows(test, ["prompt"]) for text in content_texts(column(rows, "prompt"))}
    shared: set[str] = set()
    for rows in Rows(train, ["prompt", "history"]):
        for prompts in (column(rows, "prompt"), past_prompts(column(rows, "history"))):
            shared |= tested.intersection(content_texts(prompts))
    if users or shared:
        raise DataError(
            f"Training and test share {len(users)} users and {len(shared)} prompts (histories included), so the test would not be "
            "one of people and prompts never trained on. Give splits that are apart."
        )


def _names(groups: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(groups))


def _s(groups: set[str]) -> str:
    return "s" if len(groups) > 1 else ""
