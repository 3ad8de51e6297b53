"""Results of several methods as a table, for Markdown and for a terminal."""

import shutil
from collections.abc import Mapping
from typing import Any

from trl_pafo.metrics.verdict import format_interval, format_number

MOST_GROUPS = 6
"""With more groups a table shows the worst and the best of them."""
COUNTS = "users, pairs"
"""Name of the row that says how many stand behind each column."""

# One method: its name, and the text of each value and of its interval.
_Row = tuple[str, list[tuple[str, str]]]


def group_names(summary: Mapping[str, Any]) -> list[str]:
    """The groups of a summary, those with the most users (pairs, where users are not known) first; none where none are known."""
    names = [key.removeprefix("accuracy/") for key in summary if key.startswith("accuracy/")]
    sizes = {name: summary.get(f"num_users/{name}", summary.get(f"num_pairs/{name}", 0)) for name in names}
    return sorted(names, key=lambda name: (-sizes[name], name))


def columns_of(summary: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, str]:
    """The columns of a table of results: from the title to the name of the number in a summary.

    Args:
        summary (`Mapping`):
            Output of [`~trl_pafo.metrics.fairness_summary`].
        titles (`Mapping[str, str]`):
            The groups, in the order of the columns, and their titles.
    """
    columns = {"overall": "overall"}
    others = {"gap": "difference", "worst 10 % of users": "user_worst_decile", "Gini": "user_gini"}
    if len(titles) > MOST_GROUPS:
        columns |= {f"worst of {len(titles)} groups": "group_min", f"best of {len(titles)} groups": "group_max"}
    for name, title in titles.items() if len(titles) <= MOST_GROUPS else ():
        title = " ".join(title.split())
        columns[f"group {title!r}" if title in columns | others else title] = f"accuracy/{name}"
    columns |= others
    return {title: key for title, key in columns.items() if key in summary}


def counts_of(summary: Mapping[str, Any], key: str) -> str:
    """`20, 80`: users and pairs behind a number of a summary; `-` for users who are not known, nothing for other numbers."""
    if key != "overall" and not key.startswith("accuracy/"):
        return ""
    part = key.removeprefix("overall").removeprefix("accuracy")
    users, pairs = summary.get(f"num_users{part}"), summary.get(f"num_pairs{part}")
    return f"{'-' if users is None else format(users, ',')}, {'-' if pairs is None else format(pairs, ',')}"


def markdown_table(results: dict[str, dict[str, Any]]) -> str:
    """The table in GitHub's Markdown, values as `.912 [.890, .931]`, each group under its own name.

    Args:
        results (`dict[str, dict]`):
            Name of each method and its [`~trl_pafo.metrics.fairness_summary`], in the order of the rows; all on the same pairs.
    """
    header, counts, methods = _parts(results)
    rows = [[_escape(name), *(f"{v} {i}" for v, i in cells)] for name, cells in methods]
    lines = [list(map(_escape, header)), ["---", *("---:" for _ in header[1:])], counts, *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plain_table(results: dict[str, dict[str, Any]], width: int | None = None) -> str:
    """The same table in aligned columns. Where it is too wide, the intervals go below their values.

    Args:
        results (`dict[str, dict]`):
            Name of each method and its [`~trl_pafo.metrics.fairness_summary`], in the order of the rows; all on the same pairs.
        width (`int`, *optional*):
            Characters a line; `None` for the width of the terminal.
    """
    width = shutil.get_terminal_size().columns if width is None else width
    header, counts, methods = _parts(results)
    table = _align([header, counts, *([name, *(f"{v} {i}" for v, i in cells)] for name, cells in methods)])
    if max(len(line) for line in table) > width:
        rows = [header, counts]
        for name, cells in methods:
            rows += [[name, *(value for value, _ in cells)], ["", *(interval for _, interval in cells)]]
        table = _align(rows)
    return "".join(f"{line}\n" for line in table)


def _parts(results: dict[str, dict[str, Any]]) -> tuple[list[str], list[str], list[_Row]]:
    """The header, the counts below it, and the methods."""
    first = next(iter(results.values()))
    columns = columns_of(first, {name: name for name in group_names(first)})
    methods = [
        (name, [(format_number(summary[key]["value"]), format_interval(summary[key])) for key in columns.values()])
        for name, summary in results.items()
    ]
    counts = [COUNTS, *(counts_of(first, key) for key in columns.values())]
    return ["method", *columns], counts, methods


def _align(rows: list[list[str]]) -> list[str]:
    """Rows as lines: the first column flush left, the others flush right, two spaces between."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]


def _escape(name: str) -> str:
    return name.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
