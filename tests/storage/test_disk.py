"""Files are whole or not there, one process writes at a time, and a disk that refuses is told in one sentence."""

import errno
import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import table
from pyarrow.parquet import write_table
from safetensors import SafetensorError
from safetensors.torch import save_file

from trl_pafo.errors import RunFolderError
from trl_pafo.storage import files as disk
from trl_pafo.storage.files import (
    alone,
    digest_of_files,
    disk_error,
    new_folder,
    remove_leftovers,
    replacing,
    sync,
    write_text,
    writing,
)

FULL = OSError(errno.ENOSPC, "No space left on device")
REFUSALS = [
    (errno.ENOSPC, r"cannot be written: No space left on device\. Make room on the disk, then give the same command again"),
    (errno.EDQUOT, r"cannot be written: .*[Qq]uota.*\. Make room within your quota"),
    (errno.EROFS, r"cannot be read or written: Read-only file system\. Make it writable, or choose another output"),
    (errno.EACCES, r"cannot be read or written: Permission denied\. Make it writable, or choose another output"),
    (errno.EFBIG, r"cannot be written: File too large\. Raise the limit on the size of files"),
]


def refuse(number):
    def raises(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return raises


class TestDiskError:
    @pytest.mark.parametrize(("number", "match"), REFUSALS)
    def test_names_path_and_fix(self, number, match):
        with (
            pytest.raises(RunFolderError, match=rf"^out/model {match}.*What was finished before is unchanged\.$"),
            writing("out/model"),
        ):
            raise OSError(number, os.strerror(number))

    def test_what_is_written_aside_is_called_by_its_name(self):
        found = disk_error(PermissionError(errno.EACCES, "Permission denied", "out/a.json.123.tmp"), Path("out/a.json"))
        assert str(found).startswith("out/a.json cannot be read or written")

    def test_the_path_that_the_error_names_is_the_one_that_is_said(self):
        found = disk_error(PermissionError(errno.EACCES, "Permission denied", "/elsewhere/file"), "out")
        assert str(found).startswith("/elsewhere/file cannot be read or written")

    @pytest.mark.parametrize(
        "error",
        [
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            Exception("No space left on device (os error 28)"),  # tokenizers
            OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),  # pyarrow
        ],
        ids=["safetensors", "tokenizers", "pyarrow"],
    )
    def test_libraries_that_write_by_themselves(self, error):
        assert "No space left on device. Make room" in str(disk_error(error, "out"))

    def test_the_cause_of_an_error_is_found(self):
        outer = ValueError("The dataset cannot be generated.")
        outer.__cause__ = FULL
        assert "No space left" in str(disk_error(outer, "out"))

    @pytest.mark.parametrize(
        "error",
        [
            ValueError("28"),
            FileNotFoundError(errno.ENOENT, "No such file or directory", "teacher"),
            OSError("nowhere/x is not a local folder and is not a valid model identifier"),
            ConnectionError("[Errno 111] Connection refused"),
            RuntimeError("CUDA out of memory"),
        ],
        ids=repr,
    )
    def test_other_errors_are_left_as_they_are(self, error):
        assert disk_error(error, "out") is None
        with pytest.raises(type(error)) as raised, writing("out"):
            raise error
        assert raised.value is error

    def test_what_libraries_say_on_a_full_disk(self, tmp_path):
        """The words that are looked for are those of the installed versions."""
        tensor, file = torch.zeros(100_000), tmp_path / "file"
        writers = {
            "torch": lambda: torch.save(tensor, file),
            "safetensors": lambda: save_file({"x": tensor}, file),
            "pyarrow": lambda: write_table(table({"x": np.random.default_rng(0).random(100_000)}), file),
            "numpy": lambda: np.save(file, tensor.numpy()),
        }
        said = {}
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
        try:
            for name, write in writers.items():
                try:
                    write()
                except Exception as error:
                    said[name] = str(disk_error(error, "out"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        for name in ("torch", "numpy"):
            assert said.pop(name).startswith("out cannot be written: The disk did not take all of it. Make room on the disk"), (
                name
            )
        assert set(said) == {"safetensors", "pyarrow"}
        assert all("File too large. Raise the limit" in text for text in said.values()), said


class TestReplacing:
    @pytest.mark.parametrize("refused", ["fsync", "replace"])
    @pytest.mark.parametrize(("number", "match"), REFUSALS)
    def test_a_refusal_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch, refused, number, match):
        file = tmp_path / "results.json"
        write_text(file, "old")
        with monkeypatch.context() as patch:
            patch.setattr(os, refused, refuse(number))
            with pytest.raises(RunFolderError, match=f"results.json {match}"):
                write_text(file, "new")
        assert file.read_text() == "old"
        assert list(tmp_path.iterdir()) == [file]

    def test_an_error_while_writing_leaves_the_old_file(self, tmp_path):
        write_text(tmp_path / "a", "old")

        def half() -> None:
            with replacing(tmp_path / "a") as aside:
                aside.write_text("half")
                raise KeyError

        with pytest.raises(KeyError):
            half()
        assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]

    def test_the_file_is_on_the_disk_before_it_has_its_name_and_the_name_after(self, tmp_path, monkeypatch):
        done = []
        fsync, replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", lambda fd: (done.append(("sync", os.readlink(f"/proc/self/fd/{fd}"))), fsync(fd)))
        monkeypatch.setattr(os, "replace", lambda a, b: (done.append(("rename", str(b))), replace(a, b)))
        write_text(tmp_path / "a", "text")
        aside = str(tmp_path / f"a.{os.getpid()}.tmp")
        assert done == [("sync", aside), ("rename", str(tmp_path / "a")), ("sync", str(tmp_path))]

    def test_who_has_begun_to_read_goes_on_with_the_old_file(self, tmp_path):
        write_text(tmp_path / "a", "ä")
        with open(tmp_path / "a", encoding="utf-8") as reader:
            write_text(tmp_path / "a", "newer")
            assert reader.read() == "ä"
        assert (tmp_path / "a").read_text() == "newer"

    def test_leftovers_of_killed_processes_are_removed_and_no_others(self, tmp_path):
        dead = subprocess.Popen(["true"])
        dead.wait()
        (tmp_path / "deep").mkdir()
        names = [f"a.json.{dead.pid}.tmp", f"deep/b.png.{dead.pid}.tmp", f"c.json.{os.getpid()}.tmp", "mine.tmp", "thesis.1.tmp"]
        for name in names:
            (tmp_path / name).write_text("half")
        remove_leftovers(tmp_path)
        left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.tmp")}
        assert left == set(names[2:])


def test_sync_reaches_all_files_and_folders(tmp_path, monkeypatch):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_text("1")
    (tmp_path / "a/link").symlink_to("nowhere")
    seen = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (seen.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    sync(tmp_path / "a")
    assert seen == [str(tmp_path / name) for name in ("a/b/file", "a/b", "a")]


def test_a_disk_that_cannot_sync_folders_is_no_error(tmp_path, monkeypatch):
    fsync = os.fsync

    def only_files(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"


class TestAlone:
    @pytest.mark.parametrize("kind", ["file", "folder"])
    def test_the_second_is_refused_until_the_first_ends(self, tmp_path, kind):
        path = tmp_path if kind == "folder" else tmp_path / "lock"
        with alone(path, "busy"), pytest.raises(RunFolderError, match="busy"), alone(path, "busy"):
            pass
        with alone(path, "busy"):
            pass

    @pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EBADF])
    def test_a_disk_without_locks_is_said_and_no_error(self, tmp_path, monkeypatch, caplog, number):
        monkeypatch.setattr(disk.fcntl, "flock", refuse(number))
        entered = False
        with caplog.at_level(logging.WARNING), alone(tmp_path, "busy"):
            entered = True
        assert entered
        assert "cannot be locked" in caplog.text
        assert "see to it that nothing else writes there" in caplog.text

    def test_a_read_only_folder(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "open", refuse(errno.EROFS))
        with pytest.raises(RunFolderError, match=r"Read-only file system\. Make it writable"), alone(tmp_path / "lock", "busy"):
            pass


class TestNewFolder:
    def test_it_is_there_when_all_is_written(self, tmp_path):
        with new_folder(tmp_path / "deep/out") as aside:
            aside.mkdir()
            (aside / "a").write_text("1")
            assert not (tmp_path / "deep/out").exists()
        assert (tmp_path / "deep/out/a").read_text() == "1"
        assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), FULL, KeyError("x")], ids=repr)
    def test_nothing_is_left_of_one_that_failed(self, tmp_path, error):
        kind = RunFolderError if error is FULL else type(error)

        def half() -> None:
            with new_folder(tmp_path / "out") as aside:
                aside.mkdir()
                (aside / "a").write_text("half")
                raise error

        with pytest.raises(kind):
            half()
        assert list(tmp_path.iterdir()) == []

    def test_an_existing_one_is_refused(self, tmp_path):
        match = r"exists already\. Choose another --output; nothing is overwritten"
        with pytest.raises(RunFolderError, match=match), new_folder(tmp_path, "--output"):
            pass

    def test_one_that_came_meanwhile_is_refused(self, tmp_path, monkeypatch):
        lock = disk.alone

        def late(path, busy):
            (tmp_path / "out").mkdir()
            return lock(path, busy)

        monkeypatch.setattr(disk, "alone", late)
        with pytest.raises(RunFolderError, match="exists already"), new_folder(tmp_path / "out"):
            pass

    def test_a_second_at_the_same_folder_is_refused(self, tmp_path):
        with new_folder(tmp_path / "out") as aside:
            aside.mkdir()
            match = r"Another process is at work on .*out\. Wait until it ends"
            with pytest.raises(RunFolderError, match=match), new_folder(tmp_path / "out"):
                pass
            assert aside.exists()

    def test_a_killed_one_is_made_anew(self, tmp_path):
        code = (
            "import sys, time; from pathlib import Path; from trl_pafo.storage.files import new_folder\n"
            "with new_folder(Path(sys.argv[1])) as aside: aside.mkdir(); (aside / 'half').touch(); print(1, flush=True); time.sleep(60)"
        )
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"1\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / "out.partial/out/half").exists()
        with new_folder(tmp_path / "out") as aside:
            assert not aside.exists()
            aside.mkdir()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert list((tmp_path / "out").iterdir()) == []

    def test_something_else_beside_it_is_left_alone(self, tmp_path):
        (tmp_path / "out.partial").mkdir()
        (tmp_path / "out.partial/thesis.txt").write_text("years of work")
        with pytest.raises(RunFolderError, match=r"out\.partial exists already"), new_folder(tmp_path / "out"):
            pass
        assert (tmp_path / "out.partial/thesis.txt").read_text() == "years of work"


def test_a_real_limit_of_the_disk(tmp_path):
    """In a process that may write 64 KiB a file, as on a disk that is full from there on."""
    code = "import sys; from pathlib import Path; from trl_pafo.storage.files import write_text; write_text(Path(sys.argv[1]), 'x' * 200_000)"
    file = tmp_path / "results.json"
    write_text(file, "old")
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "RunFolderError" in done.stderr
    assert "File too large. Raise the limit on the size of files (`ulimit -f`)" in done.stderr
    assert [(path.name, path.read_text()) for path in Path(tmp_path).iterdir()] == [("results.json", "old")]


def test_a_digest_is_that_of_names_and_content(tmp_path):
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    write("folder/a", "1")
    write("folder/cache-1.arrow", "of somebody's work")
    before = digest_of_files(tmp_path / "folder", but=["cache-*"])
    write("folder/cache-2.arrow", "more of it")
    assert digest_of_files(tmp_path / "folder", but=["cache-*"]) == before
    assert digest_of_files(tmp_path / "folder") != before
    (tmp_path / "folder/a").rename(tmp_path / "folder/b")
    assert digest_of_files(tmp_path / "folder", but=["cache-*"]) != before
    named = write("cache-x.jsonl", "1")  # what is named itself is always read
    before = digest_of_files(named, but=["cache-*"])
    assert digest_of_files(write("other", "1")) == before
    assert digest_of_files(write("cache-x.jsonl", "2"), but=["cache-*"]) != before
