"""A file of lines that takes hours: written bit by bit, and continued where it was interrupted."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from trl_pafo.errors import RunFolderError
from trl_pafo.storage.files import alone, refuse_existing, write_text


@contextmanager
def growing(path: Path, identity: Mapping[str, str], at_once: int) -> Iterator[tuple[BinaryIO, int]]:
    """A file that is appended to, and takes the name `path` on leaving. Till then it stands in the folder `path.partial`.

    Where something is raised, or the process ends, what was written stays there, and the next call with the same identity goes on.

    Args:
        path (`Path`):
            The file; it must not exist.
        identity (`Mapping[str, str]`):
            By name, all that decides what is written.
        at_once (`int`):
            Lines that are written together: a part of so many is written again.

    Returns:
        The file, and the number of lines that it holds.

    Raises:
        RunFolderError: If the file exists, another process writes it, or lines of another identity are there.
    """
    folder = path.with_name(f"{path.name}.partial")
    lines, job = folder / "lines", folder / "identity.json"
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder, f"{path} is being written by another process. Wait for it, or choose another --output."):
        try:
            refuse_existing(path)  # not before: the other process may have ended a moment ago
            if not lines.exists():
                write_text(job, json.dumps(dict(identity)))
            before = json.loads(job.read_text(encoding="utf-8"))
            if changed := [name for name in {**before, **identity} if before.get(name) != identity.get(name)]:
                raise RunFolderError(
                    f"{folder} holds the beginning of another {path.name}, with other {', '.join(changed)}. Use the same to go on, or remove "
                    "that folder, or choose another --output."
                )
            with open(lines, "ab+") as file:
                yield file, _keep(file, at_once)
                file.flush()
                os.fsync(file.fileno())
            refuse_existing(path)
            os.replace(lines, path)
        finally:
            if not lines.exists() or not lines.stat().st_size:
                shutil.rmtree(folder)


def _keep(file: BinaryIO, at_once: int) -> int:
    """Cut a file after its last complete line whose number is a multiple of `at_once`; that number."""
    kept = size = position = 0
    file.seek(0)
    for number, line in enumerate(file, start=1):
        position += len(line)
        if line.endswith(b"\n") and number % at_once == 0:
            kept, size = number, position
    file.truncate(size)
    return kept
