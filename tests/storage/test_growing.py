"""A file that grows is continued after its last complete part, or refused; never mixed."""

import shutil
from contextlib import contextmanager

import pytest

from trl_pafo.errors import RunFolderError
from trl_pafo.storage.files import alone
from trl_pafo.storage.growing import growing

SAME = {"input": "a", "model": "b"}


def write(path, until=7, identity=SAME):
    """Lines 0 to 6, two at once; interrupted after so many bytes of text. The number that was there before."""
    with growing(path, identity, 2) as (file, done):
        for number in range(done, 7):
            if number >= until:
                file.flush()
                raise KeyboardInterrupt
            file.write(b"%d\n" % number)
    return done


def test_it_appears_when_it_is_complete_and_nothing_else_is_left(tmp_path):
    assert write(tmp_path / "out") == 0
    assert (tmp_path / "out").read_text() == "0\n1\n2\n3\n4\n5\n6\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("until", "half", "done"), [(1, "", 0), (2, "", 2), (4, "4", 4), (5, "", 4), (5, "5", 4)])
def test_it_goes_on_after_its_last_complete_part(tmp_path, until, half, done):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", until)
    with open(tmp_path / "out.partial/lines", "a") as file:
        file.write(half)
    assert not (tmp_path / "out").exists()
    assert write(tmp_path / "out") == done
    assert (tmp_path / "out").read_text() == "0\n1\n2\n3\n4\n5\n6\n"


def test_what_was_begun_with_something_else_is_not_continued(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", 3)
    with pytest.raises(RunFolderError, match=r"out.partial holds the beginning of another out, with other model, dtype\. Use"):
        write(tmp_path / "out", identity={"input": "a", "model": "c", "dtype": "d"})
    assert write(tmp_path / "out") == 2


def test_two_at_once_and_what_is_there(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", 3)
    with alone(tmp_path / "out.partial", ""), pytest.raises(RunFolderError, match="is being written by another process"):
        write(tmp_path / "out")
    (tmp_path / "out").write_text("precious")
    with pytest.raises(RunFolderError, match="exists already"):
        write(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "precious"


def test_the_other_process_may_have_ended_a_moment_before_the_lock_is_taken(tmp_path, monkeypatch):
    @contextmanager
    def ends_first(folder, busy):
        shutil.rmtree(folder)
        (tmp_path / "out").write_text("precious")
        with alone(folder, busy):
            yield

    monkeypatch.setattr("trl_pafo.storage.growing.alone", ends_first)
    with pytest.raises(RunFolderError, match="exists already"), growing(tmp_path / "out", SAME, 2):
        pytest.fail("all would be scored in vain")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_where_nothing_was_written_nothing_is_left(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", 0)
    assert not list(tmp_path.iterdir())
