"""A run's folder: which stages are done and from which inputs. A stage writes to a temporary folder, which is then renamed."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trl_pafo.errors import RunFolderError
from trl_pafo.storage.cost import hardware
from trl_pafo.storage.files import (
    LOCK,
    alone,
    check_place,
    link_file,
    link_folder,
    remove,
    remove_temporary_files,
    room_needed,
    write_text,
)

__all__ = ["KEPT", "LOCK", "MANIFEST", "RunFolder", "digest_of"]

MANIFEST = "manifest.json"
_FORMAT = "trl-pafo run 4"
KEPT = ".kept"
"""Folder in the unfinished output of a stage: what it needs to resume when it was interrupted, and nothing of its output."""
_KEPT_FOR = "kept_for.json"
_LOCKS = ".locks"
"""Folder of a lock a stage, which the process that does the stage has meanwhile."""
_SOON = 5.0
"""Seconds in which a lock is given back that is held for a moment, or by a process whose run was killed."""
# The card of a model is for people to complete.
_CARD = "README.md"


class RunFolder:
    """
    The output folder of a run.

    A stage is skipped when its output is there, complete, and its inputs are the same as when it was made. A stage whose inputs
    have changed is refused, so that no result is lost, unless `overwrite` is set.

    Args:
        folder (`str` or `Path`):
            The folder; made if it does not exist.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace the outputs of stages whose inputs have changed, and of stages whose files are missing or cut off.

    Raises:
        RunFolderError: If the folder holds other files.
    """

    def __init__(self, folder: str | Path, overwrite: bool = False):
        self.path = Path(folder)
        self.overwrite = overwrite
        self._is_guest = False
        self.donors: tuple[Path, ...] = ()
        """Folders of other runs: a stage that one of them has done from the same inputs is linked from there, and not done again."""
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"The output folder {self.path} is a file. Choose another --output_dir.")
        if not (self.path / MANIFEST).exists():
            if self.path.exists() and any(path.name != LOCK and MANIFEST not in path.name for path in self.path.iterdir()):
                raise RunFolderError(
                    f"The output folder {self.path} is not empty and is not a run of trl-pafo. Choose another --output_dir."
                )
            check_place(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            with self._alone():
                if not (self.path / MANIFEST).exists():  # else another run was as quick
                    write_text(self.path / MANIFEST, json.dumps({"format": _FORMAT, "stages": {}}) + "\n")
        self._read()

    def _read(self) -> dict[str, Any]:
        path = self.path / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunFolderError(f"{path} cannot be read ({error}). Choose another --output_dir.") from error
        if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
            raise RunFolderError(f"{self.path} belongs to another kind or version of run. Choose another --output_dir.")
        return manifest

    def _alone(self, timeout: float = 0) -> Any:
        busy = f"Another run is running in {self.path}. Wait until it ends, or choose another --output_dir."
        return alone(self.path, busy, timeout=timeout)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder meanwhile. A process that ends, however it ends, gives the lock back.

        Raises:
            RunFolderError: If another run is running in the folder, or another process does a stage of it.
        """
        with self._alone(timeout=1):  # a guest has it for a moment
            for path in sorted((self.path / _LOCKS).glob("*")):
                with self._stage_lock(path.name):
                    pass
            remove_temporary_files(self.path)
            yield

    @contextmanager
    def beside_others(self) -> Iterator[None]:
        """Do single stages meanwhile, while other processes may do others, but no run is running.

        Raises:
            RunFolderError: If a run is running in the folder.
        """
        with self._alone(_SOON):
            pass
        self._is_guest = True
        try:
            yield
        finally:
            self._is_guest = False

    @contextmanager
    def _stage_lock(self, name: str) -> Iterator[None]:
        folder = self.path / _LOCKS
        folder.mkdir(exist_ok=True)
        busy = f"Another process is doing the stage of {name} in {self.path}. Wait until it ends, or choose another --output_dir."
        with alone(folder, busy, name, _SOON):
            if self._is_guest:  # a run looks at the locks of stages after it has taken its own
                with self._alone(_SOON):
                    pass
            yield

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def check(self, stage: str, inputs: dict[str, Any], derived: bool = False) -> bool:
        """Whether a stage is done with these inputs, and its files are there with the size that was written.

        Raises:
            RunFolderError: If it was done with other inputs, or its files are damaged, and `overwrite` is not set.
        """
        done = self._read()["stages"].get(stage) or self._take(stage, digest_of(inputs))
        if done is None or not (self.path / done["output"]).exists():
            return False
        replaces = self.overwrite or derived
        if done["digest"] != digest_of(inputs):
            if replaces:
                return False
            detail = "; ".join(_changes(done["inputs"], _plain(inputs)))
            raise RunFolderError(
                f"{self.path} holds the stage {stage!r} of another run ({detail}). Choose another --output_dir, or pass "
                "--overwrite true to replace what depends on it."
            )
        output = self.path / done["output"]
        sizes = _sizes(output)
        damaged = [name for name, size in done["files"].items() if sizes.get(name) != size]
        if damaged and not replaces:
            raise RunFolderError(
                f"{output / damaged[0]} is missing, or has another size than was written, so the stage {stage!r} cannot be used. "
                f"Put the file back, or remove {output} or pass --overwrite true to do the stage again."
            )
        return not damaged

    def stage(
        self,
        stage: str,
        inputs: dict[str, Any],
        output: str,
        work: Callable[[Path], None],
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
                Called with the path to write to; what it wrote is renamed to `output` afterwards.
            derived (`bool`, *optional*, defaults to `False`):
                The output can be made again from other stages' outputs at little cost, so it is replaced when its inputs change.
            keep_for (`dict`, *optional*):
                For a stage that can resume: all that must be the same for that, beside `inputs`. Then `work` finds the folder there,
                with a folder `KEPT` in it for what it needs to resume. Both are as an interrupted stage left them, or empty. `KEPT` is
                removed when the stage is done.
        """
        digest = digest_of(inputs)
        if self.check(stage, inputs, derived):
            print(f"[{stage}] done before, kept", flush=True)
            return digest
        with self._stage_lock(output.replace("/", "-")):
            if not self.check(stage, inputs, derived):  # else another process was as quick
                with room_needed(self.path / output):
                    self._do(stage, inputs, output, work, keep_for)
        return digest

    def _take(self, stage: str, digest: str) -> dict[str, Any] | None:
        """Link the output of a stage that a donor has done from the same inputs; what the manifest then says of it, else `None`."""
        for donor in self.donors:
            if not (donor / MANIFEST).is_file():
                continue
            done = RunFolder(donor)._read()["stages"].get(stage)
            if done is None or done["digest"] != digest:
                continue
            source, final = donor / done["output"], self.path / done["output"]
            if not source.exists() or _sizes(source) != done["files"]:
                continue
            temporary = final.with_name(final.name + ".partial")
            remove(temporary)
            temporary.parent.mkdir(parents=True, exist_ok=True)
            (link_folder if source.is_dir() else link_file)(source, temporary)
            remove(final)
            temporary.replace(final)
            self._record(stage, done)
            print(f"[{stage}] taken from {donor}", flush=True)
            return done
        return None

    def _do(
        self, stage: str, inputs: dict[str, Any], output: str, work: Callable[[Path], None], keep_for: dict[str, Any] | None
    ) -> None:
        final = self.path / output
        temporary = final.with_name(final.name + ".partial")
        start = time.monotonic()
        if keep_for is None:
            remove(temporary)
            temporary.parent.mkdir(parents=True, exist_ok=True)
        else:
            _keep(temporary, digest_of({"inputs": inputs, "keep_for": keep_for}))
        print(f"[{stage}]", flush=True)
        try:
            work(temporary)
        except BaseException:
            with suppress(OSError):  # what is raised already says more
                for path in [temporary] if keep_for is None else temporary.iterdir():
                    if path.name != KEPT:
                        remove(path)
            raise
        # At no moment does the manifest say of an output what is not so: what is half replaced is not in it.
        if stage in self._read()["stages"]:
            self._record(stage, None)
        if temporary.is_dir():
            remove(temporary / KEPT)
        remove(final)
        temporary.replace(final)
        seconds = round(time.monotonic() - start, 1)
        done = {
            "inputs": _plain(inputs),
            "digest": digest_of(inputs),
            "output": output,
            "seconds": seconds,
            "hardware": hardware(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "files": _sizes(final),
        }
        self._record(stage, done)
        print(f"[{stage}] {seconds:.0f} s", flush=True)

    def _record(self, stage: str, done: dict[str, Any] | None) -> None:
        """Write to the manifest that a stage is done, or that it is not, whatever other processes write there."""
        with alone(self.path, f"{self.path / MANIFEST} is locked by another process.", f"{MANIFEST}.lock", timeout=60):
            manifest = self._read()
            manifest["stages"].pop(stage, None)
            if done:
                manifest["stages"][stage] = done
            write_text(self.path / MANIFEST, json.dumps(manifest, indent=2) + "\n")

    def seconds(self) -> dict[str, float]:
        """Duration of each finished stage."""
        return {name: stage["seconds"] for name, stage in self._read()["stages"].items()}


def _plain(inputs: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(inputs, sort_keys=True, default=str))


def digest_of(inputs: dict[str, Any]) -> str:
    """Digest of what decides the output of a stage."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _changes(old: dict[str, Any], new: dict[str, Any], within: str = "") -> Iterator[str]:
    """For people: each input that is another, by name, and what it was and is."""
    for key in sorted({*old, *new}):
        before, after = old.get(key, "not set"), new.get(key, "not set")
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _changes(before, after, f"{within}{key}.")
        elif before != after:
            yield f"{within}{key}: {_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    text = value if value == "not set" else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _keep(temporary: Path, key: str) -> None:
    """Leave what an interrupted stage has written, if it was to be the same; else begin with an empty folder."""
    mark = temporary / KEPT / _KEPT_FOR
    if not mark.is_file() or mark.read_text(encoding="utf-8") != key:
        remove(temporary)
        mark.parent.mkdir(parents=True)
        write_text(mark, key)


def _sizes(output: Path) -> dict[str, int]:
    """Size of each file of an output, by name; of an output that is a file itself, under `"."`."""
    paths = [path for path in sorted(output.rglob("*")) if path.is_file()] if output.is_dir() else [output]
    return {path.relative_to(output).as_posix(): path.stat().st_size for path in paths if path.name != _CARD}
