"""Results of several methods as a table, for Markdown and for a terminal."""

import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from trl_pafo.evaluation.reference_path import value_of
from trl_pafo.metrics.verdict import format_interval, format_number

MOST_GROUPS = 6
"""With more groups a table shows the worst and the best of them."""
COUNTS = "users, pairs"
"""Name of the row that says how many stand behind each column."""

SPLITS = {"validation": "personalized BT, held out", "test": "personalized BT, test"}
"""Where the points of the path are judged, and the titles of their tables."""

# One method: its name, and the text of each value and of its interval.
_Row = tuple[str, list[tuple[str, str]]]
# The header, the counts below it, and the methods.
_Parts = tuple[list[str], list[str], list[_Row]]


def group_names(summary: Mapping[str, Any]) -> list[str]:
    """The groups of a summary, those with the most users (pairs, where users are not known) first; none where none are known."""
    names = [key.removeprefix("accuracy/") for key in summary if key.startswith("accuracy/")]
    sizes = {name: summary.get(f"num_users/{name}", summary.get(f"num_pairs/{name}", 0)) for name in names}
    return sorted(names, key=lambda name: (-sizes[name], name))


def columns_of(summary: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, str]:
    """The columns of a table of results: from the title to the name of the number in a summary.

    Args:
        summary (`Mapping`):
            Output of [`~trl_pafo.metrics.fairness_summary`], or a point of [`~trl_pafo.evaluation.front.predict_front`].
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
        others[f"log likelihood, {title}"] = f"log_likelihood/{name}"
    columns |= others
    return {title: key for title, key in columns.items() if key in summary}


def over(summary: Mapping[str, Any]) -> str:
    """What the intervals of a summary are over."""
    return "prompts of known users" if "num_units" in summary else "users"


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
    return _as_markdown(_parts(results))


def markdown_path(path: Mapping[str, Any]) -> str:
    """The points of the path of personalized Bradley-Terry in the same form, a table for held-out and one for test pairs."""
    return "\n".join(map(_as_markdown, _path_parts(path)))


def _as_markdown(parts: _Parts) -> str:
    header, counts, methods = parts
    rows = [[_escape(name), *(f"{v} {i}".rstrip() for v, i in cells)] for name, cells in methods]
    lines = [list(map(_escape, header)), ["---", *("---:" for _ in header[1:])], counts, *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plain_table(results: dict[str, dict[str, Any]], width: int | None = None, worst_group: bool = False) -> str:
    """The same table in aligned columns. Where it is too wide, the intervals go below their values.

    Args:
        results (`dict[str, dict]`):
            Name of each method and its [`~trl_pafo.metrics.fairness_summary`], in the order of the rows; all on the same pairs.
        width (`int`, *optional*):
            Characters a line; `None` for the width of the terminal.
        worst_group (`bool`, *optional*, defaults to `False`):
            Whether the accuracy of each method's worst group is a column.
    """
    return _as_plain(_parts(results, worst_group), width)


def plain_path(path: Mapping[str, Any], width: int | None = None) -> str:
    """The points of the path of personalized Bradley-Terry in the same form, a table for held-out and one for test pairs."""
    return "\n".join(_as_plain(parts, width) for parts in _path_parts(path))


def _as_plain(parts: _Parts, width: int | None) -> str:
    width = shutil.get_terminal_size().columns if width is None else width
    header, counts, methods = parts
    table = _align([header, counts, *([name, *(f"{v} {i}".rstrip() for v, i in cells)] for name, cells in methods)])
    if max(len(line) for line in table) > width:
        rows = [header, counts]
        for name, cells in methods:
            rows += [[name, *(value for value, _ in cells)], ["", *(interval for _, interval in cells)]]
        table = _align(rows)
    return "".join(f"{line}\n" for line in table)


def path_columns(summary: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, str]:
    """The columns of a table of the path: from the title to a rule of [`~trl_pafo.evaluation.reference_path.RULES`] or a group's number.

    Args:
        summary (`Mapping`):
            Output of [`~trl_pafo.evaluation.reference_path.accuracies_of`].
        titles (`Mapping[str, str]`):
            The groups, in the order of the columns, and their titles.
    """
    if len(titles) > MOST_GROUPS:
        return {"balanced": "group_balanced", f"worst of {len(titles)} groups": "worst_group"}
    return {"balanced": "group_balanced", **{k: v for k, v in columns_of(summary, titles).items() if v.startswith("accuracy/")}}


def path_entry(summary: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """What stands in a column of [`path_columns`]; the number of a rule has no interval."""
    return summary[key] if key in summary else {"value": value_of(key, summary)}


def path_title(point: Mapping[str, Any], path: Mapping[str, Any]) -> str:
    """`x2, 120 steps`, and a star at the reference."""
    return f"x{point['multiple']:g}, {point['steps']} steps{' *' if point['multiple'] == path['chosen'] else ''}"


def _path_parts(path: Mapping[str, Any]) -> Iterator[_Parts]:
    """Of held-out pairs, as far as there are any, and of test pairs."""
    for split in splits_of(path):
        first = path["points"][0][split]
        columns = path_columns(first, {name: name for name in group_names(path["points"][0]["test"])})
        rows = []
        for point in path["points"]:
            entries = [path_entry(point[split], key) for key in columns.values()]
            cells = [(format_number(e["value"]), format_interval(e) if "low" in e else "") for e in entries]
            rows.append((path_title(point, path), cells))
        yield [SPLITS[split], *columns], [COUNTS, *(counts_of(first, key) for key in columns.values())], rows


def splits_of(path: Mapping[str, Any]) -> list[str]:
    """The splits of which a table of the path is made: those with pairs; none for a path of one point."""
    points = path.get("points", ())
    return [split for split in SPLITS if len(points) > 1 and points[0][split] is not None]


def _parts(results: dict[str, dict[str, Any]], worst_group: bool = False) -> _Parts:
    first = next(iter(results.values()))
    columns = columns_of(first, {name: name for name in group_names(first)})
    if worst_group and "group_min" in first and "group_min" not in columns.values():
        gap = list(columns).index("gap")
        title = "worst group" if "worst group" not in columns else "worst of all groups"
        columns = dict([*list(columns.items())[:gap], (title, "group_min"), *list(columns.items())[gap:]])
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
