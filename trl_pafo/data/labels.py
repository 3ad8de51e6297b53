"""Labels of groups and users: whatever their type, they become text here, once, and what is missing is `None`, never a name."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from trl_pafo.errors import DataError


def as_label(value: object) -> str | None:
    """The name of one group or user; `None` if it is missing: `None`, NaN, `pandas.NA`, NaT, or nothing but blanks.

    Texts stay as they are, blanks at their ends included. Whole numbers are their digits, be they integers or floats (a column of
    integers with gaps comes as floats), so that 1, 1.0 and "1" are one name; `True` is `"True"`. The value may be one of Python,
    numpy, torch, pandas or Arrow. What is no single value raises [`DataError`].
    """
    if hasattr(value, "as_py"):
        value = value.as_py()
    elif isinstance(value, np.ndarray) or type(value).__module__ == "torch":
        items: list[object] = value.reshape(-1).tolist()  # type: ignore[attr-defined]
        value = items[0] if len(items) == 1 else items
    if isinstance(value, str):
        return str.__str__(value) if value.strip() else None
    # pandas.NA equals nothing and has no truth value, NaN and NaT do not equal themselves.
    if value is None or type(value).__name__ == "NAType" or value != value:
        return None
    if isinstance(value, np.bool_ | bool):
        return str(bool(value))
    if isinstance(value, np.integer | int) or (isinstance(value, np.floating | float) and float(value).is_integer()):
        return str(int(value))
    if isinstance(value, bytes | list | dict | set):
        raise DataError(f"A group or user must be one text or number, got {value!r:.200}.")
    return str(value)


def normalize_labels(
    values: Iterable[object],
    name: str,
    what: str,
    *,
    missing: str = "error",
    names: Mapping[str, str] | None = None,
    first_row: int = 0,
) -> list[Any]:
    """A column of labels as [`as_label`] makes them: a list, an array, a tensor, a series, with one value a row.

    `name` and `what` are those of the column and its table, for messages, such as "The training dataset", and `first_row` is the
    number of the first row there. `missing="keep"` leaves `None` where there is no label. `names` are those of a column that holds
    numbers of names ([`label_names`]).

    Raises:
        DataError: If a row has no label, or none that can be read; it names the row.
    """
    if isinstance(values, str):
        raise DataError(f"{what}: `{name}` must hold one label per row, got the text {values!r:.200}.")
    if isinstance(values, np.ndarray) or type(values).__module__ == "torch":
        values = values.tolist()  # type: ignore[attr-defined]
    labels: list[str | None] = []
    for row, value in enumerate(values, first_row):
        try:
            label = as_label(value)
        except DataError as error:
            raise DataError(f"{what}, row {row}, column `{name}`: {error}") from None
        if names is not None and label is not None:
            if label not in names and label not in (*names.values(), "-1"):  # which `datasets` writes for none
                raise DataError(f"{what}, row {row}: `{name}` is {label}, but its names have the numbers 0 to {len(names) - 1}.")
            label = names.get(label, None if label == "-1" else label)
        labels.append(label)
    if missing == "error" and None in labels:
        number = labels.count(None)
        rest = f" (so have {number} of {len(labels)} rows)" if number > 1 else ""
        row = first_row + labels.index(None)
        raise DataError(f"{what}, row {row}: has no `{name}`{rest}. Fill the column, or leave such rows out.")
    return labels


def label_names(feature: Any) -> dict[str, str] | None:
    """Name of each number of a [`~datasets.ClassLabel`] column, for [`normalize_labels`]; `None` for any other feature."""
    # Known by its name: `datasets` takes seconds to import, and numbers need it not.
    if type(feature).__name__ != "ClassLabel":
        return None
    return {str(number): name for number, name in enumerate(feature.names)}
