"""Any table of judgments to preference pairs: which column is what, which form the table has, what is left out and why."""

import difflib
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from datasets import Dataset

from trl_pafo.data import HISTORY_FIELDS
from trl_pafo.data.checks import check_texts, is_written_messages, kind_of
from trl_pafo.data.history import history_problem
from trl_pafo.data.labels import as_label, label_names, normalize_labels
from trl_pafo.data.messages import as_messages, content_key
from trl_pafo.data.sources.reading import columns_to_dataset
from trl_pafo.data.sources.times import order_of_times
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

PREFERRED = {
    "a": ("a", "1", "left", "model_a", "response_a", "answer_a", "first"),
    "b": ("b", "2", "right", "model_b", "response_b", "answer_b", "second"),
    "tie": ("tie", "tie_bothbad", "both_bad", "bothbad", "both", "neither", "equal", "same", "draw"),
}
"""Values of `preferred` that are understood, in small letters with `_` for all else."""

_PAIR = ("prompt", "chosen", "rejected")
_TEXTS = (*_PAIR, "response_a", "response_b", "response")
_NO_TEXT = "rows without a prompt or a response"
_OF_USER = ("group", "support_rate", "history")

# Named as no column of a table, which may be called "rewards" or "row".
REWARDS = "trl_pafo_rewards"
"""Column of the rewards that a table brings: for each model of `scores`, that of the chosen and that of the rejected response."""
ROW = "trl_pafo_row"
"""Column of the number of the row that a pair is from."""


class Table(NamedTuple):
    """Pairs with `prompt`, `chosen`, `rejected`, `user` and, where the table has them, `group`, `support_rate`, `history`; whether they
    are in the order of a column of times; what there is and what was left out, in lines for people; and for each described
    column the user and the value of each row, `None` where one is missing."""

    pairs: Dataset
    timed: bool
    look: list[str]
    described: dict[str, list[tuple[str | None, str | None]]]


def read_table(
    table: Dataset | pd.DataFrame,
    what: str,
    columns: Mapping[str, str] | None = None,
    preferred: Mapping[str, Sequence[str]] | None = None,
    describe: Collection[str] = (),
    *,
    needed: Collection[str] = ("user", "prompt"),
    scores: Sequence[str] = (),
    keep_others: bool = False,
) -> Table:
    """Preference pairs of a table with a row a judgment, or a row a rated response; a user's are in the order of time unless a
    column gives it.

    The forms are those of [`FORMS`]. A rating or rank is compared with all others of the same user and prompt; the response with
    the higher score, or the lower rank, is chosen. Responses may be texts, messages, or conversations that begin with the prompt:
    what two of them have in common is then the prompt. Left out and counted are ties, rows without a judgment, user, group or text,
    pairs of equal responses, and pairs that one user gives twice in the same way.

    `columns` names the column for some of the keys of [`NAMES`], by an empty name where the table has none; the others are
    recognized. `preferred` has under `"a"`, `"b"` and `"tie"` values of the column `preferred` in place of those of [`PREFERRED`].
    `describe` are columns that say something of the users.
    Of what is `needed`, without `"user"` a table need not say who judged; without `"prompt"`, chosen and rejected texts may begin with
    it. `scores` are columns with rewards of models, which become [`REWARDS`]: of each model one for the first response of a row (chosen,
    or A) and one for the second; where a row holds one response, one of each model. If `keep_others`, pairs have the other columns of
    their row too, and its number ([`ROW`]), but where a row holds one response.

    Raises:
        ConfigError: If `columns` or `preferred` has a key that is none.
        DataError: If a column is not there or a needed one is not recognized (the message lists those of the table), a value is not
            understood, or no pair is left.
    """
    names = [str(name) for name in (table.columns if isinstance(table, pd.DataFrame) else table.column_names)]
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise DataError(f"{what} has two columns {twice[0]!r}. Give each a name of its own.")
    column_of, form = _recognize(names, dict(columns or {}), what, "user" in needed)
    for name in describe:
        _check_column(name, names, what, f"--describe {name}", "--describe {}")
    if preferred and form != "A against B":
        raise ConfigError(
            f"--preferred_values: no effect on {what}, which holds {form}. Leave it out, or name the columns of A and B."
        )
    values = {role: _read_column(table, name, names) for role, name in column_of.items()}

    def labels(name: str) -> list[Any]:
        named = None if isinstance(table, pd.DataFrame) else label_names(table.features[name])
        return normalize_labels(_read_column(table, name, names), name, what, missing="keep", names=named)

    values |= {role: labels(column_of[role]) for role in {"user", "group"} & set(values)}
    for role in set(_TEXTS) & set(values):
        values[role] = _parse_messages(values[role], f"{what}: the column {column_of[role]}")
    for role, conform in (("support_rate", _rate), ("history", _history)):
        if role in values and not (keep_others and role == "history"):  # which models read as they are
            values[role] = [conform(value, f"{what}, row {row}") for row, value in enumerate(values[role])]
    rated = form in ("ratings", "ranks")
    starts = form == "chosen and rejected" and "prompt" not in needed
    if "prompt" not in values and (rated or not (starts or any(isinstance(v, list) for v in values[FORMS[form][0]]))):
        raise DataError(
            f"{what}: no column holds the prompt. Its columns are {', '.join(names)}. Name it: --columns prompt=COLUMN."
        )
    given = _Scores(table, names, scores, 1 if rated else 2, what)
    order = order_of_times(values["time"], what, column_of["time"]) if "time" in values else range(len(values[FORMS[form][0]]))
    count = _LeftOut(what)
    if form == "A against B":
        made = _ab_pairs(values, order, count, _sides(values, preferred or {}, what, column_of), given)
    elif form == "chosen and rejected":
        pair_of = lambda row: {name: values[name][row] for name in FORMS[form]} | _prompt_of(values, row)  # noqa: E731
        made = ((row, pair_of(row) | given.of_pair(row)) for row in order)
    else:
        made = _rated_pairs(values, order, count, FORMS[form][1], given)
    rows = list(_cleaned(made, values, count, given))
    if not rows:
        raise DataError(
            f"{what}: no pair is left of {len(order)} rows. Left out: {count.sentence()}. Correct the table, or --columns."
        )
    kept = [*(name for name in _PAIR if name in rows[0]), *(name for name in ("user", *_OF_USER, REWARDS) if name in rows[0])]
    built = {name: [row[name] for row in rows] for name in kept}
    used = {role: name for role, name in column_of.items() if role in ("user", "prompt", "time", *_OF_USER, *FORMS[form])}
    left = [name for name in names if name not in {*used.values(), *describe, *scores}]
    keep_others &= not rated
    if keep_others:
        numbers = [row[ROW] for row in rows]
        others = {name: _read_column(table, name, names) for name in left if name not in kept}
        built |= {ROW: numbers} | {name: [column[row] for row in numbers] for name, column in others.items()}
    pairs = columns_to_dataset(built, what)
    described = {name: list(zip(values["user"], labels(name), strict=True)) for name in describe}
    notes = {"described": describe, "scores": scores, "also" if keep_others else "not used": left}
    return Table(pairs, "time" in column_of, _look(what, form, used, notes, len(order), pairs, count), described)


def _recognize(names: list[str], given: dict[str, str], what: str, needs_user: bool) -> tuple[dict[str, str], str]:
    """The column of each role that the table has, and its form."""
    has = f"Its columns are {', '.join(names)}."
    if unknown := [role for role in given if role not in NAMES]:
        raise ConfigError(
            f"--columns names {', '.join(unknown)}, which is none of {', '.join(NAMES)}. Write --columns user=COLUMN."
        )
    for role, name in given.items():
        if name:
            _check_column(name, names, what, f"--columns {role}={name}", f"--columns {role}={{}}")
    column_of = {role: name for role, name in given.items() if name}
    several = {}
    for role in NAMES:
        found = [name for name in names if _plain(name) in NAMES[role] and name not in given.values()]
        found = [name for name in found if name == role] or found
        if role not in given and len(found) == 1:
            column_of[role] = found[0]
        elif role not in given and found:
            several[role] = found
    told = {role for role in column_of if role in given and any(role in needed for needed in FORMS.values())}
    form = next((form for form, needed in FORMS.items() if told <= set(needed) <= set(column_of)), None)
    unclear = "".join(f" {role} could be {' or '.join(found)}." for role, found in several.items())
    if form is None:
        known = f" Recognized: {_used(column_of)}." if column_of else ""
        ways = "; ".join(" ".join(f"{role}=COLUMN" for role in needed) for needed in FORMS.values())
        raise DataError(
            f"{what}: which columns hold the judgments cannot be told. {has}{known}{unclear} Name the others, with --columns user=COLUMN "
            f"prompt=COLUMN and one of: {ways}."
        )
    if needs_user and "user" not in column_of:
        raise DataError(f"{what}: no column says who judged. {has}{unclear} Name it: --columns user=COLUMN.")
    return column_of, form


def _check_column(name: str, names: list[str], what: str, given: str, form: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = (
            f"Did you mean {form.format(shlex.quote(near[0]))}?" if near else f"Write {form.format('COLUMN')} with one of them."
        )
        raise DataError(f"{what} has no column {name!r} ({given}). Its columns are {', '.join(names)}. {hint}")


def _used(column_of: Mapping[str, str]) -> str:
    return ", ".join(f"{role}={name}" for role, name in column_of.items())


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _read_column(table: Dataset | pd.DataFrame, name: str, names: list[str]) -> list[Any]:
    if not isinstance(table, pd.DataFrame):
        return table[name][:]  # type: ignore[no-any-return]
    values = (v.tolist() if isinstance(v, np.ndarray) else v for v in table.iloc[:, names.index(name)])
    return [None if not isinstance(v, list | dict) and pd.isna(v) else v for v in values]


def _parse_messages(values: list[Any], what: str) -> list[Any]:
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


def _as_number(value: Any) -> float:
    """NaN for what is no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _rate(value: Any, place: str) -> float:
    rate = _as_number(value)
    if not 0 <= rate <= 1:
        raise DataError(f"{place}: `support_rate` must be a number in [0, 1], got {value!r}.")
    return rate


def _history(value: Any, place: str) -> list[dict[str, Any]]:
    if problem := history_problem(value):
        where = "; a CSV file cannot hold one (use JSON Lines or Parquet)" if isinstance(value, str) else ""
        raise DataError(f"{place}: {problem}{where}.")
    return [{name: entry[name] for name in HISTORY_FIELDS} for entry in value or []]


class _LeftOut:
    """Counts what is left out by reason, with the first row of each; and pairs that one user gave both ways round."""

    def __init__(self, what: str):
        self.what, self.both_ways = what, 0
        self._number: Counter[str] = Counter()
        self._first: dict[str, int] = {}

    def __call__(self, reason: str, row: int) -> None:
        self._number[reason] += 1
        self._first[reason] = min(row, self._first.get(reason, row))

    def sentence(self) -> str:
        return "; ".join(f"{n:,} {reason} (the first: row {self._first[reason]})" for reason, n in self._number.items())


class _Scores:
    """The rewards that columns of a table give, of `each` columns a model."""

    def __init__(self, table: Dataset | pd.DataFrame, names: list[str], columns: Sequence[str], each: int, what: str):
        for name in columns:
            _check_column(name, names, what, f"--score_columns {name}", "--score_columns {}")
        if len(columns) % each:
            raise ConfigError(
                f"--score_columns needs two columns a model, that of the first response (chosen, or A) and that of the second; got "
                f"{', '.join(columns)}."
            )
        self.what, self._names, self._each = what, columns, each
        self._values = {name: _read_column(table, name, names) for name in columns}

    def of_pair(self, first: int, second: int | None = None, *, swapped: bool = False) -> dict[str, Any]:
        """Where the rewards of the chosen and the rejected response of a pair stand: `(column, row)` for each model."""
        if not self._names:
            return {}
        rows = (first, first if second is None else second)
        places = [
            [(self._names[n + side * (self._each - 1)], rows[side]) for side in ((1, 0) if swapped else (0, 1))]
            for n in range(0, len(self._names), self._each)
        ]
        return {REWARDS: places}

    def read(self, places: list[list[tuple[str, int]]]) -> list[list[float]]:
        return [[self._number(name, row) for name, row in sides] for sides in places]

    def _number(self, name: str, row: int) -> float:
        value = self._values[name][row]
        number = _as_number(value)
        if not math.isfinite(number):
            raise DataError(
                f"{self.what}, row {row}: the score {name} is {value!r}, which is no finite number. Fill it, or leave such rows out for "
                "all models."
            )
        return number


_Rows = Iterable[tuple[int, dict[str, Any]]]


def _prompt_of(values: Mapping[str, list[Any]], row: int) -> dict[str, Any]:
    return {"prompt": values["prompt"][row]} if "prompt" in values else {}


def _ab_pairs(
    values: Mapping[str, list[Any]], order: Iterable[int], count: _LeftOut, read: Callable[[int], str | None], given: _Scores
) -> _Rows:
    for row in order:
        side = read(row)
        if side in ("a", "b"):
            liked, other = (values[f"response_{name}"][row] for name in ("ab" if side == "a" else "ba"))
            pair = {"chosen": liked, "rejected": other} | _prompt_of(values, row)
            yield row, pair | given.of_pair(row, swapped=side == "b")
        else:
            count("ties" if side else "rows without an answer", row)


def _sides(
    values: Mapping[str, list[Any]], preferred: Mapping[str, Sequence[str]], what: str, column_of: Mapping[str, str]
) -> Callable[[int], str | None]:
    """From a row to `"a"`, `"b"`, `"tie"`, or `None` without an answer."""
    if unknown := set(preferred) - set(PREFERRED):
        raise ConfigError(
            f"--preferred_values names {', '.join(sorted(unknown))}. Write a=VALUE b=VALUE and, where there are ties, tie=VALUE."
        )
    if len({"a", "b"} & set(preferred)) == 1:
        raise ConfigError("--preferred_values must name both sides: --preferred_values a=VALUE b=VALUE.")
    side_of = {value: side for side, known in {**PREFERRED, **preferred}.items() for value in known}
    own_words = "a" not in preferred
    if own_words:
        side_of |= {_plain(column_of[f"response_{side}"]): side for side in "ab"}
    side_of |= {value: side for side, known in preferred.items() for value in known}  # rather than a tie that is understood

    def read(row: int) -> str | None:
        value = as_label(values["preferred"][row])
        if value is None:
            return None
        models = {values[f"model_{s}"][row]: s for s in "ab" if own_words and f"model_{s}" in values}
        if values.keys() >= {"model_a", "model_b"} and len(models) < 2:  # a model beside itself
            models = {}
        side = side_of.get(value) or models.get(value) or side_of.get(_plain(value))
        as_text = [s for s in "ab" if own_words and values[f"response_{s}"][row] == value]
        side = side or next(iter(as_text), None)
        if side is None or (as_text and side not in as_text):  # answers of their own may be "2" and "1"
            name = column_of["preferred"]
            found = sorted({str(as_label(v)) for v in values["preferred"]} - {"None"})
            raise DataError(
                f"{what}, row {row}: {name} is {value!r}, and which response that is cannot be told. The column holds "
                f"{', '.join(found[:10])}. Say which is which: --preferred_values a=VALUE b=VALUE tie=VALUE."
            )
        return side

    return read


def _rated_pairs(values: Mapping[str, list[Any]], order: Iterable[int], count: _LeftOut, name: str, given: _Scores) -> _Rows:
    """All pairs of different scores (or ranks) among those of one user and prompt."""
    rated: dict[tuple[Any, str], list[tuple[int, float]]] = {}
    for row in order:
        value, prompt = as_label(values[name][row]), values["prompt"][row]
        if value is None or _is_empty(prompt):
            count(f"rows without a {name}" if value is None else _NO_TEXT, row)
            continue
        number = _as_number(value)
        if not math.isfinite(number):  # "nan" is read as a number, which is neither above another nor equal to it
            raise DataError(f"{count.what}, row {row}: the {name} {value!r} is no number. Correct it, or leave it empty.")
        user = values["user"][row] if "user" in values else None
        rated.setdefault((user, content_key(prompt)), []).append((row, number if name == "score" else -number))
    for entries in rated.values():
        if len(entries) == 1:
            count("responses that are the only one of their user and prompt", entries[0][0])
        for (one, first), (two, second) in combinations(entries, 2):
            if first == second:
                count("ties", one)
                continue
            liked, other = (one, two) if first > second else (two, one)
            pair = {"chosen": values["response"][liked], "rejected": values["response"][other]}
            yield one, pair | _prompt_of(values, one) | given.of_pair(liked, other)


def _is_empty(value: Any) -> bool:
    return not value or (isinstance(value, str) and not value.strip())


def _cleaned(rows: _Rows, values: Mapping[str, list[Any]], count: _LeftOut, given: _Scores) -> Iterator[dict[str, Any]]:
    """The rows that are pairs of somebody, with what is known of the user; all as messages where some are."""
    conversational = any(isinstance(value, list) for role in _TEXTS if role in values for value in values[role])
    parts = _PAIR if conversational or "prompt" in values else _PAIR[1:]
    seen: set[tuple[str, ...]] = set()
    for row, pair in rows:
        pair |= {ROW: row} | {name: values[name][row] for name in ("user", *_OF_USER) if name in values}
        talks = [pair["chosen"], pair["rejected"]]
        if all(kind_of(talk) == "messages" and talk[0]["role"] != "assistant" for talk in talks):
            same = next((n for n, (one, two) in enumerate(zip(*talks, strict=False)) if one != two), min(map(len, talks)))
            pair |= {"prompt": talks[0][:same], "chosen": talks[0][same:], "rejected": talks[1][same:]}
        empty = any(_is_empty(pair.get(name)) for name in parts)
        if "user" in pair and pair["user"] is None:
            count("pairs without a user", row)
        elif "group" in pair and pair["group"] is None:
            count("pairs of users without a group", row)
        elif talks[0] == talks[1] and not _is_empty(talks[0]):
            count("pairs of two equal responses", row)
        elif empty:
            count(_NO_TEXT, row)
        else:
            if conversational:
                pair |= {name: as_messages(pair[name], "user" if name == "prompt" else "assistant") for name in parts}
            check_texts({name: pair[name] for name in parts}, f"{count.what}, row {row}")
            if "user" in pair:  # without, each pair is another person's
                user, prompt, chosen, rejected = pair["user"], *(content_key(pair.get(name, "")) for name in _PAIR)
                if (user, prompt, chosen, rejected) in seen and "history" not in pair:
                    count("pairs that their user gives twice", row)
                    continue
                seen.add((user, prompt, chosen, rejected))
                count.both_ways += (user, prompt, rejected, chosen) in seen
            yield pair | ({REWARDS: given.read(pair[REWARDS])} if REWARDS in pair else {})


def _look(
    what: str,
    form: str,
    used: Mapping[str, str],
    notes: Mapping[str, Collection[str]],
    num_rows: int,
    pairs: Dataset,
    count: _LeftOut,
) -> list[str]:
    """What the table holds, in lines for people."""
    of_user = sorted(Counter(pairs["user"][:]).values()) if "user" in pairs.column_names else []
    prompts = {content_key(prompt) for prompt in pairs["prompt"][:]} if "prompt" in pairs.column_names else ()
    return [
        f"{what}: {num_rows:,} rows of {form}; columns {_used(used)}"
        + "".join(f"; {note}: {', '.join(columns)}" for note, columns in notes.items() if columns),
        f"{what}: "
        + (f"{len(of_user):,} users, {len(prompts):,} prompts, {len(pairs):,} pairs; " if of_user else f"{len(pairs):,} pairs")
        + (f"pairs a user: {of_user[0]:,} to {of_user[-1]:,}, median {median(of_user):g}" if of_user else ""),
        *([f"{what}: left out: {found}"] if (found := count.sentence()) else []),
        *([f"{what}: {count.both_ways:,} pairs are given both ways round by one user; they stay"] if count.both_ways else []),
    ]
