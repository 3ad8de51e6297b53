"""Any names in one folder: none leads out of it, no two are one, and plain names stay as they are."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trl_pafo.storage.filenames import folder_names

HOSTILE = [*"../../x /abs a/b a_b .. . CON con.txt C:\\x ~ \ud800 多数 é e\u0301".split(), "", "\x00", "a\n", "x" * 5000]


def test_plain_names_stay():
    plain = ["majority", "minority", "age 18-24", "group.1", "Ältere", "多数"]
    assert list(folder_names(plain).values()) == ["majority", "minority", "age_18-24", "group.1", "Ältere", "多数"]


def test_names_that_would_be_one_get_a_digest():
    names = folder_names(["a/b", "a_b", "A_B", "c"])
    assert len(set(map(str.casefold, names.values()))) == 4
    assert names["c"] == "c"
    for name in ("a/b", "a_b", "A_B"):
        assert names[name].casefold().startswith("a_b-")
    assert folder_names(["a_b", "a/b"])["a/b"] == names["a/b"]
    assert len(set(folder_names(["a/b", "a_b", names["a/b"]]).values())) == 3


@pytest.mark.parametrize("name", ["CON", "nul", "com1.txt", "", "..", "x" * 5000, "é" * 100])
def test_names_that_are_no_file_names(name):
    (found,) = folder_names([name]).values()
    assert found != name
    assert found[-9] == "-"


@settings(max_examples=50)
@given(st.lists(st.text(max_size=12) | st.sampled_from(HOSTILE), max_size=8))
@example(HOSTILE)
def test_each_has_a_place_of_its_own_in_the_folder(names):
    found = folder_names(names)
    assert set(found) == set(names)
    seen = {unicodedata.normalize("NFKC", name).casefold() for name in found.values()}
    assert len(seen) == len(set(names))
    folder = Path("/out")
    for name in found.values():
        assert (folder / name).resolve().parent == folder
        assert name not in ("", ".", "..")
        assert not name.startswith(".")
        assert len(name.encode()) < 140
        name.encode("utf-8")
