"""A run's folder: what is done is kept, what has changed or is damaged is refused, what was killed goes on or is done again."""

import errno
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from itertools import count

import pytest

from trl_pafo.errors import RunFolderError
from trl_pafo.storage import run_folder as runs
from trl_pafo.storage.run_folder import KEPT, MANIFEST, RunFolder

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
        match = (
            r"holds the stage 'student' of another run \(learning_rate: 0.1 -> 0.2; seed: not set -> 1\).*pass --overwrite true"
        )
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


class Killed(BaseException):
    """As if the process had ended."""


@contextmanager
def killed_before_change(number):
    """From the change of the disk with this number on, none happens any more. Yields how many happened, as a list of one."""
    done = [0]

    def guard(function):
        def guarded(*args, **kwargs):
            if done[0] == number:
                raise Killed
            done[0] += 1
            return function(*args, **kwargs)

        return guarded

    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        for name in ("replace", "unlink", "rmdir", "mkdir", "fsync"):
            patch.setattr(os, name, guard(getattr(os, name)))
        yield done


def left_over(folder):
    return [p for p in folder.rglob("*") if p.suffix == ".partial" or p.name == KEPT]


class TestKilledBetweenTwoChanges:
    """At whatever change of the disk a run is killed, the next one ends with the whole output and works only if it must."""

    def test_in_a_new_stage(self, tmp_path):
        calls = []
        for number in count():
            path, work = tmp_path / str(number), Work()
            with killed_before_change(number) as done:
                do(path, work)
            if done[0] < number:
                break
            before = work.calls
            folder, _ = do(path, work)
            assert kept(folder) == "result"
            assert not left_over(path)
            calls.append((before, work.calls))
        # Killed before the work, after it, and once the manifest knows its output.
        assert calls == sorted(calls, key=[(0, 1), (1, 2), (1, 1)].index)
        assert len(set(calls)) == 3

    def test_in_a_stage_that_replaces_another(self, tmp_path):
        new = {"other": 1}
        texts = []
        for number in count():
            path, work = tmp_path / str(number), Work("new")
            do(path, Work("old"))
            with killed_before_change(number) as done:
                do(path, work, new, overwrite=True)
            if done[0] < number:
                break
            # What the manifest says is what is there: the old output, or the new one.
            texts.append("old")
            try:
                folder, _ = do(path, Work("never"), new)
                texts[-1] = "new"
            except RunFolderError:
                folder, _ = do(path, Work("never"))
            assert kept(folder) == texts[-1]
            do(path, work, new, overwrite=True)
            assert kept(folder) == "new"
            assert work.calls <= (1 if texts[-1] == "new" else 2)
            assert not left_over(path)
        assert texts == sorted(texts, reverse=True)
        assert len(set(texts)) == 2


class Steps:
    """A stage that can go on: keeps a line a step, and is killed after some of them."""

    def __init__(self, killed_after=None):
        self.killed_after, self.done = killed_after, []

    def __call__(self, out):
        notes = out / KEPT / "steps"
        steps = notes.read_text().split() if notes.exists() else []
        before = float(len(steps))
        for step in ("a", "b", "c")[len(steps) :]:
            if step == self.killed_after:
                raise KeyboardInterrupt
            steps.append(step)
            self.done.append(step)
            notes.write_text(" ".join(steps))
        (out / "model").write_text("".join(steps))
        return before


class TestGoingOn:
    def go(self, path, work, inputs=INPUTS, keep_for=None, **options):
        folder = RunFolder(path, **options)
        folder.stage("student", inputs, "models/student", work, keep_for=keep_for or {"version": 1})
        return folder

    def test_what_was_kept_is_there_and_gone_when_it_is_done(self, path):
        with pytest.raises(KeyboardInterrupt):
            self.go(path, Steps("c"))
        work = Steps()
        folder = self.go(path, work)
        assert work.done == ["c"]
        assert kept(folder) == "abc"
        assert [p.name for p in (path / "models").rglob("*")] == ["student", "model"]
        assert 2.0 <= folder.seconds()["student"] < 2.5  # the seconds of the killed attempt count

    def test_of_what_failed_only_that_is_kept(self, path):
        def full(out):
            Steps()(out)
            raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.raises(RunFolderError, match="No space left on device"):
            self.go(path, full)
        assert [p.name for p in (path / "models/student.partial").iterdir()] == [KEPT]

    @pytest.mark.parametrize("other", [{"inputs": {**INPUTS, "data": "other"}}, {"keep_for": {"version": 2}}], ids=list)
    def test_what_was_kept_for_another_is_not_used(self, path, other):
        with pytest.raises(KeyboardInterrupt):
            self.go(path, Steps("c"))
        (path / "models/student.partial/model").write_text("of the other")
        work = Steps()
        self.go(path, work, **other)
        assert work.done == ["a", "b", "c"]

    def test_a_note_that_was_half_written_is_not_used(self, path):
        with pytest.raises(KeyboardInterrupt):
            self.go(path, Steps("c"))
        (path / "models/student.partial" / KEPT / "kept_for.json").write_text('"12')
        work = Steps()
        self.go(path, work)
        assert work.done == ["a", "b", "c"]


class TestDamage:
    @pytest.fixture
    def large(self, monkeypatch):
        """Files count as large, so that they are read again only if their time of change is another."""
        monkeypatch.setattr(runs, "_SMALL", 0)

    def refused(self, path, match):
        with pytest.raises(
            RunFolderError, match=match + r".*'student' cannot be used.*remove .*student or pass --overwrite true"
        ):
            do(path, Work())
        work = Work("again")
        folder, _ = do(path, work, overwrite=True)
        assert work.calls == 1
        assert kept(folder) == "again"

    def test_a_file_that_was_cut_off(self, path):
        do(path, Work())
        (path / "models/student/model").write_text("res")
        self.refused(path, r"student/model has 3 bytes and not the 6 that were written")

    def test_a_file_that_is_missing(self, path):
        do(path, Work())
        (path / "models/student/model").unlink()
        self.refused(path, r"student/model is missing")

    def test_other_content_of_the_same_size(self, path):
        do(path, Work())
        (path / "models/student/model").write_text("tluser")
        self.refused(path, r"student/model is not what was written")

    def test_other_content_of_the_same_size_in_a_large_file(self, path, large):
        do(path, Work())
        (path / "models/student/model").write_text("tluser")
        self.refused(path, r"student/model is not what was written")

    def test_a_large_file_is_not_read_again_while_it_is_untouched(self, path, large, monkeypatch):
        do(path, Work())
        monkeypatch.setattr(runs, "_file_digest", lambda path: pytest.fail("read again"))
        work = Work()
        do(path, work)
        assert work.calls == 0

    @pytest.mark.parametrize("copy", [shutil.copy, shutil.copy2])
    def test_a_copied_run_is_whole(self, path, tmp_path, large, copy):
        do(path, Work())
        shutil.copytree(path, tmp_path / "copy", copy_function=copy)
        work = Work()
        do(tmp_path / "copy", work)
        assert work.calls == 0

    def test_what_is_added_or_written_for_people_is_no_damage(self, path):
        def with_card(out):
            Work()(out)
            (out / "README.md").write_text("card")

        do(path, with_card)
        (path / "models/student/README.md").write_text("A better card.")
        (path / "models/student/notes.txt").write_text("mine")
        work = Work()
        do(path, work)
        assert work.calls == 0

    def test_what_is_made_again_at_little_cost_is_made_again(self, path, capsys):
        folder = RunFolder(path)
        for text in ("1", "2"):
            folder.stage("table", INPUTS, "table.csv", lambda out, text=text: out.write_text(text) and None, derived=True)
            (path / "table.csv").write_text("?")
        assert "[table] " + str(path / "table.csv") + " is not what was written: done again" in capsys.readouterr().out
        folder.stage("table", INPUTS, "table.csv", lambda out: out.write_text("3") and None, derived=True)
        assert (path / "table.csv").read_text() == "3"

    def test_a_run_of_an_older_version_knows_no_digests(self, path):
        do(path, Work())
        manifest = json.loads((path / MANIFEST).read_text())
        del manifest["stages"]["student"]["files"]
        (path / MANIFEST).write_text(json.dumps(manifest))
        work = Work()
        do(path, work)
        assert work.calls == 0


class TestFullDisk:
    def test_in_the_work(self, path):
        do(path, Work("old"))
        full = OSError(errno.ENOSPC, "No space left on device")
        match = r"models/student cannot be written: No space left on device. Make room"
        with pytest.raises(RunFolderError, match=match):
            do(path, Work("half", full), {"other": 1}, overwrite=True)
        assert not left_over(path)  # it would fill the disk further
        folder, _ = do(path, Work("never"))
        assert kept(folder) == "old"

    @pytest.mark.parametrize("name", ["fsync", "replace", "mkdir"])
    def test_wherever_it_is_noticed(self, path, monkeypatch, name):
        do(path, Work("old"))
        folder = RunFolder(path, overwrite=True)

        def refuse(*args, **kwargs):
            raise OSError(errno.EROFS, "Read-only file system", str(path / "models"))

        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            with pytest.raises(
                RunFolderError, match=r"run/models cannot be read or written: Read-only file system. Make it writable"
            ):
                folder.stage("student", {"other": 1}, "models/student", Work("new"))
        again, _ = do(path, Work("never"))
        assert kept(again) == "old"

    def test_a_new_folder(self, path, monkeypatch):
        def refuse(*args, **kwargs):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(os, "mkdir", refuse)
        with pytest.raises(RunFolderError, match="run cannot be read or written: Permission denied"):
            RunFolder(path)


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


class TestLock:
    def test_a_second_run_is_refused_while_the_first_is_at_work(self, path):
        first, second = RunFolder(path), RunFolder(path)
        with first.locked(), pytest.raises(RunFolderError, match="Another run is at work in"), second.locked():
            pass
        with second.locked():  # the first has ended
            pass

    def test_a_killed_run_gives_the_lock_back(self, path):
        RunFolder(path)
        holder = "import sys, time; from trl_pafo.storage.run_folder import RunFolder\nwith RunFolder(sys.argv[1]).locked(): print(1, flush=True); time.sleep(60)"
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

    def test_what_killed_runs_were_writing_is_removed(self, path):
        dead = subprocess.Popen(["true"])
        dead.wait()
        folder = RunFolder(path)
        (path / f"report.html.{dead.pid}.tmp").write_text("half")
        with folder.locked():
            assert sorted(p.name for p in path.iterdir()) == [".lock", MANIFEST]
