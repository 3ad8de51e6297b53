"""Files, saved folders and Hub ids to rows, with errors that name the place."""

import csv
import gzip
import io
import json
import logging
import sys
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from pyarrow import parquet

from trl_pafo.errors import DataError, TrlPafoError

logger = logging.getLogger(__name__)

JSON_ENDINGS = (".jsonl", ".json", ".ndjson")
TABLE_ENDINGS = (".csv", ".tsv")
EXCEL_ENDINGS = (".xlsx", ".xlsm")
FILE_ENDINGS = (*JSON_ENDINGS, *TABLE_ENDINGS, *EXCEL_ENDINGS, ".parquet")

# So many levels of lists and objects in each other can be walked through, rendered and written wherever that is done.
_LEVELS = 100


def read_records(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a CSV or TSV file, or the objects of a JSON Lines file or of a JSON list, each with its place for error messages.

    It is a table if its ending is `.csv` or `.tsv`, else JSON. The file may be gzipped. Values of a table stay text.

    Raises:
        DataError: If the file is missing or is not text, an entry is not a JSON object, or a row has other fields than the header.
            The message names the line.
    """
    number = 0
    for record in iterate_records(path):
        number += 1
        yield record
    logger.info("%s: %d rows read.", path, number)


def iterate_records(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same, without a word about it. Memory holds one row at a time; a JSON list alone is read whole."""
    path = Path(path)
    try:
        with open(path, "rb") as raw:
            file: Any = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
            if _ending(path) in TABLE_ENDINGS:
                yield from _table_records(file, str(path))
                return
            if file.peek(1).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
                for number, entry in enumerate(_parse_part(decode(file.read(), str(path)), str(path), 1), start=1):
                    yield (place := f"{path}, entry {number}"), _object(entry, place)
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}, line {number}", parse_json_line(line, str(path), number)
    except TrlPafoError:
        raise
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{str(path)[:200]!r} cannot be read to its end: {error}. The gzipped file is cut off or damaged: copy or write it again."
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)[:200]!r} cannot be read: {error}. Correct the path.") from error


def file_in(folder: Path, name: str, needed: str) -> Path:
    """The file of a folder, plain or gzipped; raises [`DataError`], which says what is `needed`, where there is none."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"The folder {folder} lacks {name} (or {name}.gz). Give the folder that holds {needed}.")


def parse_json_line(line: bytes, what: str, number: int) -> dict[str, Any]:
    """The object of a line of JSON Lines; raises [`DataError`], which names the line, where it is none."""
    return _object(_parse_part(decode(line, what, number).rstrip("\n"), what, number), f"{what}, line {number}")


def _object(entry: Any, place: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise DataError(f"{place}: expected a JSON object, got {type(entry).__name__}. Write one JSON object per line.")
    return entry


def _parse_part(text: str, what: str, first_line: int) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        line, reason = (error.lineno, error.msg) if isinstance(error, json.JSONDecodeError) else (1, error)
        raise DataError(f"{what}, line {first_line + line - 1}: not JSON ({reason}). Write one JSON object per line.") from error


def parse_json(text: str) -> Any:
    """JSON whose texts can be tokenized and written.

    Raises:
        ValueError: If it cannot be read; the message names the reason alone.
    """
    try:
        value = json.loads(text, object_pairs_hook=_each_key_once)
        json.dumps(value, ensure_ascii=False).encode()  # fails on half a surrogate pair, which an escape may hold
        if text.count("[") + text.count("{") > _LEVELS and _deeper_than(value, _LEVELS):
            raise RecursionError
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice in an object")
    return found


def _deeper_than(value: Any, levels: int) -> bool:
    inner = [value]
    for _ in range(levels):
        inner = [part for each in inner for part in (each.values() if isinstance(each, dict) else each)]
        inner = [each for each in inner if isinstance(each, dict | list)]
    return bool(inner)


def _table_records(file: BinaryIO, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows under the names of the header, all values as text: a user "007" must not become 7, nor an answer "NA" a missing value."""
    csv.field_size_limit(sys.maxsize)  # of all readers; a prompt may be a book
    lines = _table_lines(file, what)
    first = next(lines, "")
    separator = max(",;\t|", key=first.count)
    rows = csv.DictReader(chain([first], lines), delimiter=separator, strict=True)
    try:
        header = rows.fieldnames = [name.strip() for name in rows.fieldnames or []]
        if len(set(header)) < len(header):
            raise DataError(
                f"{what}, line 1: the header names a column twice ({', '.join(header)}). Give each a name of its own."
            )
        for row in rows:
            if None in row or None in row.values():
                raise DataError(
                    f"{what}, line {rows.line_num}: {'more' if None in row else 'fewer'} fields than the header names "
                    f"({', '.join(header)}). A text that holds {separator!r} or a line break needs double quotes around it."
                )
            if any(value.strip() for value in row.values()):  # a spreadsheet writes ";;;" for a blank line
                yield f"{what}, line {rows.line_num}", row
    except csv.Error as error:
        raise DataError(
            f"{what}, line {rows.reader.line_num}: the quotes do not match ({error}). Close them, and double those within a text that is in "
            'quotes ("").'
        ) from error


def _table_lines(file: BinaryIO, what: str) -> Iterator[str]:
    # Bytes that are not UTF-8 are let through here, since the error of a stream does not know its line.
    for number, line in enumerate(io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline=""), start=1):
        decode(line.encode("utf-8", "surrogateescape"), what, number)
        yield line


def _ending(path: Path) -> str:
    endings = [ending for ending in map(str.lower, path.suffixes[-2:]) if ending != ".gz"]
    return endings[-1] if endings else ""


def decode(data: bytes, what: str, first_line: int = 1) -> str:
    """UTF-8 with or without a mark; raises [`DataError`] with the line where it is something else."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + first_line
        raise DataError(f"{what}, line {line}: this is not UTF-8 text ({error.reason}). Save it as UTF-8.") from error


def text_of(record: Mapping[str, Any], name: str, place: str) -> str:
    """The field `name` of a record as text; raises [`DataError`] where it is missing, empty or no text."""
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: the field `{name}` must be a text that is not empty, got {value!r}.")
    return value


def open_dataset(path: str | Path, columns: Collection[str] | None = None, name: str | None = None) -> Dataset | DatasetDict:
    """Rows of a file (JSON Lines, JSON, CSV, TSV, Excel, Parquet), a folder of `prepare` or `save_to_disk`, or a dataset of
    the Hub with its configuration.

    JSON and CSV files may be gzipped. Numbers in CSV and Excel files are text. Of an Excel file the first sheet is read. If
    `columns` matter, another field of a JSON file whose type changes from row to row is left out, not refused.

    Raises:
        DataError: If nothing is found there, or it cannot be read.
    """
    local = Path(path)
    if _ending(local) in (*JSON_ENDINGS, *TABLE_ENDINGS):
        return rows_to_dataset([record for _, record in read_records(local)], str(path), columns)
    if _ending(local) in EXCEL_ENDINGS and find_spec("openpyxl") is None:
        raise DataError(f"{path}: Excel files are read with openpyxl. Run `pip install openpyxl`, or save the sheet as CSV.")
    try:
        if _ending(local) in EXCEL_ENDINGS:
            with pd.ExcelFile(local) as book:
                first, *others = map(str, book.sheet_names)
                sheet = pd.read_excel(book, first, dtype=str, keep_default_na=False, na_filter=False)
            if others:
                logger.warning("%s: the sheet %r is read, the first; not read: %s.", path, first, ", ".join(map(repr, others)))
            sheet = sheet[(sheet.map(str.strip) != "").any(axis=1)]  # without blank lines, as of a CSV file
            data: Any = columns_to_dataset({str(name).strip(): sheet[name].tolist() for name in sheet}, str(path))
        elif _ending(local) == ".parquet":
            data = Dataset(parquet.read_table(local))
        elif local.is_dir() and (parts := sorted(local.glob("*.parquet"))):
            data = DatasetDict({part.stem: Dataset(parquet.read_table(part)) for part in parts})
        elif local.is_dir():
            data = load_from_disk(str(local))
        elif local.is_file():
            raise ValueError("its ending is unknown")
        else:
            data = load_dataset(str(path), name)
    except Exception as error:  # of pyarrow, datasets and the Hub: whatever is wrong with the file, the folder or the connection
        raise DataError(
            f"{str(path)[:200]!r} cannot be read ({str(error)[:500]}). Give a file ({', '.join(FILE_ENDINGS)}), a folder of "
            "`trl-pafo prepare` or `save_to_disk`, or the id of a dataset on the Hub."
        ) from error
    splits = data if isinstance(data, dict) else {"": data}
    for split, rows in splits.items():
        logger.info("%s: %d rows read%s.", path, len(rows), f" of {split}" if split else "")
    return data


def rows_to_dataset(rows: Sequence[Mapping[str, Any]], what: str, columns: Collection[str] | None = None) -> Dataset:
    """Rows as a dataset; a field that only some rows have is `None` in the others. `columns` as in [`open_dataset`]."""
    names = dict.fromkeys(name for row in rows for name in row)
    return columns_to_dataset({name: [row.get(name) for row in rows] for name in names}, what, columns)


def columns_to_dataset(values: Mapping[str, list[Any]], what: str, columns: Iterable[str] | None = None) -> Dataset:
    """Columns as a dataset; raises [`DataError`] if one that matters changes its type. `columns` as in [`open_dataset`]."""
    built: dict[str, Any] = {}
    for name, column in values.items():
        try:
            built[name] = pa.array(column, from_pandas=True)  # NaN among texts is how Python writes that one is missing
            Dataset(pa.table({name: built[name]}))
        except (pa.ArrowException, OverflowError) as error:
            built.pop(name, None)
            if columns is None or name in columns:
                kinds = [type(value) for value in column]
                row = next((n for n, kind in enumerate(kinds) if kind not in (kinds[0], type(None))), 0)
                raise DataError(
                    f"{what}: the field `{name}` changes its type from row to row, first in row {row}, or is nested too deeply "
                    f"({error}). Give it one type in all rows."
                ) from error
    if not built:
        raise DataError(f"{what} holds no rows.")
    return Dataset(pa.table(built))


def single_split(data: Dataset | DatasetDict, split: str, what: str) -> Dataset:
    """`data` itself, or its split `split`, or its only split."""
    if isinstance(data, Dataset):
        return data
    if split not in data and len(data) == 1:
        return next(iter(data.values()))
    if split not in data:
        raise DataError(f"{what} has no split {split!r}; it has {', '.join(map(str, data))}.")
    return data[split]
