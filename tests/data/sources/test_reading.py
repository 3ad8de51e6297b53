import gzip

import pytest
from datasets import Dataset, DatasetDict

from trl_pafo.data.sources.reading import open_dataset, read_records, rows_to_dataset, single_split, text_of
from trl_pafo.errors import DataError


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
            (b'{"a": 1}\n{"a": 1, "b": 2, "a": 3}', "line 2: not JSON .the key 'a' occurs twice"),
            (b"[3]", "entry 1: expected a JSON object, got int"),
            (b'["text"]', "entry 1: expected a JSON object, got str"),
            (b'{"a": 1}\n{"a": "\xe9"}', "line 2: this is not UTF-8 text"),
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

    @pytest.mark.parametrize(("name", "match"), [("a.parquet", "cannot be read as parquet"), ("a.csv", "not UTF-8 text")])
    def test_a_file_that_is_not_what_its_ending_says(self, tmp_path, name, match):
        (tmp_path / name).write_bytes(b"\x00\xff\xfe")
        with pytest.raises(DataError, match=match):
            open_dataset(tmp_path / name)

    def test_csv_values_stay_text(self, tmp_path):
        (tmp_path / "a.csv").write_text("user,text\n007,None\n8,NA\n")
        assert open_dataset(tmp_path / "a.csv").to_list() == [{"user": "007", "text": "None"}, {"user": "8", "text": "NA"}]

    def test_an_empty_file(self, tmp_path):
        (tmp_path / "a.jsonl").write_text("")
        with pytest.raises(DataError, match="holds no rows"):
            open_dataset(tmp_path / "a.jsonl")


HEADER = "prompt,chosen,rejected,user\n"
GOOD = [{"prompt": "a, b", "chosen": 'say "yes"', "rejected": "no\nno", "user": "007"}]
QUOTED = '"a, b","say ""yes""","no\nno",007\n'


class TestTables:
    @pytest.mark.parametrize(
        ("name", "data"),
        [
            ("a.csv", HEADER + QUOTED),
            ("A.CSV", HEADER + QUOTED),
            ("a.csv", "\n" + HEADER + "\n" + QUOTED + "\n\n"),
            ("a.csv", (HEADER + QUOTED).replace(",", ";").replace("a; b", "a, b")),
            ("a.csv", "prompt\tchosen\trejected\tuser\n" + '"a, b"\t"say ""yes"""\t"no\nno"\t007'),
            ("a.csv", (HEADER + QUOTED).replace(",", "|").replace("a| b", "a, b")),
            ("a.csv", (HEADER + QUOTED).replace(",", ", ").replace("a,  b", "a, b")),
            ("a.tsv", HEADER + QUOTED),
            ("a.csv", " prompt , chosen,rejected,user\n" + QUOTED),
            ("a.csv", "sep=,\n" + HEADER + QUOTED),
            ("a.csv", "sep=;\r\n" + (HEADER + QUOTED).replace(",", ";").replace("a; b", "a, b")),
        ],
    )
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
    def test_one_table_however_it_is_written(self, tmp_path, name, data, encoding):
        (tmp_path / name).write_bytes(data.encode(encoding))
        assert open_dataset(tmp_path / name).to_list() == GOOD
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data.encode(encoding), mtime=0))
        assert open_dataset(tmp_path / f"{name}.gz").to_list() == GOOD

    @pytest.mark.parametrize(
        ("rows", "match"),
        [
            # Pandas takes the first column of these as an index, and shifts all others.
            ("a,b,c,u1,\n" * 3, r"line 2: 5 fields, but the header names 4 \(prompt, chosen, rejected, user\)"),
            ("a,b,c,u1\n\na,b, and c,d,u2\n", "line 4: 5 fields"),
            ("a,b,c,u1\na,b,c\n", "line 3: 3 fields, .*a text that holds ',' or a line break needs double quotes"),
            ('a,b,c,u1\n"a,b,c,u2\na,b,c,u3\n', "line 3: the quotes of this row do not match .*unexpected end of data"),
            ('"a,b,c,u1\n"a",b,c,u2\n', "line 2: the quotes of this row do not match"),
            ('"say \\"yes\\"",b,c,u1\n', "line 2: the quotes of this row do not match .*double those within a text"),
            ("a,b,c,caf\xe9\n", "line 2: this is not UTF-8 text"),
        ],
    )
    def test_a_row_that_cannot_be_read_right_is_named(self, tmp_path, rows, match):
        (tmp_path / "a.csv").write_bytes((HEADER + rows).encode("latin-1"))
        with pytest.raises(DataError, match=match):
            open_dataset(tmp_path / "a.csv")

    def test_lines_that_quotes_may_have_swallowed_are_named(self, tmp_path, caplog):
        (tmp_path / "a.csv").write_text(HEADER + 'a,b,c,u1\na,"b,c,u1\na,b",c,u2\n')
        assert [row["chosen"] for row in open_dataset(tmp_path / "a.csv")] == ["b", "b,c,u1\na,b"]
        assert "quotes make one row of lines 3 to 4, of which the first and the last look like rows by themselves" in caplog.text

    def test_a_text_of_several_lines_is_one(self, tmp_path, caplog):
        text = "Bread, tea, soup, yes\n\nAll of it, sir"
        (tmp_path / "a.csv").write_text(HEADER + f'a,"{text}",c,u1\n')
        assert open_dataset(tmp_path / "a.csv")["chosen"] == [text]
        assert "rows by themselves" not in caplog.text

    def test_a_column_that_is_named_twice(self, tmp_path):
        (tmp_path / "a.csv").write_text("prompt,user,user\na,b,c\n")
        with pytest.raises(DataError, match="line 1: the header names the column 'user' twice"):
            open_dataset(tmp_path / "a.csv")

    @pytest.mark.parametrize(("start", "kind"), [(b"PAR1", "a Parquet file"), (b"PK\x03\x04\0", "an archive, as Excel writes")])
    def test_what_is_no_text(self, tmp_path, start, kind):
        (tmp_path / "a.csv").write_bytes(start)
        with pytest.raises(DataError, match=f"a.csv is {kind}, and not text. Save it as JSON Lines or CSV"):
            open_dataset(tmp_path / "a.csv")

    def test_utf_16_without_a_mark(self, tmp_path):
        (tmp_path / "a.csv").write_bytes((HEADER + QUOTED).encode("utf-16-le"))
        with pytest.raises(DataError, match=r"line 1: this is not UTF-8 text \(it holds a NUL"):
            open_dataset(tmp_path / "a.csv")

    def test_a_text_longer_than_what_csv_reads_by_itself(self, tmp_path):
        (tmp_path / "a.csv").write_text("prompt,user\n" + "long " * 50_000 + ",u\n")
        assert len(open_dataset(tmp_path / "a.csv")[0]["prompt"]) == 250_000

    @pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
    def test_the_number_of_rows_is_said(self, tmp_path, caplog, name):
        rows = Dataset.from_dict({"prompt": ["a", "b", "c"], "user": ["u"] * 3})
        getattr(rows, {"a.csv": "to_csv", "a.jsonl": "to_json", "a.parquet": "to_parquet"}[name])(tmp_path / name)
        with caplog.at_level("INFO", logger="trl_pafo.data.sources"):
            assert open_dataset(tmp_path / name).to_list() == rows.to_list()
        assert f"{tmp_path / name}: 3 rows read" in caplog.text


class TestRows:
    def test_fields_that_some_rows_lack(self):
        assert rows_to_dataset([{"a": 1}, {"a": 2, "b": "x"}], "rows").to_list() == [{"a": 1, "b": None}, {"a": 2, "b": "x"}]

    def test_types_that_change_matter_in_wanted_columns_only(self):
        rows = [{"a": 1, "b": "x"}, {"a": 2, "b": [3]}]
        assert rows_to_dataset(rows, "rows", columns=["a"]).column_names == ["a"]
        with pytest.raises(DataError, match="the field `b` changes its type from row to row, first in row 1, of type list"):
            rows_to_dataset(rows, "rows")


class TestSingleSplit:
    def test_which_split(self):
        one, two = Dataset.from_dict({"a": [1]}), Dataset.from_dict({"a": [2]})
        assert single_split(one, "train", "x") is one
        assert single_split(DatasetDict(all=one), "train", "x") is one
        assert single_split(DatasetDict(train=one, test=two), "test", "x") is two
        with pytest.raises(DataError, match="x has no split 'train'; it has a, b"):
            single_split(DatasetDict(a=one, b=two), "train", "x")
