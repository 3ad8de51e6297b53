"""Any table of judgments to preference pairs, and a look at what it holds."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import pandas as pd
from datasets import Dataset

from trl_pafo.data.labels import label_names, normalize_labels
from trl_pafo.data.messages import content_key
from trl_pafo.data.sources.columns import (
    FORMS,
    check_column,
    history_of,
    parse_messages,
    rate_of,
    read_column,
    recognize_columns,
    used_columns,
)
from trl_pafo.data.sources.judgments import (
    OF_USER,
    PAIR,
    REWARDS,
    ROW,
    TEXTS,
    LeftOut,
    Scores,
    ab_pairs,
    cleaned,
    prompt_of,
    rated_pairs,
    sides_of,
)
from trl_pafo.data.sources.reading import columns_to_dataset
from trl_pafo.data.sources.times import order_of_times
from trl_pafo.errors import ConfigError, DataError


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

    The forms are those of [`~trl_pafo.data.sources.columns.FORMS`]. A rating or rank is compared with all others of the same user
    and prompt; the response with the higher score, or the lower rank, is chosen. Responses may be texts, messages, or
    conversations that begin with the prompt: what two of them have in common is then the prompt. Left out and counted are ties,
    rows without a judgment, user, group or text, pairs of equal responses, and pairs that one user gives twice in the same way.

    `columns` names the column for some of the keys of [`~trl_pafo.data.sources.columns.NAMES`], by an empty name where the table
    has none; the others are recognized. `preferred` has under `"a"`, `"b"` and `"tie"` values of the column `preferred` in place
    of those of [`~trl_pafo.data.sources.judgments.PREFERRED`]. `describe` are columns that say something of the users. Of what is
    `needed`, without `"user"` a table need not say who judged; without `"prompt"`, chosen and rejected texts may begin with it.
    `scores` are columns with rewards of models, which become [`~trl_pafo.data.sources.judgments.REWARDS`]: of each model one for
    the first response of a row (chosen, or A) and one for the second; where a row holds one response, one of each model. If
    `keep_others`, pairs have the other columns of their row too, and its number ([`~trl_pafo.data.sources.judgments.ROW`]), but
    where a row holds one response.

    Raises:
        ConfigError: If `columns` or `preferred` has a key that is none.
        DataError: If a column is not there or a needed one is not recognized (the message lists those of the table), a value is not
            understood, or no pair is left.
    """
    names = [str(name) for name in (table.columns if isinstance(table, pd.DataFrame) else table.column_names)]
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise DataError(f"{what} has two columns {twice[0]!r}. Give each a name of its own.")
    column_of, form = recognize_columns(names, dict(columns or {}), what, "user" in needed)
    for name in describe:
        check_column(name, names, what, f"--describe {name}", "--describe {}")
    if preferred and form != "A against B":
        raise ConfigError(
            f"--preferred_values: no effect on {what}, which holds {form}. Leave it out, or name the columns of A and B."
        )
    values = {role: read_column(table, name, names) for role, name in column_of.items()}

    def labels(name: str) -> list[Any]:
        named = None if isinstance(table, pd.DataFrame) else label_names(table.features[name])
        return normalize_labels(read_column(table, name, names), name, what, missing="keep", names=named)

    values |= {role: labels(column_of[role]) for role in {"user", "group"} & set(values)}
    for role in set(TEXTS) & set(values):
        values[role] = parse_messages(values[role], f"{what}: the column {column_of[role]}")
    for role, conform in (("support_rate", rate_of), ("history", history_of)):
        if role in values and not (keep_others and role == "history"):  # which models read as they are
            values[role] = [conform(value, f"{what}, row {row}") for row, value in enumerate(values[role])]
    rated = form in ("ratings", "ranks")
    starts = form == "chosen and rejected" and "prompt" not in needed
    if "prompt" not in values and (rated or not (starts or any(isinstance(v, list) for v in values[FORMS[form][0]]))):
        raise DataError(
            f"{what}: no column holds the prompt. Its columns are {', '.join(names)}. Name it: --columns prompt=COLUMN."
        )
    given = Scores(table, names, scores, 1 if rated else 2, what)
    order = order_of_times(values["time"], what, column_of["time"]) if "time" in values else range(len(values[FORMS[form][0]]))
    count = LeftOut(what)
    if form == "A against B":
        made = ab_pairs(values, order, count, sides_of(values, preferred or {}, what, column_of), given)
    elif form == "chosen and rejected":
        pair_of = lambda row: {name: values[name][row] for name in FORMS[form]} | prompt_of(values, row)  # noqa: E731
        made = ((row, pair_of(row) | given.of_pair(row)) for row in order)
    else:
        made = rated_pairs(values, order, count, FORMS[form][1], given)
    rows = list(cleaned(made, values, count, given))
    if not rows:
        raise DataError(
            f"{what}: no pair is left of {len(order)} rows. Left out: {count.sentence()}. Correct the table, or --columns."
        )
    kept = [*(name for name in PAIR if name in rows[0]), *(name for name in ("user", *OF_USER, REWARDS) if name in rows[0])]
    built = {name: [row[name] for row in rows] for name in kept}
    used = {role: name for role, name in column_of.items() if role in ("user", "prompt", "time", *OF_USER, *FORMS[form])}
    left = [name for name in names if name not in {*used.values(), *describe, *scores}]
    keep_others &= not rated
    if keep_others:
        numbers = [row[ROW] for row in rows]
        others = {name: read_column(table, name, names) for name in left if name not in kept}
        built |= {ROW: numbers} | {name: [column[row] for row in numbers] for name, column in others.items()}
    pairs = columns_to_dataset(built, what)
    described = {name: list(zip(values["user"], labels(name), strict=True)) for name in describe}
    notes = {"described": describe, "scores": scores, "also" if keep_others else "not used": left}
    return Table(pairs, "time" in column_of, _look(what, form, used, notes, len(order), pairs, count), described)


def _look(
    what: str,
    form: str,
    used: Mapping[str, str],
    notes: Mapping[str, Collection[str]],
    num_rows: int,
    pairs: Dataset,
    count: LeftOut,
) -> list[str]:
    """What the table holds, in lines for people."""
    of_user = sorted(Counter(pairs["user"][:]).values()) if "user" in pairs.column_names else []
    prompts = {content_key(prompt) for prompt in pairs["prompt"][:]} if "prompt" in pairs.column_names else ()
    return [
        f"{what}: {num_rows:,} rows of {form}; columns {used_columns(used)}"
        + "".join(f"; {note}: {', '.join(columns)}" for note, columns in notes.items() if columns),
        f"{what}: "
        + (f"{len(of_user):,} users, {len(prompts):,} prompts, {len(pairs):,} pairs; " if of_user else f"{len(pairs):,} pairs")
        + (f"pairs a user: {of_user[0]:,} to {of_user[-1]:,}, median {median(of_user):g}" if of_user else ""),
        *([f"{what}: left out: {found}"] if (found := count.sentence()) else []),
        *([f"{what}: {count.both_ways:,} pairs are given both ways round by one user; they stay"] if count.both_ways else []),
    ]
