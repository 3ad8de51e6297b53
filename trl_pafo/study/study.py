"""A study: its cells one after the other, those that are done skipped, and the table after each."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from trl_pafo.errors import ConfigError, DataError, RunFolderError, StudyError
from trl_pafo.plotting import write_png
from trl_pafo.storage.files import alone, write_text
from trl_pafo.storage.run_folder import MANIFEST
from trl_pafo.study.config import DEFAULT, REFERENCE, Cell, StudyConfig
from trl_pafo.study.pictures import can_draw, draw_front, draw_intervals
from trl_pafo.study.process import run_apart
from trl_pafo.study.rows import KEY, ROWS, Row, complete, key_of, read_rows, rows_of_run, write_rows
from trl_pafo.study.tables import csv_of, latex_of, markdown_of, seconds_in_words

TABLE = "study.md"
CONFIG = "cell.yaml"
"""File of a cell: the options of its run."""
RUN, LOG = "run", "run.log"
"""In the folder of a cell: that of its run, and all that the run said."""

Attempt = Callable[[Mapping[str, Any], Path], str | None]


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
            What does a run: takes its options and the file of its log, returns what went wrong or `None`.

    Raises:
        ConfigError: If the part is none, or cells that are there were made with other options.
        RunFolderError: If the folder holds something else.
    """

    def __init__(
        self, config: StudyConfig, cells: str | None = None, cells_from: Sequence[str] = (), attempt: Attempt = run_apart
    ):
        self.config, self.folder, self.attempt = config, Path(config.output_dir), attempt
        self.cells = part_of(config.cells, cells)
        check_folder(self.folder)
        self.joined = read_cells(cells_from)
        self._refuse_others()

    def __call__(self) -> list[Row]:
        """Do the cells that are not done and write the table after each; return its rows.

        Raises:
            StudyError: At the end, if a method or a cell failed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        waiting = [cell for cell in self.cells if not self._is_done(cell)]
        if len(waiting) < len(self.cells):
            print(f"{len(self.cells) - len(waiting)} of {len(self.cells)} cells done before, kept", flush=True)
        began = time.monotonic()
        for number, cell in enumerate(waiting, start=1):
            self._do(cell, f"[{number} of {len(waiting)}] {cell.title}")
            taken = (time.monotonic() - began) / number
            left = len(waiting) - number
            if left:
                print(f"    {left} cells left, about {seconds_in_words(taken * left)}", flush=True)
            self.write()
        table = self.write()
        here = {cell.key for cell in self.cells}
        failed = {key_of(row) for row in table if row["error"]} & here
        if failed:
            raise StudyError(
                f"{len(failed)} of {len(self.cells)} cells have a method that failed; {self.folder / TABLE} says which and how, {LOG} in the "
                "folder of a cell all that it said. Start the same command again: what is done is kept, and the rest is tried again."
            )
        return table

    def rows(self) -> list[Row]:
        """The rows of all cells that are done, by this process or another, and of those that were joined."""
        found = [read_rows(self.folder / cell.folder / ROWS) for cell in self.config.cells if self._has_rows(cell)]
        return [*chain(*found), *self.joined]

    def write(self) -> list[Row]:
        """Write the table and the pictures; return the rows."""
        table = self.rows()
        if table:
            write_study(self.folder, table, len(self.config.cells))
        return table

    def _do(self, cell: Cell, title: str) -> None:
        folder = self.folder / cell.folder
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with alone(folder, f"{title}: another process does it"):
                print(title, flush=True)
                write_text(folder / CONFIG, cell.config)
                began = time.monotonic()
                errors = self._errors_of(cell, folder)
                rows = [] if set(errors) == set(cell.methods) else rows_of_run(folder / RUN)
                rows += [{"method": method, "error": error} for method, error in errors.items()]
                of_cell = {**dict(zip(KEY, cell.key, strict=True)), "trials": 0, "options": cell.digest}
                write_rows(folder / ROWS, [row | of_cell for row in rows])
                for method, error in errors.items():
                    print(f"    {method} failed: {error}", flush=True)
                print(f"    {seconds_in_words(time.monotonic() - began)}", flush=True)
        except RunFolderError as error:
            print(error, flush=True)

    def _errors_of(self, cell: Cell, folder: Path) -> dict[str, str]:
        """Do the run of a cell; return the methods that failed, and how. One that fails is found by doing each alone beside the reference."""

        def attempt(methods: Sequence[str]) -> str | None:
            options = {**cell.options, "methods": list(methods), "output_dir": str(folder / RUN)}
            return self.attempt(options, folder / LOG)

        if (error := attempt(cell.methods)) is None:
            return {}
        if len(cell.methods) == 1 or (error := attempt([REFERENCE])) is not None:
            return dict.fromkeys(cell.methods, str(error))
        errors = {}
        for method in cell.methods:
            if method != REFERENCE and (error := attempt([REFERENCE, method])) is not None:
                errors[method] = error
        if (error := attempt([method for method in cell.methods if method not in errors])) is not None:
            return dict.fromkeys(cell.methods, error)
        return errors

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
        for cell in self.config.cells:
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


def part_of(cells: Sequence[Cell], part: str | None) -> tuple[Cell, ...]:
    """The part `"3/10"` of the cells: neighbors, and as many as in the other parts, or one more.

    Raises:
        ConfigError: If there is no such part.
    """
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
    known = ("cells", TABLE)
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).exists() for name in known):
        raise RunFolderError(f"The output folder {folder} is not empty and is no study of trl-pafo. Choose another --output_dir.")


def read_cells(paths: Sequence[str]) -> list[Row]:
    """The rows of cells that are done: of each path a table of a cell (a CSV file), the folder of a run, or a folder with these in it.

    A run that is no cell of a study is one of the data of its source, in the setting `default`.

    Raises:
        DataError: If a path holds none, or a cell is there twice.
    """
    tables = []
    for path in paths:
        found = list(_tables_in(Path(path)))
        if not found:
            raise DataError(f"--cells_from {path} has no {ROWS} and no finished run.")
        tables += found
    counts = Counter(key for table in tables for key in {key_of(row) for row in table})
    if twice := [key for key, count in counts.items() if count > 1]:
        data, setting, population, seed = twice[0]
        raise DataError(
            f"--cells_from has the cell {data}, {setting}, population {population}, seed {seed} twice. Leave one out."
        )
    return list(chain(*tables))


def _tables_in(path: Path) -> Iterator[list[Row]]:
    if path.is_file():
        yield read_rows(path)
        return
    if (path / MANIFEST).is_file():
        yield _table_of_run(path)
        return
    for file in sorted(path.rglob("*.csv")):
        if file.name == ROWS or (file.parent == path and _is_table(file)):
            yield read_rows(file)
    if path.is_dir():
        inside = [folder for folder in sorted(path.iterdir()) if (folder / MANIFEST).is_file()]
        for folder in inside if not (path / ROWS).is_file() else ():
            yield _table_of_run(folder)


def _is_table(path: Path) -> bool:
    """Whether a CSV file is a table of cells under another name."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.readline().startswith(",".join(KEY))


def _table_of_run(folder: Path) -> list[Row]:
    config = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    of_run = {"data": config.get("source", "styles"), "setting": DEFAULT, "trials": 0}
    of_run |= {"population_seed": config.get("population_seed", 0), "seed": config.get("seed", 42)}
    return [complete(row | of_run) for row in rows_of_run(folder)]


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
