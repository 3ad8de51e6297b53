"""The folder of an audit: written aside and renamed; nothing but an earlier audit is ever replaced."""

import json
from pathlib import Path
from typing import Any

from trl_pafo.audit.pictures import ACCURACY, HEADROOM, SUPPORT, draw_pictures
from trl_pafo.audit.tables import markdown_report
from trl_pafo.errors import RunFolderError
from trl_pafo.storage.files import alone, remove, rename, sync, writing
from trl_pafo.storage.run_folder import write_text

JSON, MARKDOWN = "audit.json", "audit.md"
_OURS = {JSON, MARKDOWN, SUPPORT, ACCURACY, HEADROOM}


def check_output(folder: str | Path) -> Path:
    """The folder, if an audit may be written there: new, empty, or holding an earlier audit and nothing else.

    Raises:
        RunFolderError: If it holds something else, or something of an unfinished audit stands beside it.
    """
    out = Path(folder)
    for path in (out, _aside(out), _old(out)):
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"{path} is a file. Choose another --output_dir.")
        foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in _OURS) if path.exists() else []
        if foreign:
            raise RunFolderError(
                f"{path} holds something else than an audit ({foreign[0]}). Choose another --output_dir; nothing is overwritten."
            )
    return out


def write_audit(result: dict[str, Any], folder: str | Path) -> Path:
    """Write audit.json, audit.md and the pictures; an earlier audit there is replaced as a whole.

    Raises:
        RunFolderError: As [`check_output`], or if another audit is being written there, or the disk is full.
    """
    out = check_output(folder)
    aside, old = _aside(out), _old(out)
    with writing(out):
        aside.mkdir(parents=True, exist_ok=True)
        with alone(aside, f"Another audit is being written to {out}. Choose another --output_dir."):
            for path in aside.iterdir():  # of one that was killed
                remove(path)
            pictures = draw_pictures(result, aside)
            write_text(aside / JSON, json.dumps(result, indent=2, allow_nan=False) + "\n")
            write_text(aside / MARKDOWN, markdown_report(result, pictures))
            sync(aside)
            remove(old)
            if out.exists():
                rename(out, old)
            rename(aside, out)
            remove(old)
    return out


def _old(out: Path) -> Path:
    return out.with_name(out.name + ".old")


def _aside(out: Path) -> Path:
    return out.with_name(out.name + ".partial")
