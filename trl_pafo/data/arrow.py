"""Columns of a dataset as Arrow: read, numbered, gathered and built without a Python object a row.

What is built goes where the rows came from, as with `Dataset.map`: to a cache file beside theirs, or into memory.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features
from datasets.fingerprint import Hasher
from numpy.typing import NDArray

from trl_pafo.versions import __version__

IntArray = NDArray[np.int64]

# What is held in memory at once. Gathered rows come from all over a table: with more of them, more stand in the same chunk, so
# that the cost of a chunk is shared; with fewer, less is held.
_BATCH_BYTES = 2**27
_BATCH_ROWS = 50_000


def batch_rows(dataset: Dataset, times: int = 1) -> int:
    """How many rows of a dataset are held at once, if they are made into rows `times` as long."""
    of_row = dataset.data.nbytes / max(1, dataset.data.num_rows)
    return max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / (1 + times * of_row))))


def is_text(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type are strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type are lists of any length."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def is_list_of(kind: pa.DataType, fields: Iterable[str]) -> bool:
    """Whether values of an Arrow type are lists of structs that have these fields."""
    if not is_list(kind) or not pa.types.is_struct(kind.value_type):
        return False
    return set(fields) <= {field.name for field in kind.value_type}


def lengths_of(lists: pa.Array) -> IntArray:
    """Length of each list; 0 where it is missing."""
    return np.asarray(pc.fill_null(pc.list_value_length(lists), 0), dtype=np.int64)


def to_python(values: pa.Array) -> list[Any]:
    """The values as Python objects. Those of the feature `Json`, as which `datasets` reads mixed messages, are decoded."""
    return [_decoded(value, values.type) for value in values.to_pylist()] if _holds_json(values.type) else values.to_pylist()


def _holds_json(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.JsonType):
        return True
    if is_list(kind):
        return _holds_json(kind.value_type)
    return pa.types.is_struct(kind) and any(_holds_json(field.type) for field in kind)


def _decoded(value: Any, kind: pa.DataType) -> Any:
    if value is None or not _holds_json(kind):
        return value
    if isinstance(kind, pa.JsonType):
        return json.loads(value)
    if is_list(kind):
        return [_decoded(item, kind.value_type) for item in value]
    return {name: _decoded(item, kind.field(name).type) for name, item in value.items()}


def filled(values: pa.Array) -> NDArray[np.bool_]:
    """Which texts, or lists, are neither missing nor empty; all other values are taken to be filled where they are there."""
    there = np.asarray(values.is_valid())
    if is_text(values.type):
        return there & np.asarray(pc.fill_null(pc.greater(pc.binary_length(values), 0), False))
    return there & (lengths_of(values) > 0) if is_list(values.type) else there


def list_array(lengths: IntArray, values: pa.Array) -> pa.ListArray:
    """Lists of these lengths, one after the other, from the values."""
    return pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), values)


class Rows:
    """Rows of a dataset, read one batch after the other or gathered by number; memory holds one batch at a time.

    Args:
        dataset ([`~datasets.Dataset`]):
            The rows, in memory or memory-mapped, also behind the indices of a `select`.
        names (`Sequence[str]`, *optional*):
            The columns; all if not given.
    """

    def __init__(self, dataset: Dataset, names: Sequence[str] | None = None):
        table = dataset.data.table.select(dataset.column_names if names is None else list(names))
        self._batches = table.to_batches()
        self._ends = np.cumsum([len(batch) for batch in self._batches])
        self._schema = table.schema.remove_metadata()
        self._indices = None if dataset._indices is None else dataset._indices.column(0).to_numpy().astype(np.int64)
        self._length = len(dataset)
        self._at_once = batch_rows(dataset)

    def take(self, rows: IntArray) -> pa.Table:
        """The rows with these numbers, in this order, in one chunk."""
        if self._indices is not None:
            rows = self._indices[rows]
        # Arrow's own `take` would first join all chunks, for every batch again, and fail above 2 GiB of text.
        chunk = np.searchsorted(self._ends, rows, side="right")
        order = np.argsort(chunk, kind="stable")
        rows, chunk = rows[order], chunk[order]
        found, first = np.unique(chunk, return_index=True)
        parts = []
        stops = [*first[1:].tolist(), len(rows)][: len(found)]
        for number, start, stop in zip(found.tolist(), first.tolist(), stops, strict=True):
            batch = self._batches[number]
            parts.append(batch.take(pa.array(rows[start:stop] - (self._ends[number] - len(batch)))))
        taken = pa.Table.from_batches(parts, schema=self._schema).combine_chunks()
        if (order[1:] > order[:-1]).all():
            return taken
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return taken.take(pa.array(back)).combine_chunks()

    def __iter__(self) -> Iterator[pa.Table]:
        for start in range(0, self._length, self._at_once):
            yield self.take(np.arange(start, min(start + self._at_once, self._length)))


def column(table: pa.Table, name: str) -> pa.Array:
    """A column of a table in one chunk."""
    chunked = table.column(name)
    return chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()


class Numbers:
    """Numbers of values, from 0 on in the order in which values first occur; equal values have one number."""

    def __init__(self) -> None:
        self._number_of: defaultdict[Hashable, int] = defaultdict()
        self._number_of.default_factory = self._number_of.__len__

    def __len__(self) -> int:
        return len(self._number_of)

    def __call__(self, values: Iterable[Hashable]) -> IntArray:
        """Number of each value."""
        # Arrow's dictionary encoding would write all values so far into the dictionary of each chunk.
        return np.fromiter(map(self._number_of.__getitem__, values), np.int64)

    def values(self) -> list[Hashable]:
        """The values in the order of their numbers."""
        return list(self._number_of)


def joined(arrays: Iterable[IntArray]) -> IntArray:
    """Arrays one after the other; an empty one if there are none."""
    return np.concatenate([np.empty(0, np.int64), *arrays])


def map_tables(dataset: Dataset, build: Callable[..., pa.Table], **options: Any) -> Dataset:
    """`Dataset.map` with a function from a table of some rows to the table that takes their place.

    Args:
        dataset ([`~datasets.Dataset`]):
            The rows.
        build (`Callable`):
            The function; called with batches of rows.
        **options:
            Of `Dataset.map`.
    """
    kind = {name: dataset.format[name] for name in ("type", "format_kwargs")}
    options = {"batch_size": batch_rows(dataset), **options}
    return dataset.with_format("arrow").map(build, batched=True, **options).with_format(kind["type"], **kind["format_kwargs"])


def build_rows(
    like: Dataset, plan: pa.Table, build: Callable[[pa.Table], pa.Table], features: dict[str, Any], desc: str, times: int = 1
) -> Dataset:
    """New rows from a plan, which says for each what it is made of, such as the numbers of rows of `like`.

    Args:
        like ([`~datasets.Dataset`]):
            Where the rows come from: the new ones go to a cache file beside its own, or into memory if it is there.
        plan (`pyarrow.Table`):
            One row for each new one. With the fingerprint of `like`, it is what the cache file is known by.
        build (`Callable`):
            From some rows of the plan to new rows.
        features (`dict`):
            Columns and types of the new rows.
        desc (`str`):
            What the progress bar says.
        times (`int`, *optional*, defaults to `1`):
            How many rows of `like` go into a new one.
    """
    fingerprint = Hasher.hash((like._fingerprint, __version__, desc, plan))
    path = like._get_cache_file_path(fingerprint) if like.cache_files else None
    return map_tables(
        Dataset(plan),
        build,
        features=Features(features),
        remove_columns=plan.column_names,
        cache_file_name=path,
        new_fingerprint=fingerprint,
        batch_size=batch_rows(like, times),
        desc=desc,
    ).with_format(None)


def take_rows(dataset: Dataset, rows: Sequence[int] | IntArray) -> Dataset:
    """`Dataset.select`, without the indices that make each later step pick row by row."""
    numbers = np.asarray(rows, dtype=np.int64)
    if not len(numbers) or (np.diff(numbers) == 1).all():
        return dataset.select(range(numbers[0], numbers[-1] + 1) if len(numbers) else [])
    table = Rows(dataset)
    plan = pa.table({"row": numbers})
    return build_rows(dataset, plan, lambda p: table.take(column(p, "row").to_numpy()), dataset.features, "Taking rows")


def on_disk(dataset: Dataset, path: Path) -> Dataset:
    """The same rows in a file, memory-mapped."""
    schema = dataset.features.arrow_schema
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for rows in Rows(dataset):
            writer.write_table(rows, max_chunksize=1000)
    return Dataset.from_file(str(path))
