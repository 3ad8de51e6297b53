"""Rows of judgments to pairs of a preferred and another response: A against B, ratings and ranks; what is left out, and why."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd
from datasets import Dataset

from trl_pafo.data.checks import check_texts, kind_of
from trl_pafo.data.labels import as_label
from trl_pafo.data.messages import as_messages, content_key
from trl_pafo.data.sources.columns import as_number, check_column, plain, read_column
from trl_pafo.errors import ConfigError, DataError

PREFERRED = {
    "a": ("a", "1", "left", "model_a", "response_a", "answer_a", "first"),
    "b": ("b", "2", "right", "model_b", "response_b", "answer_b", "second"),
    "tie": ("tie", "tie_bothbad", "both_bad", "bothbad", "both", "neither", "equal", "same", "draw"),
}
"""Values of `preferred` that are understood, in small letters with `_` for all else."""

PAIR = ("prompt", "chosen", "rejected")
TEXTS = (*PAIR, "response_a", "response_b", "response")
_NO_TEXT = "rows without a prompt or a response"
OF_USER = ("group", "support_rate", "history")

# Named as no column of a table, which may be called "rewards" or "row".
REWARDS = "trl_pafo_rewards"
"""Column of the rewards that a table brings: for each model of `scores`, that of the chosen and that of the rejected response."""
ROW = "trl_pafo_row"
"""Column of the number of the row that a pair is from."""


class LeftOut:
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


class Scores:
    """The rewards that columns of a table give, of `each` columns a model."""

    def __init__(self, table: Dataset | pd.DataFrame, names: list[str], columns: Sequence[str], each: int, what: str):
        for name in columns:
            check_column(name, names, what, f"--score_columns {name}", "--score_columns {}")
        if len(columns) % each:
            raise ConfigError(
                f"--score_columns needs two columns a model, that of the first response (chosen, or A) and that of the second; got "
                f"{', '.join(columns)}."
            )
        self.what, self._names, self._each = what, columns, each
        self._values = {name: read_column(table, name, names) for name in columns}

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
        number = as_number(value)
        if not math.isfinite(number):
            raise DataError(
                f"{self.what}, row {row}: the score {name} is {value!r}, which is no finite number. Fill it, or leave such rows out for "
                "all models."
            )
        return number


_Rows = Iterable[tuple[int, dict[str, Any]]]


def prompt_of(values: Mapping[str, list[Any]], row: int) -> dict[str, Any]:
    return {"prompt": values["prompt"][row]} if "prompt" in values else {}


def ab_pairs(
    values: Mapping[str, list[Any]], order: Iterable[int], count: LeftOut, read: Callable[[int], str | None], given: Scores
) -> _Rows:
    for row in order:
        side = read(row)
        if side in ("a", "b"):
            liked, other = (values[f"response_{name}"][row] for name in ("ab" if side == "a" else "ba"))
            pair = {"chosen": liked, "rejected": other} | prompt_of(values, row)
            yield row, pair | given.of_pair(row, swapped=side == "b")
        else:
            count("ties" if side else "rows without an answer", row)


def sides_of(
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
        side_of |= {plain(column_of[f"response_{side}"]): side for side in "ab"}
    side_of |= {value: side for side, known in preferred.items() for value in known}  # rather than a tie that is understood

    def read(row: int) -> str | None:
        value = as_label(values["preferred"][row])
        if value is None:
            return None
        models = {values[f"model_{s}"][row]: s for s in "ab" if own_words and f"model_{s}" in values}
        if values.keys() >= {"model_a", "model_b"} and len(models) < 2:  # a model beside itself
            models = {}
        side = side_of.get(value) or models.get(value) or side_of.get(plain(value))
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


def rated_pairs(values: Mapping[str, list[Any]], order: Iterable[int], count: LeftOut, name: str, given: Scores) -> _Rows:
    """All pairs of different scores (or ranks) among those of one user and prompt."""
    rated: dict[tuple[Any, str], list[tuple[int, float]]] = {}
    for row in order:
        value, prompt = as_label(values[name][row]), values["prompt"][row]
        if value is None or _is_empty(prompt):
            count(f"rows without a {name}" if value is None else _NO_TEXT, row)
            continue
        number = as_number(value)
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
            yield one, pair | prompt_of(values, one) | given.of_pair(liked, other)


def _is_empty(value: Any) -> bool:
    return not value or (isinstance(value, str) and not value.strip())


def cleaned(rows: _Rows, values: Mapping[str, list[Any]], count: LeftOut, given: Scores) -> Iterator[dict[str, Any]]:
    """The rows that are pairs of somebody, with what is known of the user; all as messages where some are."""
    conversational = any(isinstance(value, list) for role in TEXTS if role in values for value in values[role])
    parts = PAIR if conversational or "prompt" in values else PAIR[1:]
    seen: set[tuple[str, ...]] = set()
    for row, pair in rows:
        pair |= {ROW: row} | {name: values[name][row] for name in ("user", *OF_USER) if name in values}
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
                user, prompt, chosen, rejected = pair["user"], *(content_key(pair.get(name, "")) for name in PAIR)
                if (user, prompt, chosen, rejected) in seen and "history" not in pair:
                    count("pairs that their user gives twice", row)
                    continue
                seen.add((user, prompt, chosen, rejected))
                count.both_ways += (user, prompt, rejected, chosen) in seen
            yield pair | ({REWARDS: given.read(pair[REWARDS])} if REWARDS in pair else {})
