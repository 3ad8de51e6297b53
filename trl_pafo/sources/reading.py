"""Files, saved folders and Hub ids to rows, with errors that name the place."""

import gzip
import json
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from trl_pafo.errors import DataError

JSON_ENDINGS = (".jsonl", ".json", ".ndjson")
FILE_ENDINGS = (*JSON_ENDINGS, ".csv", ".tsv", ".parquet")


def read_records(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON Lines file or of a JSON list, plain or gzipped, each with its place for error messages.

    Raises:
        DataError: If the file is missing, is not text, or an entry is not a JSON object. The message names the line.
    """
    path = Path(path)
    text = _read_text(path)
    for place, entry in _list_entries(path, text) if text.lstrip().startswith("[") else _line_entries(path, text):
        if not isinstance(entry, dict):
            raise DataError(f"{place}: expected a JSON object, got {type(entry).__name__}.")
        yield place, entry


def parse_json(text: str) -> Any:
    """JSON that can be worked with: its texts can be written, its nesting can be walked.

    Raises:
        ValueError: If it cannot; the message names the reason alone.
    """
    try:
        value = json.loads(text)
        # Half a surrogate pair can be read from an escape, but be neither tokenised nor written.
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError(f"{error}; it is nested too deeply") from error
    return value


def _list_entries(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        entries = parse_json(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: the JSON list is broken ({error.msg}). Correct the line.") from error
    except ValueError as error:
        raise DataError(f"{path}: the JSON list cannot be read ({error}). Write one JSON object a line.") from error
    for number, entry in enumerate(entries, start=1):
        yield f"{path}, entry {number}", entry


def _line_entries(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                entry = parse_json(line)
            except ValueError as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else error
                message = f"{path}, line {number}: not JSON ({reason}). Each line must be one JSON object."
                raise DataError(message) from error
            yield f"{path}, line {number}", entry


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}. Correct the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text. Convert it to UTF-8.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def text_of(record: Mapping[str, Any], name: str, place: str) -> str:
    """The field `name` of a record as text; raises [`DataError`] where it is missing, empty or no text."""
    if name not in record:
        raise DataError(f"{place}: the field `{name}` is missing; the entry has {', '.join(map(str, record)) or 'none'}.")
    value = record[name]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: the field `{name}` must be a text that is not empty, got {value!r}.")
    return value


def open_dataset(path: str | Path, name: str | None = None, columns: Collection[str] | None = None) -> Dataset | DatasetDict:
    """Rows of a file (JSON Lines, JSON, CSV, TSV, Parquet), a folder of `save_to_disk`, or a dataset of the Hub.

    Args:
        path (`str` or `Path`):
            File, folder, or Hub id such as `"owner/name"`. JSON and CSV files may be gzipped. Numbers in CSV files stay
            text.
        name (`str`, *optional*):
            Configuration of the Hub dataset.
        columns (`Collection[str]`, *optional*):
            Fields of a JSON file that matter: another one whose type changes from row to row is left out, not refused.

    Raises:
        DataError: If nothing is found there, or it cannot be read.
    """
    local = Path(path)
    try:
        local.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # no right to look, too long a name, or one with a NUL
        raise DataError(f"{str(path)[:200]!r} cannot be read: {error}. Correct the path.") from error
    endings = [ending for ending in local.suffixes[-2:] if ending != ".gz"]
    ending = endings[-1] if endings else ""
    if local.is_file():
        return _read_file(local, ending, columns)
    if local.is_dir():
        try:
            return load_from_disk(str(local))
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"The folder {local} was not written by `save_to_disk` of datasets; give a file with one of the endings "
                f"{', '.join(FILE_ENDINGS)}."
            ) from error
    if ending in FILE_ENDINGS or len(local.parts) > 2 or local.is_absolute():
        raise DataError(f"There is no file or folder {local}. Correct the path.")
    try:
        return load_dataset(str(path), name)
    except (OSError, ValueError, RuntimeError) as error:  # the last: a dataset that is a script, which is never run
        raise DataError(
            f"{str(path)!r} is neither a file nor a folder here, and could not be loaded from the Hub ({error}). Correct "
            "the path or the Hub id; without a connection, give a file or a folder of `save_to_disk`."
        ) from error


def _read_file(path: Path, ending: str, columns: Collection[str] | None) -> Dataset:
    try:
        if ending in JSON_ENDINGS:
            return rows_to_dataset([record for _, record in read_records(path)], str(path), columns)
        if ending == ".parquet":
            from pyarrow import parquet

            return Dataset(parquet.read_table(path))
        if ending in (".csv", ".tsv"):
            import pandas as pd

            # As text: a user "007" must not become 7, and an answer "None" must not become a missing value.
            separator = "\t" if ending == ".tsv" else ","
            return Dataset.from_pandas(pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False))
    except (pa.ArrowException, ValueError, OSError, EOFError, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as {ending[1:]}: {error}.") from error
    raise DataError(f"{path} has an unknown ending; known are {', '.join(FILE_ENDINGS)} (JSON and CSV also with .gz).")


def rows_to_dataset(rows: Sequence[Mapping[str, Any]], what: str, columns: Collection[str] | None = None) -> Dataset:
    """Rows as a dataset; a field that only some rows have is `None` in the others. `columns` as in [`open_dataset`]."""
    built: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            built[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, OverflowError) as error:
            if columns is None or name in columns:
                raise DataError(f"{what}: the field `{name}` changes its type from row to row ({error}).") from error
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
