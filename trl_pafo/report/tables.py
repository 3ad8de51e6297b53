"""Results of several methods as a table, for Markdown and for a terminal."""

import shutil
from typing import Any

from trl_pafo.errors import DataError
from trl_pafo.metrics.verdict import format_number

HEADER = ("method", "overall", "Maj", "Min", "gap", "worst 10 % of users", "Gini")


def markdown_table(results: dict[str, dict[str, Any]], majority: str, minority: str) -> str:
    """The table in GitHub's Markdown, values as `.912 [.890, .931]`.

    Args:
        results (`dict[str, dict]`):
            Name of each method and its [`~trl_pafo.metrics.fairness_summary`], in the order of the rows.
        majority (`str`):
            Group whose accuracy stands under `Maj`.
        minority (`str`):
            Group whose accuracy stands under `Min`.

    Raises:
        DataError: If there is no method, or a summary lacks a number.
    """
    rows = [[_escape(name), *(f"{v} {i}" for v, i in cells)] for name, cells in _cells(results, majority, minority)]
    lines = [HEADER, ["---", *("---:" for _ in HEADER[1:])], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plain_table(results: dict[str, dict[str, Any]], majority: str, minority: str, width: int | None = None) -> str:
    """The same table in aligned columns. Where it is too wide, the intervals go below their values.

    Args:
        results (`dict[str, dict]`):
            Name of each method and its [`~trl_pafo.metrics.fairness_summary`], in the order of the rows.
        majority (`str`):
            Group whose accuracy stands under `Maj`.
        minority (`str`):
            Group whose accuracy stands under `Min`.
        width (`int`, *optional*):
            Characters a line; `None` for the width of the terminal.

    Raises:
        DataError: If there is no method, or a summary lacks a number.
    """
    width = shutil.get_terminal_size().columns if width is None else width
    methods = _cells(results, majority, minority)
    table = _align([list(HEADER), *([name, *(f"{v} {i}" for v, i in cells)] for name, cells in methods)])
    if max(len(line) for line in table) > width:
        rows = [list(HEADER)]
        for name, cells in methods:
            rows += [[name, *(value for value, _ in cells)], ["", *(interval for _, interval in cells)]]
        table = _align(rows)
    return "".join(f"{line}\n" for line in table)


def _cells(results: dict[str, dict[str, Any]], majority: str, minority: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each method with the texts of its values and of their intervals, in the order of `HEADER`."""
    if not results:
        raise DataError("There is no method to put into the table; evaluate at least one.")
    keys = ("overall", f"accuracy/{majority}", f"accuracy/{minority}", "difference", "user_worst_decile", "user_gini")
    methods = []
    for name, summary in results.items():
        missing = [key for key in keys if key not in summary]
        if missing:
            raise DataError(
                f"The results of {name!r} lack {missing}; make them with `fairness_summary`, on data that holds the "
                f"groups {majority!r} and {minority!r}."
            )
        numbers = [[format_number(summary[key][part]) for part in ("value", "low", "high")] for key in keys]
        methods.append((name, [(value, f"[{low}, {high}]") for value, low, high in numbers]))
    return methods


def _align(rows: list[list[str]]) -> list[str]:
    """Rows as lines: the first column flush left, the others flush right, two spaces between."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]


def _escape(name: str) -> str:
    return name.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
