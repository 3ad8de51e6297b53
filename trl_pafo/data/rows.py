"""Rows of a dataset as Python objects."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset


def read_rows(dataset: Dataset, names: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows with the columns of these names (all by default), read from disk in batches, so that memory holds one batch."""
    columns = dataset if names is None else dataset.select_columns(list(names))
    for batch in columns.with_format(None).iter(1000):
        yield from rows_of_batch(batch)


def rows_of_batch(batch: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The rows of a batch, which has one sequence a column."""
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
