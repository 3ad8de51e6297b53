"""Rows of a dataset as plain objects, whatever its order, format and size; and the names that users import."""

import pytest
from datasets import Dataset

import trl_pafo.data
from trl_pafo.data.rows import read_rows


@pytest.mark.parametrize("kind", [None, "numpy", "arrow"])
def test_rows_come_in_the_order_of_the_dataset(kind):
    rows = [{"n": n, "text": f"text {n}", "past": [{"text": "p"}] * (n % 3)} for n in range(2_500)]
    dataset = Dataset.from_list(rows).with_format(kind)
    assert list(read_rows(dataset)) == rows
    order = [2_400, 0, 7, 7]
    assert list(read_rows(dataset.select(order), ["past", "n"])) == [{"past": rows[n]["past"], "n": n} for n in order]
    assert list(read_rows(dataset.select([]))) == []


def test_the_names_that_users_import():
    for name in trl_pafo.data.__all__:
        assert getattr(trl_pafo.data, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        trl_pafo.data.nothing  # noqa: B018
