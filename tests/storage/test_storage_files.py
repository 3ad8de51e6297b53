"""Files are complete or not there, and one process writes at a time."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.parts import full_after, make_tokenizer
from safetensors.torch import save_file

from trl_pafo.errors import RunFolderError
from trl_pafo.storage.files import (
    LOCK,
    alone,
    check_place,
    digest_of_files,
    link_file,
    new_folder,
    remove_temporary_files,
    room_needed,
    write_text,
)


class TestReplacing:
    def test_a_full_disk_leaves_the_old_file_and_nothing_else(self, tmp_path):
        write_text(tmp_path / "results.json", "old")
        with full_after(1000), pytest.raises(OSError, match="File too large"):
            write_text(tmp_path / "results.json", "x" * 200_000)
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("results.json", "old")]

    @pytest.mark.parametrize("has_hard_links", [True, False])
    def test_a_file_has_a_second_name_also_where_the_disk_has_no_hard_links(self, tmp_path, monkeypatch, has_hard_links):
        if not has_hard_links:
            monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("not permitted")))
        (tmp_path / "model").write_text("weights")
        link_file(tmp_path / "model", tmp_path / "again")
        assert (tmp_path / "again").read_text() == "weights"
        assert (tmp_path / "again").samefile(tmp_path / "model") == has_hard_links

    def test_temporary_files_are_removed_and_no_others(self, tmp_path):
        (tmp_path / "deep").mkdir()
        for name in ("a.json.123.tmp", "deep/b.png.45.tmp", "mine.tmp", "a.json"):
            (tmp_path / name).write_text("half")
        remove_temporary_files(tmp_path)
        assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"mine.tmp", "a.json"}


NUMBERS = np.arange(20_000)
SAVERS = {
    "torch": lambda path: torch.save({"state": torch.from_numpy(NUMBERS)}, path),
    "safetensors": lambda path: save_file({"weight": torch.from_numpy(NUMBERS)}, path),
    "tokenizer": lambda path: make_tokenizer("decoder").backend_tokenizer.save(str(path)),
    "numpy": lambda path: np.save(path.with_suffix(".npy"), NUMBERS),
    "arrow": lambda path: Dataset.from_dict({"a": NUMBERS}).save_to_disk(path),
    "text": lambda path: path.write_text("a" * 20_000),
}


class TestRoom:
    @pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
    def test_whatever_writes_to_a_full_disk_the_error_names_the_place(self, save, tmp_path):
        with (
            pytest.raises(RunFolderError, match=f"There is no room to write {tmp_path}: the disk is full, .* Make room"),
            full_after(500),
            room_needed(tmp_path),
        ):
            save(tmp_path / "file")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is full")
    @pytest.mark.parametrize("name", ["torch", "text"])
    def test_a_device_without_room(self, name):
        with pytest.raises(RunFolderError, match="There is no room to write here"), room_needed("here"):
            SAVERS[name](Path("/dev/full"))

    @pytest.mark.parametrize("error", [ValueError("wrong"), PermissionError(13, "Permission denied"), RunFolderError("exists")])
    def test_other_errors_are_left_as_they_are(self, error):
        with pytest.raises(type(error)) as caught, room_needed("here"):
            raise error
        assert caught.value is error


class TestPlace:
    @pytest.mark.parametrize("path", ["new", "new/deep", ".", "file/below", "file/deep/below"])
    def test_what_is_below_a_file_cannot_be_written(self, tmp_path, path):
        (tmp_path / "file").write_text("mine")
        if "file" not in path:
            return check_place(tmp_path / path)
        with pytest.raises(RunFolderError, match=f"cannot be written: {tmp_path}/file is a file. Choose another --output_dir"):
            check_place(tmp_path / path)
        return None

    def test_a_folder_of_others(self, tmp_path, monkeypatch):
        monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
        for path in (tmp_path, tmp_path / "new/deep"):
            with pytest.raises(RunFolderError, match=f"{tmp_path} is not yours to write to. Choose another --output,"):
                check_place(path, "--output")


class TestAlone:
    def test_a_process_that_is_killed_gives_the_lock_back(self, tmp_path):
        code = "import sys, time; from pathlib import Path; from trl_pafo.storage.files import alone\n"
        code += "with alone(Path(sys.argv[1]), ''): print(1, flush=True); time.sleep(60)"
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"1\n"
        with pytest.raises(RunFolderError, match="busy"), alone(tmp_path, "busy"):
            pass
        process.kill()
        process.wait()
        with alone(tmp_path, "busy"):
            assert [path.name for path in tmp_path.iterdir()] == [LOCK]


class TestNewFolder:
    def test_it_is_there_when_all_is_written(self, tmp_path):
        with new_folder(tmp_path / "deep/out") as temporary:
            temporary.mkdir()
            (temporary / "a").write_text("1")
            assert not (tmp_path / "deep/out").exists()
        assert (tmp_path / "deep/out/a").read_text() == "1"
        assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), KeyError("x")], ids=repr)
    def test_nothing_is_left_of_one_that_failed(self, tmp_path, error):
        with pytest.raises(type(error)), new_folder(tmp_path / "out") as temporary:  # noqa: PT012
            temporary.mkdir()
            (temporary / "a").write_text("half")
            raise error
        assert list(tmp_path.iterdir()) == []

    def test_nothing_is_overwritten(self, tmp_path):
        match = r"exists already\. Choose another --output; nothing is overwritten"
        with pytest.raises(RunFolderError, match=match), new_folder(tmp_path, "--output"):
            pass
        with pytest.raises(RunFolderError, match="exists already"), new_folder(tmp_path / "out") as temporary:  # noqa: PT012
            temporary.mkdir()
            (tmp_path / "out").mkdir()  # by another process
            (tmp_path / "out/thesis.txt").write_text("years of work")
        assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.txt"]


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
