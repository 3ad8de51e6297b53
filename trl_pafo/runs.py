"""A run's folder: which stages are done, from which inputs. Each stage's output is written aside and then renamed."""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trl_pafo.errors import RunFolderError

MANIFEST = "manifest.json"
LOCK = ".lock"
_FORMAT = "trl-pafo run 1"


class RunFolder:
    """
    The output folder of a run.

    A stage is skipped when its output is there and its inputs are the same as when it was made. A stage whose inputs have
    changed is refused, so that no result is lost, unless `overwrite` is set.

    Args:
        folder (`str` or `Path`):
            The folder; made if it does not exist.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace the outputs of stages whose inputs have changed.

    Raises:
        RunFolderError: If the folder holds other files, or cannot be written.
    """

    def __init__(self, folder: str | Path, overwrite: bool = False):
        self.path = Path(folder)
        self.overwrite = overwrite
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"The output folder {self.path} is a file. Choose another --output_dir.")
        if (self.path / MANIFEST).exists():
            self._manifest = self._read()
            return
        if self.path.exists() and any(path.name != LOCK for path in self.path.iterdir()):
            raise RunFolderError(
                f"The output folder {self.path} is not empty and is no run of trl-pafo. Choose another --output_dir."
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._manifest = {"format": _FORMAT, "stages": {}}
            self._save()
        except OSError as error:
            raise RunFolderError(f"The output folder {self.path} cannot be written: {error}") from error

    def _read(self) -> dict[str, Any]:
        path = self.path / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunFolderError(f"{path} cannot be read ({error}). Choose another --output_dir.") from error
        if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
            raise RunFolderError(f"{self.path} belongs to another kind or version of run. Choose another --output_dir.")
        return manifest

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder meanwhile. A process that ends, however it ends, gives the lock back.

        Raises:
            RunFolderError: If another run is at work in the folder, or the lock cannot be written.
        """
        try:
            lock = (self.path / LOCK).open("w", encoding="utf-8")
        except OSError as error:
            raise RunFolderError(f"The output folder {self.path} cannot be written: {error}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunFolderError(
                    f"Another run is at work in {self.path}. Wait until it ends, or choose another --output_dir."
                ) from error
            self._manifest = self._read()  # what another run has done since the folder was opened
            yield

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def check(self, stage: str, inputs: dict[str, Any], derived: bool = False) -> bool:
        """Whether a stage is done with these inputs.

        Raises:
            RunFolderError: If it was done with others and `overwrite` is not set. Nothing is changed.
        """
        done = self._manifest["stages"].get(stage)
        if done is None or not (self.path / done["output"]).exists():
            return False
        if done["digest"] == _digest(inputs):
            return True
        if self.overwrite or derived:
            return False
        old = done["inputs"]
        changed = sorted(key for key in {*old, *inputs} if old.get(key) != _plain(inputs).get(key))
        detail = "; ".join(f"{key}: {_short(old.get(key))} -> {_short(inputs.get(key))}" for key in changed)
        raise RunFolderError(
            f"{self.path} holds the stage {stage!r} of another run ({detail}). Choose another --output_dir, or pass --overwrite true "
            "to replace what depends on it."
        )

    def stage(self, stage: str, inputs: dict[str, Any], output: str, work: Callable[[Path], None], derived: bool = False) -> str:
        """Do a stage unless it is done; return the digest of its inputs, to be an input of what follows.

        Args:
            stage (`str`):
                Name in the manifest.
            inputs (`dict`):
                All that decides the output, as JSON values; digests of earlier stages among them.
            output (`str`):
                Folder or file, relative to the run, that the stage makes.
            work (`Callable`):
                Called with the path to write to; what it wrote is renamed to `output` afterwards.
            derived (`bool`, *optional*, defaults to `False`):
                The output can be made again from other stages' outputs at little cost, so it is replaced when its inputs change.
        """
        digest = _digest(inputs)
        if self.check(stage, inputs, derived):
            print(f"[{stage}] done before, kept", flush=True)
            return digest
        final = self.path / output
        aside = final.with_name(final.name + ".partial")
        _remove(aside)
        aside.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        print(f"[{stage}]", flush=True)
        work(aside)
        # Forgotten first: killed from here on, the run would take the new output for the one of the old inputs.
        if self._manifest["stages"].pop(stage, None) is not None:
            self._save()
        _remove(final)
        os.replace(aside, final)
        seconds = round(time.monotonic() - start, 1)
        self._manifest["stages"][stage] = {
            "inputs": _plain(inputs),
            "digest": digest,
            "output": output,
            "seconds": seconds,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        self._save()
        print(f"[{stage}] {seconds:.0f} s", flush=True)
        return digest

    def seconds(self) -> dict[str, float]:
        """Duration of each finished stage."""
        return {name: stage["seconds"] for name, stage in self._manifest["stages"].items()}

    def _save(self) -> None:
        write_text(self.path / MANIFEST, json.dumps(self._manifest, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file aside, then rename it: a reader sees the old file or the new one, never a part."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def _plain(inputs: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(inputs, sort_keys=True, default=str))


def _digest(inputs: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
