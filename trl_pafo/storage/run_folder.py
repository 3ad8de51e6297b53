"""A run's folder: which stages are done, from which inputs, with which files. A stage's output is written aside and renamed."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trl_pafo.errors import RunFolderError
from trl_pafo.storage.files import alone, remove, remove_leftovers, rename, sync, write_text, writing

__all__ = ["KEPT", "LOCK", "MANIFEST", "RunFolder", "write_text"]

MANIFEST = "manifest.json"
LOCK = ".lock"
_FORMAT = "trl-pafo run 2"
KEPT = ".kept"
"""Folder in the unfinished output of a stage: what it needs to go on after it was killed, and nothing of its output."""
_KEPT_FOR = "kept_for.json"
# A file up to this size is read again whenever its stage is reused; a larger one where its time of change is another.
_SMALL = 16 * 2**20
# The card of a model is for people to complete.
_FREE = ("README.md",)


class RunFolder:
    """
    The output folder of a run.

    A stage is skipped when its output is there, whole, and its inputs are the same as when it was made. A stage whose inputs
    have changed is refused, so that no result is lost, unless `overwrite` is set.

    Args:
        folder (`str` or `Path`):
            The folder; made if it does not exist.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace the outputs of stages whose inputs have changed, and of stages whose files are damaged.

    Raises:
        RunFolderError: If the folder holds other files, or cannot be written.
    """

    def __init__(self, folder: str | Path, overwrite: bool = False):
        self.path = Path(folder)
        self.overwrite = overwrite
        self.only_checks = False
        """Whether stages are checked and not done, see [`only_checking`]."""
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"The output folder {self.path} is a file. Choose another --output_dir.")
        if (self.path / MANIFEST).exists():
            self._manifest = self._read()
            return
        if self.path.exists() and any(not _is_ours(path.name) for path in self.path.iterdir()):
            raise RunFolderError(
                f"The output folder {self.path} is not empty and is no run of trl-pafo. Choose another --output_dir."
            )
        with writing(self.path):
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except (NotADirectoryError, FileExistsError) as error:
                raise RunFolderError(f"The output folder {self.path} cannot be written: {error}. Choose another.") from error
        with self._alone():
            if not (self.path / MANIFEST).exists():  # else another run was as quick
                self._manifest = {"format": _FORMAT, "stages": {}}
                self._save()
            self._manifest = self._read()

    def _read(self) -> dict[str, Any]:
        path = self.path / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunFolderError(f"{path} cannot be read ({error}). Choose another --output_dir.") from error
        if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
            raise RunFolderError(f"{self.path} belongs to another kind or version of run. Choose another --output_dir.")
        return manifest

    def _alone(self) -> Any:
        return alone(
            self.path / LOCK, f"Another run is at work in {self.path}. Wait until it ends, or choose another --output_dir."
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder meanwhile. A process that ends, however it ends, gives the lock back.

        Raises:
            RunFolderError: If another run is at work in the folder, or the lock cannot be written.
        """
        with self._alone():
            self._manifest = self._read()  # what another run has done since the folder was opened
            with writing(self.path):
                remove_leftovers(self.path)
            yield

    @contextmanager
    def only_checking(self) -> Iterator[None]:
        """Meanwhile [`stage`] checks what is there, raises where [`check`] does, and does no work."""
        self.only_checks = True
        try:
            yield
        finally:
            self.only_checks = False

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def check(self, stage: str, inputs: dict[str, Any], derived: bool = False) -> bool:
        """Whether a stage is done with these inputs, and its files are as they were written.

        A renaming that a killed run has left half done is finished; else nothing is changed.

        Raises:
            RunFolderError: If it was done with other inputs, or its files are damaged, and `overwrite` is not set.
        """
        self._finish_renaming(stage)
        done = self._manifest["stages"].get(stage)
        if done is None or not (self.path / done["output"]).exists():
            return False
        replaces = self.overwrite or derived
        if done["digest"] == _digest(inputs):
            damage = self._damage(stage, done)
            if damage is not None and not replaces:
                raise RunFolderError(
                    f"{damage}, so the stage {stage!r} cannot be used. Put the file back, or remove {self.path / done['output']} or "
                    "pass --overwrite true to do the stage again."
                )
            if damage is not None:
                print(f"[{stage}] {damage}: done again", flush=True)
            return damage is None
        if replaces:
            return False
        detail = "; ".join(_changes(done["inputs"], _plain(inputs)))
        raise RunFolderError(
            f"{self.path} holds the stage {stage!r} of another run ({detail}). Choose another --output_dir, or pass --overwrite true "
            "to replace what depends on it."
        )

    def stage(
        self,
        stage: str,
        inputs: dict[str, Any],
        output: str,
        work: Callable[[Path], float | None],
        derived: bool = False,
        keep_for: dict[str, Any] | None = None,
    ) -> str:
        """Do a stage unless it is done; return the digest of its inputs, to be an input of what follows.

        Args:
            stage (`str`):
                Name in the manifest.
            inputs (`dict`):
                All that decides the output, as JSON values; digests of earlier stages among them.
            output (`str`):
                Folder or file, relative to the run, that the stage makes.
            work (`Callable`):
                Called with the path to write to; what it wrote is renamed to `output` afterwards. May return the seconds that
                it took before, when it went on from what was kept.
            derived (`bool`, *optional*, defaults to `False`):
                The output can be made again from other stages' outputs at little cost, so it is replaced when its inputs change.
            keep_for (`dict`, *optional*):
                For a stage that can go on where it was killed: all that must be the same for that, beside `inputs`. Then `work`
                finds the folder there, with a folder `KEPT` in it for what it needs to go on. Both are as a killed stage left
                them, or empty. `KEPT` is removed when the stage is done.
        """
        digest = _digest(inputs)
        done = self.check(stage, inputs, derived)
        if self.only_checks:
            return digest
        if done:
            print(f"[{stage}] done before, kept", flush=True)
            return digest
        final = self.path / output
        aside = _aside(final)
        start = time.monotonic()
        with writing(final):
            if keep_for is None:
                remove(aside)
                aside.parent.mkdir(parents=True, exist_ok=True)
            else:
                _keep(aside, _digest({"inputs": inputs, "keep_for": keep_for}))
            print(f"[{stage}]", flush=True)
            try:
                before = work(aside) or 0.0
            except BaseException:
                with suppress(OSError):  # what is raised already says more
                    for path in [aside] if keep_for is None else aside.iterdir():
                        if path.name != KEPT:
                            remove(path)
                raise
            sync(aside)
            files = _fingerprints(aside)
        seconds = round(time.monotonic() - start + before, 1)
        # Said before the renaming: killed from here on, the next run finishes it and does not work again.
        self._manifest["stages"].pop(stage, None)
        self._manifest["stages"][stage] = {
            "inputs": _plain(inputs),
            "digest": digest,
            "output": output,
            "seconds": seconds,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "files": files,
            "renaming": True,
        }
        self._save()
        self._finish_renaming(stage)
        print(f"[{stage}] {seconds:.0f} s", flush=True)
        return digest

    def _finish_renaming(self, stage: str) -> None:
        done = self._manifest["stages"].get(stage)
        if done is None or not done.get("renaming"):
            return
        final = self.path / done["output"]
        aside = _aside(final)
        with writing(final):
            if aside.exists():
                if aside.is_dir():
                    remove(aside / KEPT)
                remove(final)
                rename(aside, final)
        del done["renaming"]
        self._save()

    def _damage(self, stage: str, done: dict[str, Any]) -> str | None:
        """What is wrong with the files of a stage; `None` if they are as they were written, or were never written down."""
        output = self.path / done["output"]
        with writing(output):
            for name, (size, changed, digest) in done.get("files", {}).items():
                path = output / name
                if not path.is_file():
                    return f"{path} is missing"
                found = path.stat()
                if found.st_size != size:
                    return f"{path} has {found.st_size:,} bytes and not the {size:,} that were written"
                if (size <= _SMALL or found.st_mtime_ns != changed) and _file_digest(path) != digest:
                    return f"{path} is not what was written"
        return None

    def seconds(self) -> dict[str, float]:
        """Duration of each finished stage."""
        return {name: stage["seconds"] for name, stage in self._manifest["stages"].items()}

    def _save(self) -> None:
        write_text(self.path / MANIFEST, json.dumps(self._manifest, indent=2) + "\n")


def _plain(inputs: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(inputs, sort_keys=True, default=str))


def _digest(inputs: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _changes(old: dict[str, Any], new: dict[str, Any], within: str = "") -> Iterator[str]:
    """For people: each input that is another, by name, and what it was and is."""
    for key in sorted({*old, *new}):
        before, after = old.get(key, _NOT_SET), new.get(key, _NOT_SET)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _changes(before, after, f"{within}{key}.")
        elif before != after:
            yield f"{within}{key}: {_short(before)} -> {_short(after)}"


_NOT_SET = object()


def _short(value: Any) -> str:
    if value is _NOT_SET:
        return "not set"
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_ours(name: str) -> bool:
    """Whether a run that was killed before its manifest was there has left it."""
    return name == LOCK or (name.startswith(f"{MANIFEST}.") and name.endswith(".tmp"))


def _aside(final: Path) -> Path:
    return final.with_name(final.name + ".partial")


def _keep(aside: Path, key: str) -> None:
    """Leave what a killed stage has written, if it was to be the same; else begin with an empty folder."""
    mark = aside / KEPT / _KEPT_FOR
    try:
        same = json.loads(mark.read_text(encoding="utf-8")) == key
    except (OSError, ValueError):
        same = False
    if not same:
        remove(aside)
        mark.parent.mkdir(parents=True)
        write_text(mark, json.dumps(key))


def _fingerprints(output: Path) -> dict[str, list[Any]]:
    """Size, time of change and digest of the files of an output, by name; of one that is a file itself, under `""`."""
    paths = [output]
    if output.is_dir():
        paths = sorted(path for path in output.rglob("*") if path.is_file() and KEPT not in path.relative_to(output).parts)
    named = {path.relative_to(output).as_posix() if path != output else "": path for path in paths}
    return {
        name: [path.stat().st_size, path.stat().st_mtime_ns, _file_digest(path)]
        for name, path in named.items()
        if name not in _FREE
    }


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
