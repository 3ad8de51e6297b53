"""What the modules share: columns of pairs, brought into the form in which `evaluate` stores them.

`evaluate` copies the script of a module elsewhere and imports it there; this file is not copied, so a script imports it
by its full name. It must import the file, not the class: `evaluate` takes the first module class that it finds by name
in a script for the module.
"""

from collections.abc import Iterable
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from numpy.typing import ArrayLike

from trl_pafo.data.labels import normalize_labels
from trl_pafo.errors import DataError
from trl_pafo.metrics import pair_correctness

_COLUMNS = {
    "predictions": Value("float64"),
    "predictions1": Value("float64"),
    "predictions2": Value("float64"),
    "groups": Value("string"),
    "users": Value("string"),
}


def features(*columns: str) -> Features:
    """How `evaluate` stores these columns."""
    return Features({name: _COLUMNS[name] for name in columns})


class PairModule(evaluate.EvaluationModule):
    """
    A module over pairs of responses. Predictions come as margins or as rewards, groups and users as any labels.

    A batch is checked before it is stored, because `evaluate` keeps its files locked where a computation fails.
    """

    def add(self, **row: Any) -> None:
        """Add one pair.

        Raises:
            DataError: If a column is missing, unknown, or holds a value that cannot be used.
        """
        if "prediction" in row:
            row["predictions"] = row.pop("prediction")
        if "reference" in row:
            row["references"] = row.pop("reference")
        columns = self._checked({name: None if value is None else [value] for name, value in row.items()})
        super().add(**{name: values[0] for name, values in columns.items()})

    def add_batch(self, **columns: Any) -> None:
        """Add pairs; a batch may be empty.

        Raises:
            DataError: If a column is missing, unknown, or holds a value that cannot be used.
        """
        super().add_batch(**self._checked(columns))

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """Compute over all pairs that were added and those given here; `None` on processes other than the first.

        Raises:
            DataError: If a column is missing, unknown, or holds a value that cannot be used.
            ConfigError: If an option cannot be used.
        """
        own = self._feature_names()
        self._refuse_references(references)
        # `evaluate.combine` hands every module the columns of all.
        kwargs = {name: value for name, value in kwargs.items() if name in own or name not in _COLUMNS}
        return super().compute(predictions=predictions if "predictions" in own else None, **kwargs)

    def _checked(self, columns: dict[str, Any]) -> dict[str, list[Any]]:
        own = self._feature_names()
        self._refuse_references(columns.pop("references", None))
        given = [name for name, values in columns.items() if values is not None]
        if set(given) != set(own):
            raise DataError(
                f"{self.name} takes the columns {', '.join(own)}, one value a pair; got {', '.join(given) or 'none'}."
            )
        kinds = {name: _margins if name.startswith("predictions") else _labels for name in own}
        checked = {name: kind(columns[name], name) for name, kind in kinds.items()}
        lengths = {name: len(values) for name, values in checked.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"{self.name} takes one value a pair in each column, but their lengths are {lengths}.")
        return checked

    def _refuse_references(self, references: Any) -> None:
        # Left to `evaluate` they would be passed over in silence, and predicted labels 0 and 1 be read as margins.
        if references is not None:
            raise DataError(
                f"{self.name} takes no references: a margin tells by its sign which response the model prefers. Give the "
                f"columns {', '.join(self._feature_names())}."
            )


def _margins(values: ArrayLike, name: str) -> list[float]:
    """Margins as they are; rewards of shape `(num_pairs, 2)` as chosen minus rejected."""
    try:
        array = np.asarray(values)
        numbers = None if array.dtype.kind in "bUS" else array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"`{name}` cannot be read as numbers ({error}). Give a list or an array; of a tensor, `.detach().float().cpu()`."
        ) from error
    if numbers is None or not (numbers.ndim == 1 or (numbers.ndim == 2 and numbers.shape[1] == 2)):
        raise DataError(
            f"`{name}` must be margins of shape (num_pairs,), or rewards of shape (num_pairs, 2), the chosen response's first; "
            f"got shape {array.shape} of {array.dtype}."
        )
    if numbers.ndim == 2:
        with np.errstate(invalid="ignore"):  # infinite minus infinite is NaN, which is refused below
            numbers = numbers[:, 0] - numbers[:, 1]
    pair_correctness(numbers)
    return numbers.tolist()


def _labels(values: Iterable[object], name: str) -> list[str]:
    """Labels as strings, the form that `trl_pafo.metrics` gives them too."""
    return normalize_labels(values, name, "The pairs")
