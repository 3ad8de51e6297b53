"""Groups and users as they come: one name for one thing, and no name for what is missing."""

import datetime
import enum

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import ClassLabel, Value

from trl_pafo.data.labels import as_label, label_names, normalize_labels
from trl_pafo.errors import DataError


class Side(str, enum.Enum):  # noqa: UP042, whose `str` is another text than its value
    LEFT = "left"


class Number(enum.IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("minority", "minority"),
        (" a ", " a "),
        ("nan", "nan"),  # a text is a name
        (np.str_("a"), "a"),
        (Side.LEFT, "left"),
        (1, "1"),
        (1.0, "1"),
        (-0.0, "0"),
        (1.5, "1.5"),
        (1e20, "100000000000000000000"),
        (float("inf"), "inf"),
        (True, "True"),
        (Number.ONE, "1"),
        (np.uint64(2**63), "9223372036854775808"),
        (np.float32(0.1), "0.1"),
        (np.bool_(False), "False"),
        (np.array(3), "3"),
        (torch.tensor([1.0], dtype=torch.bfloat16), "1"),
        (pa.scalar(1), "1"),
        (datetime.date(2020, 1, 2), "2020-01-02"),
        (("de", "young"), "('de', 'young')"),
    ],
)
def test_one_name(value: object, label: str):
    found = as_label(value)
    assert found == label
    assert type(found) is str


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        " \t",
        float("nan"),
        torch.tensor(float("nan")),
        pd.NA,
        pd.NaT,
        np.datetime64("NaT", "ns"),
        pa.scalar(None, pa.int64()),
    ],
)
def test_missing_is_no_name(value: object):
    assert as_label(value) is None


@pytest.mark.parametrize("value", [["a"], {"a": 1}, b"a", np.bytes_(b"a"), np.array([1, 2]), torch.tensor([1, 2]), {"a"}])
def test_no_single_value(value: object):
    with pytest.raises(DataError, match="must be one text or number, got"):
        as_label(value)


@pytest.mark.parametrize(
    "values",
    [
        ["0", 1, 0.0],
        (value for value in (0, 1, 0)),
        np.array([0.0, 1.0, 0.0], dtype=np.float32),
        torch.tensor([0.0, 1.0, 0.0], dtype=torch.bfloat16),
        pd.Series([0, 1, 0], dtype="category"),
        pa.array(["0", "1", "0"]).dictionary_encode(),
    ],
)
def test_a_column_of_any_kind(values):
    labels = normalize_labels(values, "group", "The pairs")
    assert labels == ["0", "1", "0"]
    assert {type(label) for label in labels} == {str}


@pytest.mark.parametrize(
    "values",
    [
        np.array([0, np.nan, 1, np.nan]),
        pd.Series([0, None, 1, None], dtype="Int64"),
        pa.array([0, None, 1, None]),
    ],
)
def test_a_column_with_gaps(values):
    assert normalize_labels(values, "user", "The pairs", missing="keep") == ["0", None, "1", None]
    with pytest.raises(DataError, match=r"^The pairs, row 1: has no `user` \(so have 2 of 4 rows\)\. Fill the column, or leave"):
        normalize_labels(values, "user", "The pairs")


def test_the_row_that_cannot_be_read():
    with pytest.raises(DataError, match=r"^The pairs, row 1, column `group`: .* got \['b'\]"):
        normalize_labels(["a", ["b"]], "group", "The pairs")
    with pytest.raises(DataError, match="one label per row, got the text 'ab'"):
        normalize_labels("ab", "group", "The pairs")


def test_numbers_of_names():
    names = label_names(ClassLabel(names=["rail", "road"]))
    values = [1, 0.0, -1, None, torch.tensor(1), "rail"]
    labels = normalize_labels(values, "group", "The pairs", missing="keep", names=names)
    assert labels == ["road", "rail", None, None, "road", "rail"]
    with pytest.raises(DataError, match=r"^The pairs, row 1: `group` is 2, but its names have the numbers 0 to 1\.$"):
        normalize_labels([0, 2], "group", "The pairs", names=names)
    numbers = label_names(ClassLabel(names=["1", "0"]))
    assert normalize_labels([1, 0], "group", "The pairs", names=numbers) == ["0", "1"]
    assert label_names(Value("int64")) is None
