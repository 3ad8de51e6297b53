"""Who is in which group, how sure that is, and what else a table says of its users. (Not from the paper.)"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict, Value

from trl_pafo.storage.files import write_text

GROUPS = "groups.csv"
"""File beside prepared data and in the folder of an audit: a row a user."""
COLUMNS = ("user", "group", "posterior", "support_rate", "pairs", "split")
"""Its columns; then those that `describe` names."""
ABOUT = "about"
"""Column of rows: of the user, the value of each column that `describe` names, `None` where it has none."""
SEVERAL, UNKNOWN, OTHERS = "several values", "not said", "others"
RATES = {"support": "support rate", "agreement": "agreement with others"}
"""Where groups are cut at a threshold: of what."""

MOST_VALUES = 8
"""Numbers with more values are cut at their quartiles, of texts with more the most frequent ones are counted."""
_SURE = 0.9


def add_about(splits: DatasetDict, value_of: Mapping[str, Mapping[str, str]]) -> DatasetDict:
    """The rows with the column `about`, from the value of each user under each name."""
    feature = {name: Value("string") for name in value_of}
    return DatasetDict(
        {
            split: rows.add_column(
                ABOUT,
                [{name: of_user.get(user) for name, of_user in value_of.items()} for user in rows["user"][:]],  # type: ignore[arg-type]
                feature=feature,
            )
            for split, rows in splits.items()
        }
    )


def people_of(splits: Mapping[str, Dataset], posterior: Mapping[str, float] | None = None) -> pd.DataFrame:
    """A row a user, in the order in which they first occur, with the columns [`COLUMNS`] and those that are described.

    `pairs` counts all of the user's, `split` names where they are (`train+validation`).

    Args:
        splits (`Mapping`):
            Rows with `user`, `group`, `support_rate` and, where users are described, `about`.
        posterior (`Mapping`, *optional*):
            The probability that a user belongs to its group, of those whose group was found in pairs.
    """
    frames = []
    for name, rows in splits.items():
        wanted = [column for column in ("user", "group", "support_rate", ABOUT) if column in rows.column_names]
        frames.append(rows.select_columns(wanted).to_pandas().assign(split=name))
    by_user = pd.concat(frames).groupby("user", sort=False)
    people = by_user.agg(
        group=("group", "first"),
        support_rate=("support_rate", "first"),
        pairs=("group", "size"),
        split=("split", lambda names: "+".join(names.unique())),
    ).reset_index()
    people["posterior"] = people["user"].map(posterior or {}).astype(np.float64)
    people = people[list(COLUMNS)]
    if any(ABOUT in frame for frame in frames):
        about = pd.DataFrame(by_user[ABOUT].first().tolist(), dtype=object)
        about.columns = [f"{name} (described)" if name in COLUMNS else name for name in about]
        people = pd.concat([people, about], axis=1)
    return people


def write_people(people: pd.DataFrame, folder: Path) -> None:
    """Write `groups.csv`: four digits, and nothing where a value is not known."""
    write_text(folder / GROUPS, people.to_csv(index=False, float_format="%.4f", lineterminator="\n"))


def read_people(folder: Path) -> pd.DataFrame:
    """What [`write_people`] wrote; texts stay as they are, and one that is empty is not known."""
    numbers = {"posterior": np.float64, "support_rate": np.float64, "pairs": np.int64}
    missing = {name: [""] for name in ("posterior", "support_rate")}
    path = folder / GROUPS
    names = pd.read_csv(path, nrows=0).columns
    types = {name: numbers.get(name, str) for name in names}
    people = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=missing)  # type: ignore[arg-type]
    described = people[described_columns(people)].astype(object)
    people[list(described)] = described.where(described != "", None)
    return people


def described_columns(people: pd.DataFrame) -> list[str]:
    """The columns of the table of judgments that were carried along."""
    return [str(name) for name in people if name not in COLUMNS]


def groups_by_size(people: pd.DataFrame) -> list[str]:
    """The groups, the one with the most users first, of equal ones by name."""
    sizes = people["group"].value_counts()
    return sorted(sizes.index, key=lambda name: (-sizes[name], name))


def crossed(people: pd.DataFrame, column: str) -> pd.DataFrame:
    """How many users of each group have which value of a described column: values as rows, groups as columns, the largest first.

    Numbers of more than [`MOST_VALUES`] values are cut at the quartiles of all users; of more texts the most frequent ones stay, and the rest
    is `"others"`.
    """
    values = people[column]
    said = values[values.notna() & (values != SEVERAL)]
    numbers = pd.to_numeric(said, errors="coerce")
    if len(said) and numbers.notna().all():
        if numbers.nunique() > MOST_VALUES:
            part = pd.qcut(numbers, 4, labels=False, duplicates="drop")
            ends = numbers.groupby(part).agg(["min", "max"])
            said = part.map({n: f"{low:g} to {high:g}" if low < high else f"{low:g}" for n, low, high in ends.itertuples()})
        order = said.iloc[np.argsort(numbers.to_numpy(), kind="stable")].unique().tolist()
    else:
        order = said.value_counts().sort_index().sort_values(ascending=False, kind="stable").index.tolist()
        if len(order) > MOST_VALUES:
            order = order[: MOST_VALUES - 1]
            said = said.where(said.isin(order), OTHERS)
    shown = said.reindex(values.index).fillna(values.where(values == SEVERAL, UNKNOWN))
    counts = pd.crosstab(shown, people["group"])
    order = [*order, *(name for name in (OTHERS, SEVERAL, UNKNOWN) if name in counts.index and name not in order)]
    return counts.loc[order, groups_by_size(people)]


def crossing_sentences(people: pd.DataFrame) -> list[str]:
    """What the users of each group are, a sentence a described column."""
    sentences = []
    for column in described_columns(people):
        parts = []
        for group, of_group in crossed(people, column).items():
            most = of_group[of_group > 0].sort_values(ascending=False, kind="stable")
            values = ", ".join(f"{value} ({number:,})" for value, number in most.items())
            parts.append(f"of {most.sum():,} {group} users: {values}")
        sentences.append(f"{column} {'; '.join(parts)}.")
    return sentences


def sureness_sentence(people: pd.DataFrame, groups_from: str) -> str:
    """How sure it is that people are where they are.

    Args:
        people (`pandas.DataFrame`):
            What [`people_of`] returned.
        groups_from (`str`):
            Where the groups come from: `"data"`, one of [`RATES`], or pairs.
    """
    if people["group"].nunique() == 1:
        return "Everybody is in one group."
    known = people[people["posterior"].notna()]
    if len(known):
        parts = (
            f"{(own['posterior'] >= _SURE).sum():,} of {len(own):,} {group} users"
            for group, own in ((group, known[known["group"] == group]) for group in groups_by_size(known))
        )
        named = len(people) - len(known)
        rest = f" Of {named:,} users the data name the group, without a probability." if named else ""
        return f"In their group with a probability of {_SURE:g} or more: {', '.join(parts)}.{rest}"
    if groups_from in RATES:
        return f"No probability of a group is known: the groups are cut at a threshold of the {RATES[groups_from]}."
    return "No probability of a group is known: the groups come with the data."
