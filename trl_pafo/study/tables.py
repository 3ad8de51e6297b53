"""The table of a study: Markdown, CSV and LaTeX, all from the same summaries."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from trl_pafo.evaluation.methods import TITLES
from trl_pafo.metrics.verdict import number_with_interval
from trl_pafo.study.config import DEFAULT, REFERENCE
from trl_pafo.study.rows import ROLES, Row, key_of
from trl_pafo.study.summary import Summary, blocks_of, by_method, summarize


def title_of(method: str) -> str:
    """A method, or a point of the reference's path, for people."""
    name, _, multiple = method.partition("@")
    title = TITLES.get(name, name)
    return f"{title}, x{multiple}" if multiple else title


def title_of_block(data: str, setting: str) -> str:
    return data if setting == DEFAULT else f"{data}, {setting}"


def role_titles(rows: Sequence[Row]) -> dict[str, str]:
    """What the columns of roles are called: with the name of the group, where it is one and says more."""
    titles = {}
    for role in ROLES:
        groups = {row["group"] for row in rows if row["role"] == role}
        name = groups.pop() if len(groups) == 1 and role in ROLES[:2] else role
        titles[role] = "worst group" if role == "worst" else role if name == role else f"{name} ({role})"
    return titles


def cells_of(summary: Summary, titles: Mapping[str, str]) -> dict[str, str]:
    """A row of the table for people, by column."""
    is_reference = summary.method == REFERENCE
    cells = {"method": title_of(summary.method)}
    cells |= {title: number_with_interval(summary.accuracy[role]) for role, title in titles.items()}
    for role in ROLES[:2]:
        found = "the reference" if is_reference else number_with_interval(summary.difference[role], signed=True)
        cells[f"difference, {titles[role]}"] = found.replace("unknown", "-") if found == "unknown" else found
    cells["way"] = "-" if is_reference or math.isnan(summary.way) else f"{summary.way:.0%}"
    failed = f", {summary.failed} failed" if summary.failed else ""
    cells["runs"] = f"{summary.runs}{failed}"
    cells["verdicts"] = ", ".join(f"{number} {name}" for name, number in summary.verdicts.items()) or "-"
    cells["steps"], cells["steps in all"] = (_whole(steps) for steps in (summary.steps, summary.steps_in_all))
    cells["tuning trials"] = _whole(summary.trials)
    return cells


def _whole(number: float) -> str:
    return "-" if math.isnan(number) else f"{number:,.0f}"


def markdown_of(rows: Sequence[Row], num_cells: int | None = None) -> str:
    """The tables of all data sets and settings, how to read them, and what failed; of a study of so many cells, where that is known."""
    done = len({key_of(row) for row in rows})
    counted = f"{done} cell{'s' if done != 1 else ''}" if num_cells is None else f"{done} of {num_cells} cells are done"
    parts = [f"# Study\n\n{counted}. {_HOW_TO_READ}"]
    blocks, found = blocks_of(rows), summarize(rows)
    for (data, method), of_settings in by_method(found.values()).items():
        if len(of_settings) == 1:
            continue
        titles = role_titles([row for row in rows if row["data"] == data])
        by_setting = {summary.setting: cells_of(summary, titles) for summary in of_settings}
        lines = [
            {"setting": setting} | {k: v for k, v in cells.items() if k != "method"} for setting, cells in by_setting.items()
        ]
        parts.append(f"## {data}: {title_of(method)} by setting\n\n{_markdown(lines)}")
    for place, summaries in found.items():
        titles = role_titles(blocks[place])
        runs = dict.fromkeys(f"{row['population_seed']}/{row['seed']}" for row in blocks[place])
        table = _markdown([cells_of(summary, titles) for summary in summaries])
        parts.append(f"## {title_of_block(*place)}\n\nPopulation/training seeds: {', '.join(runs)}.\n\n{table}")
    failed = [
        f"- {row['data']}, {row['setting']}, population {row['population_seed']}, seed {row['seed']}: {row['method']}: {row['error']}"
        for row in rows
        if row["error"]
    ]
    if failed:
        parts.append("## What failed\n\n" + "\n".join(failed))
    return "\n\n".join(parts) + "\n"


_HOW_TO_READ = (
    "Accuracies on test users are means over runs; brackets are 95 % intervals over runs (Student's t). A difference is to the reference of the "
    "same run: personalized BT, the best point of its path by group-balanced accuracy on validation users. *Way* is the share of the way from the "
    "reference to the group-routed teachers, who are told the group; verdicts are those of single runs, over their users. *Steps* are optimizer steps of the "
    "model, *steps in all* those of all trainings that it needs. Rows with a multiple are points of the reference's path."
)


def _markdown(rows: Sequence[Mapping[str, str]]) -> str:
    header = list(rows[0])
    lines = [header, ["---", *("---:" for _ in header[1:])], *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def csv_of(rows: Sequence[Row]) -> str:
    """A line a data set, setting and method, with numbers."""
    lines = [_numbers(summary) for summaries in summarize(rows).values() for summary in summaries]
    return pd.DataFrame(lines).to_csv(index=False, lineterminator="\n")


def _numbers(summary: Summary) -> dict[str, Any]:
    found: dict[str, Any] = {"data": summary.data, "setting": summary.setting, "method": summary.method}
    for kind, entries in (("accuracy", summary.accuracy), ("difference", summary.difference)):
        for role, entry in entries.items():
            found |= {f"{kind}_{role}{'' if end == 'value' else f'_{end}'}": number for end, number in entry.items()}
    found |= {"way": summary.way, "runs": summary.runs, "failed": summary.failed}
    found |= {verdict.replace(" ", "_"): summary.verdicts.get(verdict, 0) for verdict in VERDICTS}
    return found | {name: getattr(summary, name) for name in ("steps", "steps_in_all", "trials", "seconds")}


VERDICTS = ("improves", "cannot tell", "same", "mixed", "degrades")


def latex_of(rows: Sequence[Row]) -> str:
    """The tables of all data sets and settings for a paper, with booktabs; points of the path are left out."""
    parts, blocks = [], blocks_of(rows)
    for place, summaries in summarize(rows).items():
        titles = role_titles(blocks[place])
        frame = pd.DataFrame([cells_of(summary, titles) for summary in summaries if not summary.is_point])
        table = frame.to_latex(index=False, escape=True, column_format="l" + "r" * (frame.shape[1] - 1))
        parts.append(f"% {title_of_block(*place)}\n{table}")
    return "\n".join(parts)
