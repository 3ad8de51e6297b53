"""Files to rows: what is read stays what it is, and what cannot be read is named by file and line."""

import csv
import gzip
import json
import tracemalloc
from importlib.util import find_spec

import pytest
from datasets import Dataset, DatasetDict

from trl_pafo.data.sources import DataArguments, load_source
from trl_pafo.data.sources.reading import (
    columns_to_dataset,
    iterate_records,
    open_dataset,
    read_records,
    rows_to_dataset,
    single_split,
)
from trl_pafo.errors import DataError

HEADER = "prompt,chosen,rejected,user\n"
QUOTED = '"a, b","say ""yes""","no\nno",007\n'
GOOD = [{"prompt": "a, b", "chosen": 'say "yes"', "rejected": "no\nno", "user": "007"}]


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ('\ufeff{"a": 1}\r\n\r\n{"a": "x\u2028y"}\n', ("line 1", "line 3")),
        ('[{"a": 1},\n {"a": "x\u2028y"}]', ("entry 1", "entry 2")),
    ],
)
def test_records_of_json_have_their_places(tmp_path, text, places):
    path = tmp_path / "a.json"
    for data in (text.encode(), gzip.compress(text.encode())):
        path.write_bytes(data)
        expected = zip(places, [{"a": 1}, {"a": "x\u2028y"}], strict=True)
        assert list(read_records(path)) == [(f"{path}, {place}", row) for place, row in expected]


@pytest.mark.parametrize(
    ("name", "head", "line", "zipped"),
    [("a.jsonl", b"", b'{"text": "%d %s"}\n', True), ("a.csv", b"text\n", b'"%d %s"\r\n', False)],
)
def test_memory_holds_a_row_not_the_file(tmp_path, name, head, line, zipped):
    data = head + b"".join(line % (number, b"x" * 2000) for number in range(2000))
    (tmp_path / name).write_bytes(gzip.compress(data) if zipped else data)
    tracemalloc.start()
    try:
        assert sum(1 for _ in iterate_records(tmp_path / name)) == 2000
        assert tracemalloc.get_traced_memory()[1] < len(data) / 8
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", HEADER + QUOTED),
        ("A.CSV", HEADER + "\n" + QUOTED + "\n\n"),
        ("a.csv", HEADER.replace("\n", "\r") + "\n" + QUOTED),
        ("a.csv", " prompt ,chosen, rejected,user\n,,,\n" + QUOTED + " ,,,\n"),
        ("a.tsv", HEADER + QUOTED),
        ("a.csv", "\ufeff" + HEADER + QUOTED),
        *(("a.csv", (HEADER + QUOTED).replace(",", mark).replace(f"a{mark} b", "a, b")) for mark in ";\t|"),
        ("a.jsonl", json.dumps(GOOD[0])),
        ("a.json", json.dumps(GOOD)),
    ],
)
def test_the_same_rows_however_they_are_written(tmp_path, name, data):
    (tmp_path / name).write_bytes(data.encode())
    assert open_dataset(tmp_path / name).to_list() == GOOD
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data.encode(), mtime=0))
    assert open_dataset(tmp_path / f"{name}.gz").to_list() == GOOD


def test_values_of_a_table_stay_text(tmp_path):
    (tmp_path / "a.csv").write_text("user,text\n007,None\n8,NA\n9," + "long " * 50_000 + "\n")
    assert open_dataset(tmp_path / "a.csv").to_list() == [
        {"user": "007", "text": "None"},
        {"user": "8", "text": "NA"},
        {"user": "9", "text": "long " * 50_000},
    ]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b'[{"a": 1},\n{"a" 2}]', "line 2: not JSON"),
        ("a.jsonl", b'{"a": 1}\n{"a": {"b": 1, "b": 1}}', "line 2: not JSON .the key 'b' stands twice in an object"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\\ud83d"}', "line 2: not JSON .*surrogates"),
        ("a.json", b"[3]", "entry 1: expected a JSON object, got int"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xe9"}', "line 2: this is not UTF-8 text"),
        ("a.jsonl", b"", "holds no rows"),
        *(
            (
                name,
                gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-12],
                "cannot be read to its end.*cut off or damaged: copy or write it",
            )
            for name in ("a.jsonl.gz", "a.csv.gz")
        ),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-8] + b"\0" * 8, "cut off or damaged"),
        # Pandas takes the first column of these as an index, and shifts all others.
        ("a.csv", HEADER.encode() + b"a,b,c,u1,\n" * 3, "line 2: more fields than the header names"),
        ("a.csv", HEADER.encode() + b"a,b,c,u1\na,b,c\n", "line 3: fewer fields .*holds ',' or a line break needs double quotes"),
        ("a.csv", HEADER.encode() + b'a,b,c,u1\n"a,b,c,u2\na,b,c,u3\n', "line 4: the quotes do not match"),
        ("a.csv", b"prompt,user,user\na,b,c\n", r"line 1: the header names a column twice \(prompt, user, user\)"),
        ("a.csv", HEADER.encode() + b'a,b,"c\nd",u1\r\na,b,\xe9,u2\n', "line 4: this is not UTF-8 text"),
        ("a.parquet", b"\x00\xff\xfe", "cannot be read"),
        ("a.txt", b"x", r"its ending is unknown\). Give a file \(\.jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_right_is_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(tmp_path / name)
    assert name in str(caught.value)


def test_nothing_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    (tmp_path / "folder").mkdir()
    for path in ("none.jsonl", "owner/none", "folder"):
        with pytest.raises(DataError, match=f"{path}' cannot be read"):
            open_dataset(path)


def test_rows_with_other_fields_and_other_types():
    values = {"user": ["ann", float("nan")], "score": [float("nan"), 1]}  # NaN among texts is a missing text
    assert columns_to_dataset(values, "x")[:] == {"user": ["ann", None], "score": [None, 1.0]}
    assert rows_to_dataset([{"a": 1}, {"a": 2, "b": "x"}], "rows").to_list() == [{"a": 1, "b": None}, {"a": 2, "b": "x"}]
    rows = [{"a": 1, "b": "x"}, {"a": 2, "b": [3]}]
    assert rows_to_dataset(rows, "rows", columns=["a"]).column_names == ["a"]
    assert single_split(DatasetDict(a=Dataset.from_list(rows[:1])), "train", "x").num_rows == 1
    with pytest.raises(DataError, match="x has no split 'train'; it has a, b"):
        single_split(DatasetDict(a=Dataset.from_list(rows[:1]), b=Dataset.from_list(rows[:1])), "train", "x")
    with pytest.raises(DataError, match="the field `b` changes its type from row to row, first in row 1"):
        rows_to_dataset(rows, "rows")


def test_a_survey_in_excel_is_that_in_csv(tmp_path, caplog):
    if find_spec("openpyxl") is None:
        with pytest.raises(DataError, match=r"a\.xlsx: .*Run `pip install openpyxl`, or save the sheet as CSV"):
            open_dataset(tmp_path / "a.xlsx")
    openpyxl = pytest.importorskip("openpyxl")
    header = ["user_id", "age", "prompt", "response_a", "response_b", "preferred"]
    rows = [
        [u, 20 + u, f"How {p}?", f"a {p}", f"b {p}", "tie" if p == u else (p + (u % 5 == 0)) % 2 + 1]
        for u in range(12)
        for p in range(4)
    ]
    book = openpyxl.Workbook()
    book.active.title = "Answers"
    for number, row in enumerate([[f"{name} " for name in header], *rows]):
        book.active.append(row)
        if number in (0, 5):
            book.active.append([None, "  "])
    book.create_sheet("Notes").append(["none"])
    book.save(tmp_path / "survey.xlsx")
    with open(tmp_path / "survey.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    found = [
        load_source(DataArguments(data_path=str(tmp_path / f"survey.{ending}"), describe=["age"])) for ending in ("csv", "xlsx")
    ]
    assert found[0]["train"].to_list() == found[1]["train"].to_list()
    assert found[0]["test"].to_list() == found[1]["test"].to_list()
    assert found[1]["train"]["user"][0].isdigit()
    assert "the sheet 'Answers' is read, the first; not read: 'Notes'." in caplog.text
    assert open_dataset(tmp_path / "survey.xlsx").num_rows == len(rows)
