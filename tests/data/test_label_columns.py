"""Columns of groups and users hold texts once they are in, whatever they held before, streaming or not."""

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value

from trl_pafo.data.label_columns import normalize_columns
from trl_pafo.errors import DataError

WHAT = "The training dataset"


def with_class_labels() -> Dataset:
    features = Features({"x": Value("int64"), "group": ClassLabel(names=["rail", "road"]), "user": Value("string")})
    return Dataset.from_dict({"x": [0, 1, 2], "group": [1, 0, -1], "user": ["a", "b", "c"]}, features=features)


ROWS = {
    "integers": (lambda: Dataset.from_dict({"x": [0, 1, 2], "group": [1, 0, None]}), ["1", "0", None]),
    "floats": (lambda: Dataset.from_dict({"x": [0, 1, 2], "group": [1.0, 0.0, float("nan")]}), ["1", "0", None]),
    "texts": (lambda: Dataset.from_dict({"x": [0, 1, 2], "group": ["1", "0", " "]}), ["1", "0", None]),
    "nothing": (lambda: Dataset.from_dict({"x": [0, 1, 2], "group": [None] * 3}), [None] * 3),
    "categories": (
        lambda: Dataset.from_pandas(pd.DataFrame({"x": [0, 1, 2], "group": pd.Categorical(["1", "0", None])})),
        ["1", "0", None],
    ),
    "names": (with_class_labels, ["road", "rail", None]),
}


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(("rows", "kind"), [*((rows, None) for rows in ROWS), ("integers", "torch"), ("floats", "numpy")])
def test_whatever_they_held(rows: str, streams: bool, kind: str | None):
    build, labels = ROWS[rows]
    dataset = build().with_format(kind)
    found = normalize_columns(dataset.to_iterable_dataset().with_format(kind) if streams else dataset, WHAT)
    assert [row["group"] for row in found] == labels
    assert [int(row["x"]) for row in found] == [0, 1, 2]
    assert found.column_names == dataset.column_names
    assert found.features["group"].dtype in ("string", "large_string")
    assert streams or found.format["type"] == kind


def test_a_column_without_gaps_that_holds_texts_is_left_alone():
    dataset = Dataset.from_dict({"group": ["a", "b "], "user": ["u", "v"]})
    assert normalize_columns(dataset, WHAT) is dataset
    other = Dataset.from_dict({"chosen": ["a"]})
    assert normalize_columns(other, WHAT) is other
    stream = other.to_iterable_dataset()
    assert normalize_columns(stream, WHAT) is stream
    assert normalize_columns(None, WHAT) is None


@pytest.mark.parametrize("streams", [False, True])
def test_a_label_that_is_needed(streams: bool):
    dataset = Dataset.from_dict({"group": [0, 1, None, None]})
    if streams:
        dataset = dataset.to_iterable_dataset()
    assert [row["group"] for row in normalize_columns(dataset, WHAT, ["user"])][2:] == [None, None]
    with pytest.raises(DataError, match=r"^The training dataset, row 2: has no `group`.*\. Fill the column, or leave"):
        list(normalize_columns(dataset, WHAT, ["group"]))


@pytest.mark.parametrize("streams", [False, True])
def test_a_label_that_cannot_be_read(streams: bool):
    dataset = Dataset.from_dict({"user": [None, ["b"]]})
    with pytest.raises(DataError, match=r"^The training dataset, row 1, column `user`: .* one text or number, got"):
        list(normalize_columns(dataset.to_iterable_dataset() if streams else dataset, WHAT))


def test_a_stream_that_does_not_know_its_columns():
    def rows():
        yield {"group": 0, "user": None}
        yield {"group": "b", "user": float("nan")}
        yield {"x": 1, "user": 3}

    stream = normalize_columns(IterableDataset.from_generator(rows), WHAT)
    assert list(stream) == [{"group": "0", "user": None}, {"group": "b", "user": None}, {"x": 1, "user": "3"}]
    assert stream.column_names is None
    with pytest.raises(DataError, match=f"{WHAT}, row 2: has no `group`"):
        list(normalize_columns(IterableDataset.from_generator(rows), WHAT, ["group"]))
