"""A study: its cells one after the other, those that are done skipped, and the table after each."""

import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import yaml

from trl_pafo.errors import ConfigError, RunFolderError, StudyError
from trl_pafo.metrics.plotting import write_png
from trl_pafo.storage.cost import seconds_in_words
from trl_pafo.storage.files import alone, write_text
from trl_pafo.study.config import Cell, StudyConfig, Trial
from trl_pafo.study.doing import LOG, Attempt, do_cell, with_place
from trl_pafo.study.joining import read_cells
from trl_pafo.study.pictures import can_draw, draw_front, draw_intervals
from trl_pafo.study.process import run_apart
from trl_pafo.study.rows import ROWS, Row, key_of, read_rows, write_rows
from trl_pafo.study.tables import csv_of, latex_of, markdown_of
from trl_pafo.study.tuning import choose

_Cell = TypeVar("_Cell", bound=Cell)

TABLE = "study.md"
CONFIG = "cell.yaml"
"""File of a cell: the options of its run."""


class Study:
    """
    All cells of a study in one folder. A cell that is done is skipped, one that was interrupted goes on where it was.

    Args:
        config ([`StudyConfig`]):
            The study.
        cells (`str`, *optional*):
            Which part of the cells is done here, such as `"3/10"`. The parts are disjoint, and together all.
        cells_from (`Sequence[str]`, *optional*):
            Folders of cells that are done already, as [`join_cells`] reads them: they are not done again, and stand in the table.
        attempt (`Callable`, *optional*):
            What does a run, see [`~trl_pafo.study.doing.Attempt`].

    Raises:
        ConfigError: If the part is none, or cells that are there were made with other options.
        RunFolderError: If the folder holds something else.
    """

    def __init__(
        self, config: StudyConfig, cells: str | None = None, cells_from: Sequence[str] = (), attempt: Attempt = run_apart
    ):
        self.config, self.folder, self.attempt = config, Path(config.output_dir), attempt
        self.cells, self.trials = part_of(config.cells, cells), part_of(config.trials, cells)
        check_folder(self.folder)
        self.joined = read_cells(cells_from)
        self._refuse_others()

    def __call__(self) -> list[Row]:
        """Do the cells that are not done and write the table after each; return its rows.

        Raises:
            StudyError: At the end, if a method or a cell failed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        needed = {place for cell in self.cells if not self._is_done(cell) for place in self._trials_of(cell)}
        self._do_all([trial for trial in self.trials if trial in needed], "trials")
        if missing := sum(not self._has_rows(trial) for trial in needed):
            raise StudyError(
                f"{missing} trials of tuning are those of other parts and not done yet. Start the same command again when they are: cells wait for "
                "all trials of their data."
            )
        self._do_all(self.cells, "cells")
        table = self.write()
        here = {cell.key for cell in self.cells}
        failed = {key_of(row) for row in table if row["error"]} & here
        if failed:
            raise StudyError(
                f"{len(failed)} of {len(self.cells)} cells have a method that failed; {self.folder / TABLE} says which and how, {LOG} in the "
                "folder of a cell all that it said. Start the same command again: what is done is kept, and the rest is tried again."
            )
        return table

    def write(self) -> list[Row]:
        """Write the table and the pictures of all cells that are done, by this process or another, or were joined; return the rows."""
        found = [read_rows(self.folder / cell.folder / ROWS) for cell in self.config.cells if self._has_rows(cell)]
        table = [*chain(*found), *self.joined]
        if table:
            write_study(self.folder, table, len(self.config.cells))
        return table

    def _do_all(self, cells: Sequence[Cell], what: str) -> None:
        """Do cells or trials that are not done, and say how long it takes."""
        waiting = [cell for cell in cells if not self._is_done(cell)]
        if len(waiting) < len(cells):
            print(f"{len(cells) - len(waiting)} of {len(cells)} {what} done before, kept", flush=True)
        began = time.monotonic()
        for number, cell in enumerate(waiting, start=1):
            self._do(cell, f"[{number} of {len(waiting)}] {cell.title}")
            left, taken = len(waiting) - number, (time.monotonic() - began) / number
            if left:
                print(f"    {left} {what if left > 1 else what[:-1]} left, about {seconds_in_words(taken * left)}", flush=True)
            self.write()

    def _do(self, cell: Cell, title: str) -> None:
        folder = self.folder / cell.folder
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with alone(folder, f"{title}: another process does it"):
                print(title, flush=True)
                write_text(folder / CONFIG, cell.config)
                began = time.monotonic()
                rows = do_cell(cell, folder, self.attempt, self._chosen_for(cell) if cell.tuning else None)
                write_rows(folder / ROWS, with_place(cell, rows))
                for row in rows:
                    if row.get("error"):
                        print(f"    {row['method']} failed: {row['error']}", flush=True)
                print(f"    {seconds_in_words(time.monotonic() - began)}", flush=True)
        except RunFolderError as error:
            print(error, flush=True)

    def _trials_of(self, cell: Cell) -> list[Trial]:
        return [trial for trial in self.config.trials if (trial.data, trial.setting) == (cell.data, cell.setting)]

    def _chosen_for(self, cell: Cell) -> dict[str, Mapping[str, Any]]:
        trials = {trial: read_rows(self.folder / trial.folder / ROWS) for trial in self._trials_of(cell)}
        return choose(trials, cell.methods)

    def _has_rows(self, cell: Cell) -> bool:
        return (self.folder / cell.folder / ROWS).is_file()

    def _is_done(self, cell: Cell) -> bool:
        """Whether all methods of a cell are done, here or among the cells that were joined."""
        own = [read_rows(self.folder / cell.folder / ROWS)] if self._has_rows(cell) else []
        place = (cell.key, cell.digest)
        done = {row["method"] for row in chain(*own, self.joined) if (key_of(row), row["options"]) == place and not row["error"]}
        return set(cell.methods) <= done

    def _refuse_others(self) -> None:
        """What is in the way is told before the first run."""
        cells = {cell.key: cell for cell in self.config.cells}
        for cell in (*self.config.cells, *self.config.trials):
            if self._has_rows(cell):
                made = {row["options"] for row in read_rows(self.folder / cell.folder / ROWS)}
                if made != {cell.digest}:
                    changed = _changed(self.folder / cell.folder / CONFIG, cell)
                    raise ConfigError(
                        f"{self.folder / cell.folder} was done with other options ({changed}). Choose another output_dir, or remove it to do "
                        "it anew."
                    )
        for key, made_from in {(key_of(row), row["options"]) for row in self.joined}:
            of_study = cells.get(key)  # type: ignore[arg-type]
            if of_study is not None and made_from != of_study.digest:
                raise ConfigError(
                    f"--cells_from has a cell {of_study.title} of other options than the study's. Leave it out, or give its data or setting "
                    "another name."
                )
            if of_study is not None and self._has_rows(of_study):
                raise ConfigError(f"--cells_from has the cell {of_study.title}, which is in {self.folder} too. Leave one out.")


def _changed(path: Path, cell: Cell) -> str:
    if not path.is_file():
        return f"{path.name} is missing"
    old, new = yaml.safe_load(path.read_text(encoding="utf-8")), yaml.safe_load(cell.config)
    names = sorted(name for name in {*old, *new} - {"methods"} if old.get(name) != new.get(name))
    return (
        ", ".join(f"{name}: {old.get(name, 'default')} -> {new.get(name, 'default')}" for name in names)
        or "another content of its data"
    )


def part_of(cells: Sequence[_Cell], part: str | None) -> tuple[_Cell, ...]:
    """The part `"3/10"` of the cells: neighbors, and as many as in the other parts, or one more."""
    if part is None:
        return tuple(cells)
    number, _, of = part.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise ConfigError(f"--cells must be a part such as 3/10, the third of ten, from 1/10 to 10/10; got {part!r}.")
    start, end = (len(cells) * n // int(of) for n in (int(number) - 1, int(number)))
    return tuple(cells[start:end])


def check_folder(folder: Path) -> None:
    """Raise [`RunFolderError`] if the folder of a study holds something else."""
    if folder.is_file():
        raise RunFolderError(f"The output folder {folder} is a file. Choose another --output_dir.")
    known = ("cells", "tuning", TABLE)
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).exists() for name in known):
        raise RunFolderError(f"The output folder {folder} is not empty and is no study of trl-pafo. Choose another --output_dir.")


def join_cells(paths: Sequence[str], output_dir: str) -> list[Row]:
    """Make the table of cells that are done, as [`read_cells`] reads them, without doing any; return its rows.

    Raises:
        DataError, RunFolderError: If a path holds no cell, or the folder something else.
    """
    folder = Path(output_dir)
    check_folder(folder)
    table = read_cells(paths)
    folder.mkdir(parents=True, exist_ok=True)
    write_study(folder, table)
    return table


def write_study(folder: Path, table: Sequence[Row], num_cells: int | None = None) -> None:
    """Write the table in its three forms, and the pictures, from the rows of cells alone."""
    write_text(folder / TABLE, markdown_of(table, num_cells))
    write_text(folder / "study.csv", csv_of(table))
    write_text(folder / "study.tex", latex_of(table))
    if can_draw(table):
        write_png(draw_front(table), folder / "front.png")
        write_png(draw_intervals(table), folder / "intervals.png")
