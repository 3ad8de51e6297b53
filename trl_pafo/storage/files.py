"""Files that are whole or not there: written aside, brought to the disk, renamed. Who may write, and what a full disk says."""

import errno
import fcntl
import hashlib
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from trl_pafo.errors import RunFolderError, TrlPafoError

logger = logging.getLogger(__name__)

_NO_REASON = 0
_FULL = "Make room on the disk, then give the same command again"
_NO_RIGHT = "Make it writable, or choose another output"
# What a user can do about each error of a disk. Other errors of the operating system say something else than that.
_FIXES = {
    errno.ENOSPC: _FULL,
    _NO_REASON: _FULL,
    errno.EDQUOT: "Make room within your quota, then give the same command again",
    errno.EFBIG: "Raise the limit on the size of files (`ulimit -f`), or choose another output",
    errno.EROFS: _NO_RIGHT,
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.ENAMETOOLONG: "Give it a shorter name",
    errno.EIO: "The disk has a fault: choose another output",
}
# Libraries that write by themselves tell in words alone: safetensors and tokenizers, then pyarrow.
_NUMBER = re.compile(r"\(os error (\d+)\)|\[[Ee]rrno (\d+)\]")
# torch.save and numpy.save do not even say why.
_SHORT = re.compile(r"PytorchStreamWriter|inline_container\.cc.*unexpected pos|requested and \d+ written")


def disk_error(error: BaseException, path: str | Path | None = None) -> RunFolderError | None:
    """What a full disk, a read-only folder or a missing right means to a user; `None` for any other error.

    Args:
        error (`BaseException`):
            What was raised, by Python or by a library that writes files by itself.
        path (`str` or `Path`, *optional*):
            What was to be written, for errors that do not name it.

    Returns:
        [`RunFolderError`] whose message names the path and the fix, to be raised.
    """
    cause: BaseException | None = error
    while cause is not None:
        number = getattr(cause, "errno", None) if isinstance(cause, OSError) else None
        if number is None and (found := _NUMBER.search(str(cause))):
            number = int(found[1] or found[2])
        if number is None and _SHORT.search(str(cause)):
            number = _NO_REASON
        if number in _FIXES:
            where = getattr(cause, "filename", None)
            # What is written aside has its place beside the path that the user knows.
            if not isinstance(where, str) or (path is not None and where.startswith(str(path))):
                where = path
            return RunFolderError(
                f"{'The output' if where is None else where} cannot be {'read or ' if _FIXES[number] == _NO_RIGHT else ''}written: "
                f"{os.strerror(number) if number else 'The disk did not take all of it'}. {_FIXES[number]}. What was finished before is unchanged."
            )
        cause = cause.__cause__
    return None


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Whatever the disk refuses meanwhile becomes a [`RunFolderError`] that names the path and the fix."""
    try:
        yield
    except TrlPafoError:
        raise
    except Exception as error:
        found = disk_error(error, path)
        if found is None:
            raise
        raise found from error


def sync(path: Path) -> None:
    """Bring a file, or a folder with all that is in it, to the disk: on return a power cut does not take it away."""
    if path.is_symlink():
        return
    if path.is_dir():
        for entry in path.iterdir():
            sync(entry)
    _sync_entry(path)


def _sync_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Not every file system can bring a folder to the disk; what is in it is there by now.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def rename(old: Path, new: Path) -> None:
    """Rename, so that it lasts. What is renamed should be on the disk already, see [`sync`]."""
    os.replace(old, new)
    _sync_entry(new.parent)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file to; on leaving, the file takes the name `path`, whole and on the disk.

    A reader sees the old file or the new one, never a part. Where something is raised, the old one stays.

    Raises:
        RunFolderError: If the disk is full, or must not be written to.
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            yield aside
            sync(aside)
            rename(aside, path)
        finally:
            with suppress(OSError):  # what is raised already says more
                aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file by [`replacing`]."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def remove_leftovers(folder: Path) -> None:
    """Remove what [`replacing`] was writing in a folder, or below it, when its process was killed."""
    for path in folder.rglob("*.tmp"):
        process = path.name.split(".")[-2]
        if process.isdecimal() and not _is_alive(int(process)):
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


@contextmanager
def alone(path: Path, busy: str) -> Iterator[None]:
    """Keep other processes out meanwhile. A process that ends, however it ends, gives the lock back.

    Args:
        path (`Path`):
            What is locked: a folder, or a file, which is made if it is not there.
        busy (`str`):
            What to say where another process has it.

    Raises:
        RunFolderError: If another process has it, or the lock cannot be written.
    """
    with writing(path):
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunFolderError(busy) from error
        except OSError as error:  # as some network disks
            logger.warning("%s cannot be locked (%s): see to it that nothing else writes there meanwhile.", path, error.strerror)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(path: Path, option: str = "--output_dir") -> Iterator[Path]:
    """A path to write a new folder to; on leaving, it takes the name `path`, whole and on the disk.

    Meanwhile no other process can make the same folder. What one that was killed has left is made anew.

    Args:
        path (`Path`):
            The folder; it must not exist.
        option (`str`, *optional*, defaults to `"--output_dir"`):
            The option that names it, for messages.

    Raises:
        RunFolderError: If it exists, another process is at work on it, or the disk is full or must not be written to.
    """

    def refuse(found: Path) -> None:
        if found.exists():
            raise RunFolderError(f"{found} exists already. Choose another {option}; nothing is overwritten.")

    refuse(path)
    outer = path.with_name(path.name + ".partial")
    if outer.exists() and (not outer.is_dir() or any(entry.name != path.name for entry in outer.iterdir())):
        refuse(outer)
    with writing(path):
        outer.mkdir(parents=True, exist_ok=True)
        busy = f"Another process is at work on {path}. Wait until it ends, or choose another {option}."
        with alone(outer, busy):
            refuse(path)
            aside = outer / path.name
            remove(aside)
            try:
                yield aside
                sync(aside)
                rename(aside, path)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
                with suppress(OSError):
                    outer.rmdir()


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
    if path.is_file():
        files = {path}
    else:
        found = {file for pattern in patterns for file in path.glob(pattern) if file.is_file()}
        files = {file for file in found if not any(file.match(pattern) for pattern in but)}
    for file in sorted(files):
        digest.update(file.relative_to(path).as_posix().encode())
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
