"""How a cell is done: its runs, what fails in them, and its rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_pafo.evaluation.methods import OF_TEACHERS, STUDENTS
from trl_pafo.evaluation.reference_path import CHOSEN
from trl_pafo.study.config import REFERENCE, Cell, Trial, name_of
from trl_pafo.study.rows import KEY, Row, rows_of_run

RUN, LOG = "run", "run.log"
"""In the folder of a cell: that of its run, and all that the run said."""

Attempt = Callable[[Mapping[str, Any], Path, bool], str | None]
"""Does a run: takes its options, the file of its log, and whether it is a trial; returns what went wrong or `None`. Raises [`RunFailedError`]."""

_READ_THE_PATH = {*STUDENTS, *OF_TEACHERS, *CHOSEN}


class RunFailedError(Exception):
    """A run failed for a reason that none of its methods has given: its data, the disk."""


@dataclass(frozen=True)
class Part:
    """A run of a cell: the methods that get the same options, beside the reference's training with these."""

    values: Mapping[str, Any]
    methods: list[str]

    @property
    def folder(self) -> str:
        return f"{RUN}-{name_of(self.values)}" if self.values else RUN

    @property
    def options(self) -> dict[str, Any]:
        """A run has the path of the reference; where no method reads it, its shortest form."""
        return {**self.values, **({} if _READ_THE_PATH & set(self.methods) else {"reference_steps": [1]})}


def parts_of(methods: Sequence[str], chosen: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    """The runs of a cell: one without tuning, else one for all methods of the same values; that of the reference is the first."""
    parts: dict[str, Part] = {}
    for method in sorted(methods, key=lambda method: method != REFERENCE):
        values = chosen.get(method, {})
        parts.setdefault(name_of(values), Part(values, [])).methods.append(method)
    return list(parts.values())


def do_cell(cell: Cell, folder: Path, attempt: Attempt, chosen: Mapping[str, Mapping[str, Any]] | None = None) -> list[Row]:
    """Do the runs of a cell in its folder; return its rows, with those of methods that failed.

    `chosen` has the values of tuned options by method; one without failed in all trials.
    """
    methods = [method for method in cell.methods if chosen is None or method in chosen]
    errors = {method: "it failed in all trials" for method in cell.methods if method not in methods}
    rows: list[Row] = []
    parts = parts_of(methods, chosen or {})
    for number, part in enumerate(parts):
        try:
            failed = _errors_of(cell, part, folder, attempt)
        except RunFailedError as error:
            failed = dict.fromkeys(part.methods, str(error))
        errors |= failed
        if REFERENCE in errors:
            return [{"method": method, "error": errors.get(method, errors[REFERENCE])} for method in cell.methods]
        if set(part.methods) <= set(failed):
            continue
        other = folder / parts[0].folder if number else None
        of_run = rows_of_run(folder / part.folder, other, cell.seed)
        tuned = [] if chosen is None else [name_of(part.values)]
        for row in of_run:
            if row["method"].partition("@")[0] in part.methods:
                rows.append(row | {"tuned": ",".join([*tuned, *([row["tuned"]] if "tuned" in row else [])])})
    rows += [{"method": method, "error": error} for method, error in errors.items()]
    order = [row["method"] for row in rows]
    order = [*cell.methods, *dict.fromkeys(name for name in order if name not in cell.methods)]
    return sorted(rows, key=lambda row: order.index(row["method"]))


def with_place(cell: Cell, rows: Sequence[Row]) -> list[Row]:
    """Rows with the columns that say which cell they are of."""
    place = {**dict(zip(KEY, cell.key, strict=True)), "trials": len(cell.tuning.get("grid", ())), "options": cell.digest}
    return [row | place for row in rows]


def _errors_of(cell: Cell, part: Part, folder: Path, attempt: Attempt) -> dict[str, str]:
    """Do a run; return the methods that failed, and how. They are found by doing each alone beside the reference."""
    methods = list(dict.fromkeys([REFERENCE, *part.methods]))

    def try_(methods: Sequence[str]) -> str | None:
        options = {**cell.options, **part.options, "methods": list(methods), "output_dir": str(folder / part.folder)}
        return attempt(options, folder / LOG, isinstance(cell, Trial))

    if (error := try_(methods)) is None:
        return {}
    if len(methods) == 1 or (error := try_([REFERENCE])) is not None:
        return dict.fromkeys(part.methods, str(error))
    errors = {}
    for method in part.methods:
        if method != REFERENCE and (error := try_([REFERENCE, method])) is not None:
            errors[method] = error
    if (error := try_([method for method in methods if method not in errors])) is not None:
        return dict.fromkeys(part.methods, error)
    return errors
