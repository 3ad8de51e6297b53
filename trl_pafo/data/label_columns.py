"""The columns `group` and `user` of a dataset, streaming or not, made text where its rows enter."""

from collections.abc import Collection
from typing import Any

from datasets import Dataset, Features, IterableDataset, Value

from trl_pafo.data.labels import label_names, normalize_labels
from trl_pafo.errors import DataError

LABEL_COLUMNS = ("group", "user")


def normalize_columns(dataset: Any, what: str, needed: Collection[str] = ()) -> Any:
    """A dataset whose columns `group` and `user`, where it has them, hold texts, or `None` where there is no label.

    See [`~trl_pafo.data.labels.as_label`] for what they may hold before; of a [`~datasets.ClassLabel`] column the names are taken.
    A dataset whose columns hold nothing else already is returned as it is, and so is what is no dataset. Of the columns that are
    `needed`, each row must have a label; a stream is checked as it is read. `what` names the dataset in messages.

    Raises:
        DataError: If a label cannot be read, or one that is needed is missing (it names the row), or if the rows would be read
            without a transform that they have.
    """
    if isinstance(dataset, IterableDataset):
        return _normalize_stream(dataset, what, needed)
    if not isinstance(dataset, Dataset):
        return dataset
    if dataset.format["type"] == "custom":  # columns are read without it
        raise DataError(
            f"{what} has a transform (`set_transform`, `with_transform`), which is not applied here. Apply it by `map`."
        )
    names, plain = dataset.column_names, dataset.with_format(None)
    for name in LABEL_COLUMNS:
        if name not in names:
            continue
        values = plain[name][:]
        missing = "error" if name in needed else "keep"
        labels = normalize_labels(values, name, what, missing=missing, names=label_names(dataset.features[name]))
        if labels != values or getattr(dataset.features[name], "dtype", None) not in ("string", "large_string"):
            new = f"{name} as text"  # beside the old one first, which may be the only column
            dataset = dataset.add_column(new, labels, feature=Value("string")).remove_columns(name)
            dataset = dataset.rename_column(new, name)
    return dataset if dataset.column_names == names else dataset.select_columns(names)


def _normalize_stream(dataset: IterableDataset, what: str, needed: Collection[str]) -> IterableDataset:
    features = dataset.features
    columns = [name for name in LABEL_COLUMNS if features is None or name in features]
    if features is not None and not columns:
        return dataset
    names = {name: label_names((features or {}).get(name)) for name in columns}

    def normalize(row: dict[str, Any], number: int) -> dict[str, str | None]:
        found = {}
        for name in columns:
            if name in row or name in needed:
                missing = "error" if name in needed else "keep"
                labels = normalize_labels([row.get(name)], name, what, missing=missing, names=names[name], first_row=number)
                found[name] = labels[0]
        return found

    # Without features the stream would not know its columns, and would be opened once more to see them.
    known = None if features is None else Features({**features, **dict.fromkeys(columns, Value("string"))})
    return dataset.map(normalize, with_indices=True, features=known)
