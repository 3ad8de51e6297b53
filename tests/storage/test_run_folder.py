"""A run's folder: what is done is kept, what has changed or is damaged is refused, what was interrupted resumes or is done again."""

import errno
import json
import os
import shutil
from contextlib import contextmanager, suppress
from itertools import count

import pytest
from helpers.parts import files_of

from trl_pafo.errors import RunFolderError
from trl_pafo.storage import run_folder
from trl_pafo.storage.run_folder import KEPT, LOCK, MANIFEST, RunFolder

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
        before = files_of(path)
        assert RunFolder(path).check("student", INPUTS)
        assert not RunFolder(path).check("other", INPUTS)
        assert files_of(path) == before
        assert list(RunFolder(path).seconds()) == ["student"]

    def test_changed_inputs_are_refused_and_named(self, path):
        do(path, Work())
        before = files_of(path)
        work = Work("new")
        match = (
            r"holds the stage 'student' of another run \(learning_rate: 0.1 -> 0.2; seed: not set -> 1\).*pass --overwrite true"
        )
        with pytest.raises(RunFolderError, match=match):
            do(path, work, {**INPUTS, "learning_rate": 0.2, "seed": 1})
        assert work.calls == 0
        assert files_of(path) == before

    def test_a_stage_may_be_a_file_and_inputs_any_value(self, path):
        folder = RunFolder(path)
        inputs = {"folder": path, "fields": ("a", "b"), "none": None}
        folder.stage("table", inputs, "table.csv", lambda out: out.write_text("1"))
        assert (folder / "table.csv").read_text() == "1"
        assert RunFolder(path).check("table", inputs)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")], ids=repr)
def test_nothing_is_left_of_work_that_failed_and_what_was_to_be_replaced_is_still_there(path, error):
    with pytest.raises(type(error)):
        do(path, Work("half", error))
    assert not (path / "models/student").exists()
    folder, _ = do(path, Work("old"))  # Work finds no half-written folder
    with pytest.raises(type(error)):
        do(path, Work("half", error), {"other": 1}, overwrite=True)
    folder, _ = do(path, Work("never"))
    assert kept(folder) == "old"
    assert not list(path.rglob("*.partial"))


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
        for name in ("replace", "unlink", "rmdir", "mkdir"):
            patch.setattr(os, name, guard(getattr(os, name)))
        yield done


def test_killed_between_any_two_changes_of_the_disk(tmp_path):
    """The next run ends with the complete output, and the manifest never says of an output what is not so."""
    new, calls = {"other": 1}, []
    for number in count():
        path, work = tmp_path / str(number), Work("new")
        do(path, Work("old"))
        with killed_before_change(number) as done:
            do(path, work, new, overwrite=True)
        if done[0] < number:
            break
        manifest = json.loads((path / MANIFEST).read_text())["stages"]
        if "student" in manifest:
            assert kept(RunFolder(path)) == ("new" if manifest["student"]["inputs"] == new else "old")
        folder, _ = do(path, work, new, overwrite=True)
        assert kept(folder) == "new"
        calls.append(work.calls)
        assert not [p for p in path.rglob("*") if p.suffix == ".partial" or p.name == KEPT]
    assert set(calls) == {1, 2}  # killed before the work and after it
    assert number > 5


class Steps:
    """A stage that can resume: keeps a line a step, and is interrupted after some of them."""

    def __init__(self, killed_after=None):
        self.killed_after, self.done = killed_after, []

    def __call__(self, out):
        notes = out / KEPT / "steps"
        steps = notes.read_text().split() if notes.exists() else []
        for step in ("a", "b", "c")[len(steps) :]:
            if step == self.killed_after:
                raise KeyboardInterrupt
            steps.append(step)
            self.done.append(step)
            notes.write_text(" ".join(steps))
        (out / "model").write_text("".join(steps))


class TestResuming:
    def go(self, path, work, inputs=INPUTS, keep_for=None):
        folder = RunFolder(path)
        folder.stage("student", inputs, "models/student", work, keep_for=keep_for or {"version": 1})
        return folder

    @pytest.fixture
    def interrupted(self, path):
        with pytest.raises(KeyboardInterrupt):
            self.go(path, Steps("c"))
        return path

    def test_what_was_kept_is_there_and_gone_when_it_is_done(self, interrupted):
        work = Steps()
        folder = self.go(interrupted, work)
        assert work.done == ["c"]
        assert kept(folder) == "abc"
        assert [p.name for p in (interrupted / "models").rglob("*")] == ["student", "model"]

    def test_of_what_failed_only_that_is_kept(self, path):
        def full(out):
            Steps()(out)
            raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.raises(RunFolderError, match=r"no room to write .*models/student: .*No space left on device"):
            self.go(path, full)
        assert [p.name for p in (path / "models/student.partial").iterdir()] == [KEPT]

    @pytest.mark.parametrize("other", [{"inputs": {**INPUTS, "data": "other"}}, {"keep_for": {"version": 2}}], ids=list)
    def test_what_was_kept_for_another_is_not_used(self, interrupted, other):
        (interrupted / "models/student.partial/model").write_text("of the other")
        work = Steps()
        self.go(interrupted, work, **other)
        assert work.done == ["a", "b", "c"]


class TestDamage:
    @pytest.mark.parametrize(
        "damage", [lambda file: file.write_text("res"), lambda file: file.unlink()], ids=["cut off", "missing"]
    )
    def test_a_file_that_is_not_as_it_was_written_is_refused(self, path, damage):
        do(path, Work())
        damage(path / "models/student/model")
        match = (
            r"student/model is missing, or has another size.*'student' cannot be used.*remove .*student or pass --overwrite true"
        )
        with pytest.raises(RunFolderError, match=match):
            do(path, Work())
        folder, _ = do(path, Work("again"), overwrite=True)
        assert kept(folder) == "again"

    def test_a_copied_run_is_complete_and_what_is_added_is_no_damage(self, path, tmp_path):
        def with_card(out):
            Work()(out)
            (out / "README.md").write_text("card")

        do(path, with_card)
        shutil.copytree(path, tmp_path / "copy", copy_function=shutil.copy)
        (tmp_path / "copy/models/student/README.md").write_text("A better card.")
        (tmp_path / "copy/models/student/notes.txt").write_text("mine")
        work = Work()
        do(tmp_path / "copy", work)
        assert work.calls == 0

    def test_a_missing_output_and_what_costs_little_are_made_again(self, path):
        do(path, Work())
        shutil.rmtree(path / "models/student")
        folder, _ = do(path, Work("again"))
        assert kept(folder) == "again"
        for text in ("first", "again"):
            folder.stage("table", INPUTS, "table.csv", lambda out, text=text: out.write_text(text), derived=True)
            before = (path / "table.csv").read_text()
            (path / "table.csv").write_text("?")
        assert before == "again"


class TestFolder:
    def test_it_is_made_with_its_parents_and_an_empty_one_is_taken(self, tmp_path):
        RunFolder(tmp_path / "a/b")
        assert json.loads((tmp_path / "a/b" / MANIFEST).read_text())["stages"] == {}
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / LOCK).touch()  # of a run that was killed before it wrote its manifest
        assert RunFolder(tmp_path / "c").seconds() == {}

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_foreign_folder_is_refused_and_left_alone(self, tmp_path, overwrite):
        (tmp_path / "thesis.txt").write_text("years of work")
        before = files_of(tmp_path)
        with pytest.raises(RunFolderError, match=r"is a file. Choose another --output_dir"):
            RunFolder(tmp_path / "thesis.txt", overwrite)
        with pytest.raises(RunFolderError, match=r"is not empty and is not a run of trl-pafo. Choose another --output_dir"):
            RunFolder(tmp_path, overwrite)
        assert files_of(tmp_path) == before

    @pytest.mark.parametrize(
        ("manifest", "match"),
        [
            (b'{"format": "trl-pa', "manifest.json cannot be read"),
            (b'{"format": "trl-pafo run 0", "stages": {}}', "belongs to another kind or version of run"),
        ],
    )
    def test_a_manifest_that_is_not_ours(self, path, manifest, match):
        path.mkdir()
        (path / MANIFEST).write_bytes(manifest)
        with pytest.raises(RunFolderError, match=match + ".*Choose another --output_dir"):
            RunFolder(path, overwrite=True)
        assert files_of(path) == {MANIFEST: manifest}


class TestLock:
    def test_a_second_run_is_refused_while_the_first_is_at_work(self, path):
        first, second = RunFolder(path), RunFolder(path)
        with first.locked(), pytest.raises(RunFolderError, match="Another run is running in"), second.locked():
            pass
        with second.locked():  # the first has ended
            pass

    def test_single_stages_go_beside_each_other_and_beside_no_run(self, path, monkeypatch):
        monkeypatch.setattr(run_folder, "_SOON", 0.05)
        run, guest, other = RunFolder(path), RunFolder(path), RunFolder(path)

        def do(folder, stage, work):
            folder.stage(stage, INPUTS, f"models/{stage}", work)

        def while_the_guest_works(out):
            with pytest.raises(RunFolderError, match="Another process is doing the stage of models-student"), run.locked():
                pass
            with other.beside_others():
                do(other, "teacher", Work())
                with pytest.raises(RunFolderError, match="Another process is doing the stage of models-student"):
                    do(other, "student", Work())
            Work()(out)

        with guest.beside_others():
            do(guest, "student", while_the_guest_works)
            assert list(run.seconds()) == ["teacher", "student"]  # neither has written over what the other wrote
            with run.locked():
                do(run, "student", None)  # done
                with pytest.raises(RunFolderError, match="Another run is running"), other.beside_others():
                    pass
                with pytest.raises(RunFolderError, match="Another run is running"):  # it has begun after the guest
                    do(guest, "late", Work())
        assert not (path / "models/late").exists()

    def test_what_another_run_did_meanwhile_is_seen_and_its_temporary_files_go(self, path):
        late = RunFolder(path)
        work = Work()
        do(path, work)
        (path / "report.html.123.tmp").write_text("half")
        with late.locked():
            late.stage("student", INPUTS, "models/student", work)
            assert not list(path.glob("*.tmp"))
        assert work.calls == 1


class TestDonors:
    """Other runs, from which stages of the same inputs are linked."""

    def take(self, path, donor, work, inputs=INPUTS):
        folder = RunFolder(path)
        folder.donors = (donor,)
        return folder, folder.stage("student", inputs, "models/student", work)

    def test_what_a_donor_has_done_is_not_done_again(self, path, tmp_path, capsys):
        donor = tmp_path / "donor"
        do(donor, Work("theirs"))
        work = Work("ours")
        folder, _ = self.take(path, donor, work)
        assert (work.calls, kept(folder)) == (0, "theirs")
        assert f"[student] taken from {donor}" in capsys.readouterr().out
        assert folder.seconds() == RunFolder(donor).seconds()
        do(path, Work("changed"), {**INPUTS, "alpha": 1}, overwrite=True)
        assert (kept(folder), kept(RunFolder(donor))) == ("changed", "theirs")  # what was linked is not written over

    @pytest.mark.parametrize("spoiled", ["other inputs", "cut off", "gone", "not done", "no run"])
    def test_what_a_donor_has_not_is_done(self, path, tmp_path, spoiled):
        donor = tmp_path / "donor"
        if spoiled == "not done":
            RunFolder(donor)
        elif spoiled != "no run":
            do(donor, Work("theirs"), {**INPUTS, "alpha": 1} if spoiled == "other inputs" else INPUTS)
        if spoiled == "cut off":
            (donor / "models/student/model").write_text("t")
        elif spoiled == "gone":
            shutil.rmtree(donor / "models")
        folder, _ = self.take(path, donor, work := Work("ours"))
        assert (work.calls, kept(folder)) == (1, "ours")

    def test_a_file_is_taken_too(self, path, tmp_path):
        donor = tmp_path / "donor"
        RunFolder(donor).stage("margins", INPUTS, "margins.npy", lambda out: out.write_text("1"))
        folder = RunFolder(path)
        folder.donors = (donor,)
        folder.stage("margins", INPUTS, "margins.npy", lambda out: pytest.fail("done again"))
        assert (path / "margins.npy").read_text() == "1"
