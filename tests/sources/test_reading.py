import gzip

import pytest
from datasets import Dataset, DatasetDict

from trl_pafo.errors import DataError
from trl_pafo.sources.reading import open_dataset, read_records, rows_to_dataset, single_split, text_of


class TestReadRecords:
    def test_lines_are_numbered_and_empty_ones_skipped(self, tmp_path):
        path = tmp_path / "a.jsonl"
        path.write_bytes('\ufeff{"a": 1}\r\n\r\n{"a": "x\u2028y"}\n'.encode())
        assert list(read_records(path)) == [(f"{path}, line 1", {"a": 1}), (f"{path}, line 3", {"a": "x\u2028y"})]

    def test_entries_of_a_list_are_numbered(self, tmp_path):
        path = tmp_path / "a.json"
        path.write_text('[{"a": 1},\n {"a": 2}]')
        assert list(read_records(path)) == [(f"{path}, entry 1", {"a": 1}), (f"{path}, entry 2", {"a": 2})]

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b'[{"a": 1},\n{"a" 2}]', "line 2: the JSON list is broken"),
            (b'{"a": 1}\n{"a" 2}', "line 2: not JSON"),
            (b"[3]", "entry 1: expected a JSON object, got int"),
            (b'["text"]', "entry 1: expected a JSON object, got str"),
            (b'{"a": "\xe9"}', "is not UTF-8 text"),
            (gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-12], "cannot be read"),
        ],
    )
    def test_broken_files(self, tmp_path, data, message):
        path = tmp_path / "a.jsonl"
        path.write_bytes(data)
        with pytest.raises(DataError, match=message) as caught:
            list(read_records(path))
        assert str(path) in str(caught.value)


class TestTextOf:
    def test_missing_and_empty(self):
        assert text_of({"a": "x"}, "a", "here") == "x"
        with pytest.raises(DataError, match="here: the field `b` is missing; the entry has a"):
            text_of({"a": "x"}, "b", "here")
        with pytest.raises(DataError, match="here: the field `a` must be a text that is not empty, got 3"):
            text_of({"a": 3}, "a", "here")


class TestOpen:
    def test_a_folder_that_datasets_did_not_write(self, tmp_path):
        (tmp_path / "a.txt").write_text("x")
        with pytest.raises(DataError, match="was not written by `save_to_disk`"):
            open_dataset(tmp_path)

    def test_an_unknown_ending(self, tmp_path):
        (tmp_path / "a.txt").write_text("x")
        with pytest.raises(DataError, match=r"unknown ending; known are \.jsonl"):
            open_dataset(tmp_path / "a.txt")

    @pytest.mark.parametrize("name", ["a.parquet", "a.csv"])
    def test_a_file_that_is_not_what_its_ending_says(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"\x00\xff\xfe")
        with pytest.raises(DataError, match=f"cannot be read as {name[2:]}"):
            open_dataset(tmp_path / name)

    def test_csv_values_stay_text(self, tmp_path):
        (tmp_path / "a.csv").write_text("user,text\n007,None\n8,NA\n")
        assert open_dataset(tmp_path / "a.csv").to_list() == [{"user": "007", "text": "None"}, {"user": "8", "text": "NA"}]

    def test_an_empty_file(self, tmp_path):
        (tmp_path / "a.jsonl").write_text("")
        with pytest.raises(DataError, match="holds no rows"):
            open_dataset(tmp_path / "a.jsonl")


class TestRows:
    def test_fields_that_some_rows_lack(self):
        assert rows_to_dataset([{"a": 1}, {"a": 2, "b": "x"}], "rows").to_list() == [{"a": 1, "b": None}, {"a": 2, "b": "x"}]

    def test_types_that_change_matter_in_wanted_columns_only(self):
        rows = [{"a": 1, "b": "x"}, {"a": 2, "b": [3]}]
        assert rows_to_dataset(rows, "rows", columns=["a"]).column_names == ["a"]
        with pytest.raises(DataError, match="the field `b` changes its type"):
            rows_to_dataset(rows, "rows")


class TestSingleSplit:
    def test_which_split(self):
        one, two = Dataset.from_dict({"a": [1]}), Dataset.from_dict({"a": [2]})
        assert single_split(one, "train", "x") is one
        assert single_split(DatasetDict(all=one), "train", "x") is one
        assert single_split(DatasetDict(train=one, test=two), "test", "x") is two
        with pytest.raises(DataError, match="x has no split 'train'; it has a, b"):
            single_split(DatasetDict(a=one, b=two), "train", "x")
