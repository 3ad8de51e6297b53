"""A run's folder: what is done is kept, what has changed is refused, what was killed is done again."""

import json
import os
import subprocess
import sys

import pytest

from trl_pafo.errors import RunFolderError
from trl_pafo.runs import MANIFEST, RunFolder, write_text

INPUTS = {"learning_rate": 0.1, "data": "digest"}


class Work:
    """Writes a file, and counts how often it was asked to."""

    def __init__(self, text="result", error=None):
        self.text, self.error, self.calls = text, error, 0

    def __call__(self, out):
        self.calls += 1
        assert not out.exists()
        out.mkdir()
        (out / "model").write_text(self.text)
        if self.error:
            raise self.error


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run"


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def kept(folder):
    return (folder.path / "models/student/model").read_text()


def do(path, work, inputs=INPUTS, **options):
    folder = RunFolder(path, **options)
    return folder, folder.stage("student", inputs, "models/student", work)


class TestStages:
    def test_what_is_done_is_skipped(self, path, capsys):
        work = Work()
        folder, digest = do(path, work)
        assert kept(folder) == "result"
        assert do(path, work, dict(reversed(INPUTS.items())))[1] == digest  # the order of the inputs says nothing
        assert work.calls == 1
        assert "[student] done before, kept" in capsys.readouterr().out

    def test_check_says_so_without_doing_anything(self, path):
        folder = RunFolder(path)
        assert not folder.check("student", INPUTS)
        do(path, Work())
        before = files(path)
        assert RunFolder(path).check("student", INPUTS)
        assert not RunFolder(path).check("other", INPUTS)
        assert files(path) == before

    def test_changed_inputs_are_refused_and_named(self, path):
        do(path, Work())
        before = files(path)
        work = Work("new")
        match = r"holds the stage 'student' of another run \(learning_rate: 0.1 -> 0.2; seed: null -> 1\).*pass --overwrite true"
        with pytest.raises(RunFolderError, match=match):
            do(path, work, {**INPUTS, "learning_rate": 0.2, "seed": 1})
        assert work.calls == 0
        assert files(path) == before

    def test_overwrite_replaces(self, path):
        _, first = do(path, Work())
        folder, second = do(path, Work("new"), {**INPUTS, "learning_rate": 0.2}, overwrite=True)
        assert first != second
        assert kept(folder) == "new"
        work = Work()
        do(path, work, {**INPUTS, "learning_rate": 0.2})
        assert work.calls == 0

    def test_overwrite_keeps_what_has_not_changed(self, path):
        do(path, Work())
        work = Work("new")
        do(path, work, overwrite=True)
        assert work.calls == 0

    def test_a_missing_output_is_made_again(self, path):
        folder, _ = do(path, Work())
        (path / "models/student/model").unlink()
        (path / "models/student").rmdir()
        work = Work()
        do(path, work)
        assert work.calls == 1
        assert kept(folder) == "result"

    def test_the_digest_of_a_stage_is_an_input_of_the_next(self, path):
        folder = RunFolder(path, overwrite=True)
        for rate, calls in ((0.1, 1), (0.1, 0), (0.2, 1)):
            digest = folder.stage("teacher", {"rate": rate}, "models/teacher", Work())
            work = Work(f"student of {rate}")
            folder.stage("student", {"teacher": digest}, "models/student", work)
            assert work.calls == calls
            assert kept(folder) == f"student of {rate}"

    def test_a_stage_may_be_a_file_and_inputs_any_value(self, path):
        folder = RunFolder(path)
        inputs = {"folder": path, "fields": ("a", "b"), "none": None}
        folder.stage("table", inputs, "table.csv", lambda out: out.write_text("1"))
        assert (folder / "table.csv").read_text() == "1"
        assert RunFolder(path).check("table", inputs)

    def test_seconds(self, path):
        folder, _ = do(path, Work())
        assert list(folder.seconds()) == ["student"]
        assert RunFolder(path).seconds() == folder.seconds()
        assert folder.seconds()["student"] >= 0


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), RuntimeError("out of memory")], ids=repr)
class TestKilled:
    def test_no_output_is_left_and_the_next_try_starts_clean(self, path, error):
        with pytest.raises(type(error)):
            do(path, Work("half", error))
        assert not (path / "models/student").exists()
        assert not RunFolder(path).check("student", INPUTS)
        folder, _ = do(path, Work("whole"))  # Work finds no half-written folder
        assert kept(folder) == "whole"
        assert not list(path.rglob("*.partial"))

    def test_what_was_to_be_replaced_is_still_there(self, path, error):
        do(path, Work("old"))
        with pytest.raises(type(error)):
            do(path, Work("half", error), {"other": 1}, overwrite=True)
        work = Work()
        folder, _ = do(path, work)
        assert work.calls == 0
        assert kept(folder) == "old"

    def test_the_new_output_is_never_taken_for_the_old(self, path, error, monkeypatch):
        do(path, Work("old"))
        folder = RunFolder(path, overwrite=True)
        replace = os.replace

        def killed_after_the_output_is_in_place(source, target):
            replace(source, target)
            if str(target).endswith("student"):
                raise error

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed_after_the_output_is_in_place)
            with pytest.raises(type(error)):
                folder.stage("student", {"other": 1}, "models/student", Work("new"))
        assert kept(folder) == "new"
        again, _ = do(path, Work("old"))
        assert kept(again) == "old"


class TestFolder:
    def test_it_is_made_with_its_parents(self, tmp_path):
        RunFolder(tmp_path / "a/b")
        assert json.loads((tmp_path / "a/b" / MANIFEST).read_text())["stages"] == {}

    def test_an_empty_folder_is_taken(self, tmp_path):
        assert RunFolder(tmp_path).seconds() == {}

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_foreign_folder_is_refused_and_left_alone(self, tmp_path, overwrite):
        (tmp_path / "thesis.txt").write_text("years of work")
        before = files(tmp_path)
        with pytest.raises(RunFolderError, match=r"is not empty and is no run of trl-pafo. Choose another --output_dir"):
            RunFolder(tmp_path, overwrite)
        assert files(tmp_path) == before

    @pytest.mark.parametrize(
        ("manifest", "match"),
        [
            (b'{"format": "trl-pa', "manifest.json cannot be read"),
            (b"\xff\xfe", "manifest.json cannot be read"),
            (b"[]", "belongs to another kind or version of run"),
            (b"{}", "belongs to another kind or version of run"),
            (b'{"format": "trl-pafo run 0", "stages": {}}', "belongs to another kind or version of run"),
        ],
    )
    def test_a_manifest_that_is_not_ours(self, path, manifest, match):
        path.mkdir()
        (path / MANIFEST).write_bytes(manifest)
        with pytest.raises(RunFolderError, match=match + ".*Choose another --output_dir"):
            RunFolder(path, overwrite=True)
        assert files(path) == {MANIFEST: manifest}

    def test_a_file_is_refused(self, path):
        path.write_text("")
        with pytest.raises(RunFolderError, match=r"is a file. Choose another --output_dir"):
            RunFolder(path)

    def test_a_folder_that_cannot_be_made(self, path):
        path.write_text("")
        with pytest.raises(RunFolderError, match="cannot be written"):
            RunFolder(path / "run")


def test_a_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    write_text(file, "old")

    def full(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(file, "new")
    assert file.read_text() == "old"
    monkeypatch.undo()
    write_text(file, "ä")
    assert file.read_text(encoding="utf-8") == "ä"
    with open(file, encoding="utf-8") as reader:  # who has begun to read goes on with the old file
        write_text(file, "newer")
        assert reader.read() == "ä"
    assert file.read_text() == "newer"


class TestLock:
    def test_a_second_run_is_refused_while_the_first_is_at_work(self, path):
        first, second = RunFolder(path), RunFolder(path)
        with first.locked(), pytest.raises(RunFolderError, match="Another run is at work in"), second.locked():
            pass
        with second.locked():  # the first has ended
            pass

    def test_a_killed_run_gives_the_lock_back(self, path):
        RunFolder(path)
        holder = "import sys, time; from trl_pafo.runs import RunFolder\nwith RunFolder(sys.argv[1]).locked(): print(1, flush=True); time.sleep(60)"
        process = subprocess.Popen([sys.executable, "-c", holder, str(path)], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"1\n"
        with pytest.raises(RunFolderError, match="Another run is at work"), RunFolder(path).locked():
            pass
        process.kill()
        process.wait()
        with RunFolder(path).locked():
            pass

    def test_what_another_run_did_meanwhile_is_seen(self, path):
        late = RunFolder(path)
        work = Work()
        do(path, work)
        with late.locked():
            late.stage("student", INPUTS, "models/student", work)
        assert work.calls == 1
