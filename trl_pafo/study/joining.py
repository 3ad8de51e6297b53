"""Cells that are done already: tables of cells, studies, and runs that no study made."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import yaml

from trl_pafo.errors import DataError
from trl_pafo.report.record import RUN_CONFIG
from trl_pafo.storage.run_folder import MANIFEST
from trl_pafo.study.config import DEFAULT
from trl_pafo.study.rows import KEY, ROWS, Row, complete, key_of, read_rows, rows_of_run


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
    config = yaml.safe_load((folder / RUN_CONFIG).read_text(encoding="utf-8"))
    of_run = {"data": config.get("source", "styles"), "setting": DEFAULT, "trials": 0}
    of_run |= {"population_seed": config.get("population_seed", 0), "seed": config.get("seed", 42)}
    return [complete(row | of_run) for row in rows_of_run(folder)]
