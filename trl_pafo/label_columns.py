"""The columns `group` and `user` of a dataset, streaming or not, made text where its rows enter."""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, IterableDataset, Value

from trl_pafo.columns import is_text
from trl_pafo.labels import label_names, label_of_row, missing_label, normalize_labels

LABEL_COLUMNS = ("group", "user")


def normalize_columns(dataset: Any, what: str, needed: Collection[str] = ()) -> Any:
    """A dataset whose columns `group` and `user`, where it has them, hold texts, or `None` where there is no label.

    See [`~trl_pafo.labels.as_label`] for what they may hold before; of a [`~datasets.ClassLabel`] column the names are taken.
    A dataset whose columns hold nothing else already is returned as it is.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            The rows. Anything else is returned as it is.
        what (`str`):
            What it is, for messages, such as "The training dataset".
        needed (`Collection[str]`, *optional*):
            Of these columns each row must have a label. A stream is checked as it is read.

    Raises:
        DataError: If a label cannot be read, or one that is needed is missing; it names the row.
    """
    if isinstance(dataset, IterableDataset):
        return _normalize_stream(dataset, what, needed)
    if not isinstance(dataset, Dataset):
        return dataset
    names = dataset.column_names
    for name in LABEL_COLUMNS:
        if name not in names:
            continue
        values = dataset.select_columns([name]).with_format("arrow")[:].column(0)
        labels = _normalize_values(values, name, what, label_names(dataset.features[name]))
        if name in needed and labels.null_count:
            missing = np.flatnonzero(np.asarray(labels.is_null()))
            raise missing_label(int(missing[0]), len(missing), len(labels), name, what)
        if labels is not values:
            new = f"{name} as text"  # beside the old one first, which may be the only column
            dataset = dataset.add_column(new, labels, feature=Value("string")).remove_columns(name)  # type: ignore[arg-type]
            dataset = dataset.rename_column(new, name)
    return dataset if dataset.column_names == names else dataset.select_columns(names)


def _normalize_values(values: pa.ChunkedArray, name: str, what: str, names: Mapping[str, str] | None) -> pa.ChunkedArray:
    """The same object if nothing has to change."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_nested(values.type) or pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
        return pa.chunked_array([pa.array(normalize_labels(values.to_pylist(), name, what, missing="keep"), pa.string())])
    found = values.unique()  # a label is read once, not once a row
    given = found.to_pylist()
    labels = normalize_labels(given, name, what, missing="keep", names=names)
    if labels == given and is_text(values.type):
        return values
    table = pa.array(labels, pa.string())
    return pa.chunked_array([table.take(pc.index_in(chunk, value_set=found)) for chunk in values.chunks], pa.string())


def _normalize_stream(dataset: IterableDataset, what: str, needed: Collection[str]) -> IterableDataset:
    features = dataset.features
    columns = [name for name in LABEL_COLUMNS if features is None or name in features]
    if not columns:
        return dataset
    names = {} if features is None else {name: label_names(features[name]) for name in columns}
    function = partial(_normalize_row, columns=columns, names=names, what=what, needed=needed)
    # Without features the stream would not know its columns, and would be opened once more to see them.
    known = None if features is None else Features({**features, **dict.fromkeys(columns, Value("string"))})
    return dataset.map(function, with_indices=True, features=known)


def _normalize_row(
    row: dict[str, Any],
    number: int,
    columns: Collection[str],
    names: Mapping[str, Mapping[str, str] | None],
    what: str,
    needed: Collection[str],
) -> dict[str, str | None]:
    labels = {n: label_of_row(row[n], number, n, what, names.get(n)) for n in columns if n in row}
    for name in needed:
        if name in labels and labels[name] is None:
            raise missing_label(number, 1, 1, name, what)
    return labels
