"""Files that are complete or not there: written beside their place, then renamed. Locks, and disks without room."""

import errno
import hashlib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from trl_pafo.errors import RunFolderError, TrlPafoError

LOCK = ".lock"
"""The file by which a folder is locked."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link_file(source: str | Path, copy: str | Path) -> None:
    """Write the same file under another name, which takes no room of its own where the disk has hard links."""
    try:
        os.link(source, copy)
    except OSError:
        shutil.copy2(source, copy)


def link_folder(source: Path, folder: Path) -> None:
    """Write a folder with the same files as another, by [`link_file`]."""
    shutil.copytree(source, folder, copy_function=link_file)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`; on leaving, it takes the name `path`. Where something is raised, the old file stays."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file by [`replacing`]."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_temporary_files(folder: Path) -> None:
    """Remove what interrupted processes were writing by [`replacing`] in a folder, or below it, where no other is at work."""
    for path in folder.rglob("*.tmp"):
        if re.search(r"\.\d+\.tmp$", path.name):
            path.unlink(missing_ok=True)


@contextmanager
def alone(folder: Path, busy: str, name: str = LOCK, timeout: float = 0) -> Iterator[None]:
    """Keep other processes out of a folder meanwhile, by the file `name` in it, for which up to `timeout` seconds are waited. A
    process that ends, however it ends, gives the lock back.

    Raises:
        RunFolderError: If another process has it; the message is `busy`.
    """
    try:
        lock = FileLock(folder / name).acquire(timeout=timeout)
    except Timeout as error:
        raise RunFolderError(busy) from error
    with lock:
        yield


def lacks_room(error: BaseException) -> bool:
    """Whether something could not be written for want of room. Libraries say so in words alone; torch and NumPy say that less was written."""
    words = (*map(os.strerror, _NO_ROOM), "PytorchStreamWriter failed writing", "unexpected pos", "requested and")
    return getattr(error, "errno", None) in _NO_ROOM or any(word in str(error) for word in words)


@contextmanager
def room_needed(place: str | Path) -> Iterator[None]:
    """Say where there was no room to write to a file or folder, whatever wrote there.

    Raises:
        RunFolderError: In place of what a library raises for want of room.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, TrlPafoError) or not lacks_room(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise RunFolderError(
            f"There is no room to write {place}: the disk is full, or a quota or the largest size of a file is reached ({reason}). Make room, or "
            "choose another place, and repeat the command. What was complete before is kept."
        ) from error


def check_place(path: str | Path, option: str = "--output_dir") -> None:
    """Raise [`RunFolderError`] where no file or folder can be made, or none in a folder that is there; the message names the option."""
    path = Path(path)
    above = next(place for place in (path, *path.absolute().parents) if place.is_dir() or (place != path and place.exists()))
    if not above.is_dir():
        raise RunFolderError(f"{path} cannot be written: {above} is a file. Choose another {option}.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise RunFolderError(
            f"{path} cannot be written: {above} is not yours to write to. Choose another {option}, or change its mode."
        )


def refuse_existing(path: str | Path, option: str = "--output") -> None:
    """Raise [`RunFolderError`] where an output is there already, or cannot be made; the message names the option."""
    if Path(path).exists():
        raise RunFolderError(f"{path} exists already. Choose another {option}; nothing is overwritten.")
    check_place(path, option)


@contextmanager
def new_folder(path: Path, option: str = "--output_dir") -> Iterator[Path]:
    """A path to write a new folder to; on leaving, it takes the name `path`. Where something is raised, nothing is left.

    Raises:
        RunFolderError: If it exists, by now or at the end; the message names the option.
    """
    refuse_existing(path, option)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent, ignore_cleanup_errors=True) as outer:
        yield Path(outer) / path.name
        refuse_existing(path, option)
        os.rename(Path(outer) / path.name, path)


def json_ready(value: Any) -> Any:
    """The same for JSON, which knows no NaN: what is not known is `None`."""
    if isinstance(value, dict):
        return {str(name): json_ready(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(part) for part in value]
    if isinstance(value, Real) and not isinstance(value, Integral):
        return float(value) if math.isfinite(value) else None
    return value


def digest_of_files(path: str | Path, patterns: Sequence[str] = ("**/*",), but: Sequence[str] = ()) -> str:
    """Digest of the content of a file, or of the names and the content of the files in a folder, those that match `but` left out."""
    path = Path(path)
    digest = hashlib.sha256()
    files = {path}
    if not path.is_file():
        found = {file for pattern in patterns for file in path.glob(pattern) if file.is_file()}
        files = {file for file in found if not any(file.match(pattern) for pattern in but)}
    for file in sorted(files):
        digest.update(file.relative_to(path).as_posix().encode())
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
