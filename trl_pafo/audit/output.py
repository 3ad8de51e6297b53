"""The folder of an audit: written aside and renamed; nothing but an earlier audit is ever replaced."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from trl_pafo.audit.pictures import ACCURACY, HEADROOM, SUPPORT, draw_pictures
from trl_pafo.audit.tables import markdown_report
from trl_pafo.errors import RunFolderError
from trl_pafo.runs import write_text

JSON, MARKDOWN = "audit.json", "audit.md"
_OURS = {JSON, MARKDOWN, SUPPORT, ACCURACY, HEADROOM}


def check_output(folder: str | Path) -> Path:
    """The folder, if an audit may be written there: new, empty, or holding an earlier audit and nothing else.

    Raises:
        RunFolderError: If it holds something else, or something of an unfinished audit stands beside it.
    """
    out = Path(folder)
    for path in (out, _aside(out)):
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
        RunFolderError: As [`check_output`].
    """
    out = check_output(folder)
    aside = _aside(out)
    if aside.exists():
        shutil.rmtree(aside)
    aside.mkdir(parents=True)
    pictures = draw_pictures(result, aside)
    write_text(aside / JSON, json.dumps(result, indent=2, allow_nan=False) + "\n")
    write_text(aside / MARKDOWN, markdown_report(result, pictures))
    if out.exists():
        shutil.rmtree(out)
    os.replace(aside, out)
    return out


def _aside(out: Path) -> Path:
    return out.with_name(out.name + ".partial")
