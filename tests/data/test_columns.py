"""Arrow columns against plain lists: numbered, gathered, built, whatever their chunks, indices and batches."""

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, Value, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_pafo.data import arrow as columns
from trl_pafo.data.arrow import (
    Numbers,
    Rows,
    batch_rows,
    build_rows,
    filled,
    joined,
    lengths_of,
    list_array,
    map_tables,
    on_disk,
    take_rows,
)


def chunked(sizes, start=0):
    """Rows numbered from `start` on, with texts and lists, in chunks of these sizes."""
    parts = []
    for size in sizes:
        rows = range(start, start + size)
        parts.append(Dataset.from_list([{"n": n, "text": f"text {n}", "past": [{"text": "p" * n}] * (n % 3)} for n in rows]))
        start += size
    return concatenate_datasets(parts)


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(columns, "_BATCH_ROWS", 3)


class TestRows:
    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
    def test_gathered_rows_are_those_of_the_numbers_in_their_order(self, sizes, data):
        dataset = chunked(sizes)
        number = st.integers(0, len(dataset) - 1)
        if data.draw(st.booleans(), label="behind indices"):
            dataset = dataset.select(data.draw(st.lists(number, min_size=len(dataset), max_size=len(dataset))))
        wanted = data.draw(st.lists(number, max_size=12))
        assert Rows(dataset).take(np.array(wanted, dtype=np.int64)).to_pylist() == [dataset[n] for n in wanted]
        assert Rows(dataset, ["past", "n"]).take(np.array(wanted, np.int64)).column_names == ["past", "n"]
        assert take_rows(dataset, wanted).to_list() == [dataset[n] for n in wanted]

    def test_all_rows_come_in_batches(self, small_batches):
        for dataset in (chunked([4, 3, 1]), chunked([8]).select([7, 0, 5, 5])):
            tables = list(Rows(dataset))
            assert [row for table in tables for row in table.to_pylist()] == dataset.to_list()
            assert max(map(len, tables)) == 3
        assert list(Rows(chunked([2]).select([]))) == []

    def test_long_rows_are_held_in_smaller_numbers(self, monkeypatch):
        dataset = Dataset.from_dict({"text": ["x" * 1000] * 50})
        monkeypatch.setattr(columns, "_BATCH_BYTES", 20_000)
        assert 15 <= batch_rows(dataset) <= 20
        assert 3 <= batch_rows(dataset, times=5) <= 4
        monkeypatch.setattr(columns, "_BATCH_BYTES", 10)
        assert batch_rows(dataset) == 1


@given(st.lists(st.lists(st.sampled_from(["a", "b", None, "c"]), max_size=6), max_size=4))
def test_numbers_follow_the_first_occurrence(batches):
    numbers = Numbers()
    found = joined(numbers(batch) for batch in batches).tolist()
    flat = [value for batch in batches for value in batch]
    assert numbers.values() == list(dict.fromkeys(flat))
    assert found == [numbers.values().index(value) for value in flat]
    assert len(numbers) == len(set(flat))


def test_lists():
    lists = pa.array([["a"], None, [], ["b", ""], [None]])
    assert lengths_of(lists).tolist() == [1, 0, 0, 2, 1]
    assert filled(lists).tolist() == [True, False, False, True, True]
    assert filled(lists.flatten()).tolist() == [True, True, False, False]
    assert filled(pa.array([0, None, 2])).tolist() == [True, False, True]
    assert list_array(np.array([1, 0, 2]), pa.array([5, 6, 7])).to_pylist() == [[5], [], [6, 7]]


class TestBuild:
    def test_what_is_built_lies_where_the_rows_do(self, tmp_path, small_batches):
        dataset = chunked([3, 5]).select([7, 6, 5, 4, 3, 2, 1, 0])
        stored = on_disk(dataset, tmp_path / "rows.arrow")
        assert stored.to_list() == dataset.to_list()
        assert stored.features == dataset.features

        def double(plan):
            rows = np.asarray(plan.column("row").combine_chunks())
            return Rows(stored, ["n"]).take(rows).append_column("twice", pa.array(2 * rows))

        features = {"n": Value("int64"), "twice": Value("int64")}
        plan = pa.table({"row": [5, 0, 3, 3, 1]})
        for like, folders in ((stored, {tmp_path}), (dataset, set())):
            built = build_rows(like, plan, double, features, "Doubling")
            assert built.to_list() == [{"n": 7 - r, "twice": 2 * r} for r in (5, 0, 3, 3, 1)]
            assert {(tmp_path / file["filename"]).parent for file in built.cache_files} == folders

    def test_another_plan_is_another_file(self, tmp_path):
        stored = on_disk(chunked([4]), tmp_path / "rows.arrow")
        assert take_rows(stored, [2, 0])["n"][:] == [2, 0]
        assert take_rows(stored, [0, 2])["n"][:] == [0, 2]
        assert take_rows(stored, [])["n"][:] == []

    def test_a_map_over_tables_keeps_the_format_of_the_rows(self):
        dataset = chunked([3, 2]).with_format("numpy")
        mapped = map_tables(dataset, lambda table: table.append_column("m", table.column("n")))
        assert mapped.format["type"] == "numpy"
        assert mapped["m"][:].tolist() == [0, 1, 2, 3, 4]
