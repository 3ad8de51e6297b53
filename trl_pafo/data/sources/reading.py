"""Files, saved folders and Hub ids to rows, with errors that name the place."""

import codecs
import csv
import gzip
import io
import json
import logging
import re
import zlib
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from trl_pafo.errors import DataError

logger = logging.getLogger(__name__)

JSON_ENDINGS = (".jsonl", ".json", ".ndjson")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
FILE_ENDINGS = (*JSON_ENDINGS, *SEPARATORS, ".parquet")
# The line by which Excel is told the separator.
_SAYS_SEPARATOR = re.compile(r"\"?sep=(.)\"?[\r\n]*", re.IGNORECASE)
_NO_TEXTS = {b"PAR1": "a Parquet file", b"PK\x03\x04": "an archive, as Excel writes"}
# Those of UTF-32 begin with those of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_records(path: str | Path, separator: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a CSV or TSV file, or the objects of a JSON Lines file or of a JSON list, each with its place for error messages.

    The file may be gzipped. Values of a table stay text.

    Args:
        path (`str` or `Path`):
            The file. It is a table if its ending is `.csv` or `.tsv`, else JSON.
        separator (`str`, *optional*):
            What stands between the fields of a table; with it, the file is a table whatever its ending.

    Raises:
        DataError: If the file is missing or is not text, an entry is not a JSON object, or a row has other fields than the header. The
            message names the line.
    """
    path = Path(path)
    separator = separator or SEPARATORS.get(_ending(path))
    text = _read_text(path)
    yield from parse_json_records(text, str(path)) if separator is None else _table_records(text, str(path), separator)


def parse_json_records(text: str, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of JSON Lines or of a JSON list, each with its place; `what` says where the text is from."""
    number = 0
    for place, entry in _list_entries(what, text) if text.lstrip().startswith("[") else _line_entries(what, text):
        if not isinstance(entry, dict):
            raise DataError(f"{place}: expected a JSON object, got {type(entry).__name__}. Write one JSON object a line.")
        number += 1
        yield place, entry
    logger.info("%s: %d rows read.", what, number)


def parse_json(text: str) -> Any:
    """JSON that can be worked with: its texts can be written, its nesting can be walked, no key hides another.

    Raises:
        ValueError: If it cannot; the message names the reason alone.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_repeated_keys)
        # Half a surrogate pair can be read from an escape, but be neither tokenized nor written.
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError(f"{error}; it is nested too deeply") from error
    return value


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} occurs twice in {built!r:.200}")
    return built


def _list_entries(what: str, text: str) -> Iterator[tuple[str, Any]]:
    try:
        entries = parse_json(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{what}, line {error.lineno}: the JSON list is broken ({error.msg}). Correct the line.") from error
    except ValueError as error:
        raise DataError(f"{what}: the JSON list cannot be read ({error}). Write one JSON object a line.") from error
    for number, entry in enumerate(entries, start=1):
        yield f"{what}, entry {number}", entry


def _line_entries(what: str, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                entry = parse_json(line)
            except ValueError as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else error
                message = f"{what}, line {number}: not JSON ({reason}). Each line must be one JSON object."
                raise DataError(message) from error
            yield f"{what}, line {number}", entry


def _table_records(text: str, what: str, separator: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows under the names of the header, all values as text: a user "007" must not become 7, nor an answer "NA" a missing value."""
    lines = list(io.StringIO(text, newline=""))
    if lines and (said := _SAYS_SEPARATOR.fullmatch(lines[0])):
        separator, lines[0] = said[1], "\n"
    layout = _layout(lines, separator)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # of all readers; a prompt may be a book
    rows = csv.reader(lines, strict=True, **layout)
    header: list[str] = []
    swallowed: list[str] = []
    number = 0
    while True:
        first = rows.line_num
        place = f"{what}, line {first + 1}"
        try:
            fields = next(rows, None)
        except csv.Error as error:
            raise DataError(
                f"{place}: the quotes of this row do not match ({error}). Close them, and double those within a text that is in "
                'quotes ("").'
            ) from error
        if fields is None:
            break
        if not fields:  # an empty line
            continue
        if not header:
            header = [name.strip() for name in fields]
            repeated = [name for name in header if header.count(name) > 1]
            if repeated:
                raise DataError(
                    f"{place}: the header names the column {repeated[0]!r} twice. Give each column a name of its own."
                )
            continue
        if len(fields) != len(header):
            raise DataError(
                f"{place}: {len(fields)} fields, but the header names {len(header)} ({', '.join(header)}). Correct the row; a text that "
                f"holds {layout['delimiter']!r} or a line break needs double quotes around it."
            )
        last = rows.line_num
        if last - first > 1 and all(_is_row(lines[at], len(header), layout["delimiter"]) for at in (first, last - 1)):
            swallowed.append(f"{first + 1} to {last}")
        number += 1
        yield place, dict(zip(header, fields, strict=True))
    logger.info("%s: %d rows read.", what, number)
    if swallowed:
        logger.warning(
            "%s: quotes make one row of lines %s%s, of which the first and the last look like rows by themselves. If the quotes are "
            'not meant to hold a text of several lines, put the text in quotes and double those within it ("").',
            what,
            swallowed[0],
            f", and so in {len(swallowed) - 1} other places" if len(swallowed) > 1 else "",
        )


def _is_row(line: str, num_fields: int, separator: str) -> bool:
    """Whether a line looks like a row by itself, quotes aside. In prose a blank follows a comma; few columns tell too little."""
    fields = line.rstrip("\r\n").split(separator)
    return len(fields) == num_fields > 3 and not any(field.startswith(" ") for field in fields)


def _layout(lines: Sequence[str], expected: str) -> dict[str, Any]:
    """What separates the names of the header: as its ending says, unless that leaves a single one; and whether a blank follows."""
    header = next((line.strip("\r\n") for line in lines if line.strip()), "")
    names = {mark: next(csv.reader([header], delimiter=mark), []) for mark in dict.fromkeys((expected, ",", ";", "\t", "|"))}
    separator = next((mark for mark, found in names.items() if len(found) > 1), expected)
    return {"delimiter": separator, "skipinitialspace": all(name.startswith(" ") for name in names[separator][1:])}


def _ending(path: Path) -> str:
    endings = [ending for ending in map(str.lower, path.suffixes[-2:]) if ending != ".gz"]
    return endings[-1] if endings else ""


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}. Correct the path.") from error
    except (OSError, ValueError, EOFError, zlib.error) as error:  # a folder, too long a name, or one with a NUL
        raise DataError(f"{str(path)[:200]!r} cannot be read: {error}. Correct the path.") from error
    return decode(data, str(path))


def decode(data: bytes, what: str) -> str:
    """UTF-8, or what a byte order mark says; raises [`DataError`] with the line where it is something else."""
    if kind := next((kind for start, kind in _NO_TEXTS.items() if data.startswith(start)), None):
        raise DataError(f"{what} is {kind}, and not text. Save it as JSON Lines or CSV.")
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{what}, line {line}: this is not UTF-8 text ({error.reason}). Save it as UTF-8.") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{what}, line {line}: this is not UTF-8 text (it holds a NUL, as UTF-16 does). Save it as UTF-8.")
    return text


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
    ending = _ending(local)
    if local.is_file():
        return _read_file(local, ending, columns)
    if local.is_dir():
        try:
            return _counted(load_from_disk(str(local)), str(local))
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"The folder {local} was not written by `save_to_disk` of datasets; give a file with one of the endings "
                f"{', '.join(FILE_ENDINGS)}."
            ) from error
    if ending in FILE_ENDINGS or len(local.parts) > 2 or local.is_absolute():
        raise DataError(f"There is no file or folder {local}. Correct the path.")
    try:
        return _counted(load_dataset(str(path), name), str(path))
    except (OSError, ValueError, RuntimeError) as error:  # the last: a dataset that is a script, which is never run
        raise DataError(
            f"{str(path)!r} is neither a file nor a folder here, and could not be loaded from the Hub ({error}). Correct "
            "the path or the Hub id; without a connection, give a file or a folder of `save_to_disk`."
        ) from error


def _read_file(path: Path, ending: str, columns: Collection[str] | None) -> Dataset:
    if ending in JSON_ENDINGS or ending in SEPARATORS:
        return rows_to_dataset([record for _, record in read_records(path)], str(path), columns)
    if ending != ".parquet":
        raise DataError(f"{path} has an unknown ending; known are {', '.join(FILE_ENDINGS)} (JSON and CSV also with .gz).")
    from pyarrow import parquet

    try:
        return _counted(Dataset(parquet.read_table(path)), str(path))
    except (pa.ArrowException, ValueError, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}.") from error


def _counted(data: Any, what: str) -> Any:
    """The same, its number of rows said."""
    splits = data if isinstance(data, dict) else {"": data}
    counts = [f"{len(rows)} rows read" + (f" of {name}" if name else "") for name, rows in splits.items()]
    logger.info("%s: %s.", what, ", ".join(counts))
    return data


def rows_to_dataset(rows: Sequence[Mapping[str, Any]], what: str, columns: Collection[str] | None = None) -> Dataset:
    """Rows as a dataset; a field that only some rows have is `None` in the others. `columns` as in [`open_dataset`]."""
    built: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            built[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, OverflowError) as error:
            if columns is None or name in columns:
                values = [row.get(name) for row in rows]
                number = bisect_left(range(len(rows)), True, key=lambda row: not _fit(values[: row + 1]))
                other = f", first in row {number}, of type {type(values[number]).__name__}"
                raise DataError(
                    f"{what}: the field `{name}` changes its type from row to row{other} ({error}). Give it one type in all rows."
                ) from error
    if not built:
        raise DataError(f"{what} holds no rows.")
    try:
        return Dataset(pa.table(built))
    except pa.ArrowException as error:
        raise DataError(f"{what} cannot be read: {error}. Leave out what is nested so deeply.") from error


def _fit(values: list[Any]) -> bool:
    """Whether values have one type."""
    try:
        pa.array(values)
    except (pa.ArrowException, OverflowError):
        return False
    return True


def single_split(data: Dataset | DatasetDict, split: str, what: str) -> Dataset:
    """`data` itself, or its split `split`, or its only split."""
    if isinstance(data, Dataset):
        return data
    if split not in data and len(data) == 1:
        return next(iter(data.values()))
    if split not in data:
        raise DataError(f"{what} has no split {split!r}; it has {', '.join(map(str, data))}.")
    return data[split]
