"""The audit as text: short tables for a terminal, the whole in Markdown."""

from typing import Any

from trl_pafo.audit.verdict import interval
from trl_pafo.data.sources.arguments import data_name
from trl_pafo.metrics.verdict import format_number

Table = tuple[str, list[list[str]]]


def text_report(result: dict[str, Any]) -> str:
    """Verdict, tables and findings in aligned columns, for a terminal."""
    parts = []
    for title, rows in _tables(result):
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
            for row in rows
        ]
        parts.append("\n".join([title, *lines]))
    return "\n\n".join([*parts, "\n".join(result["findings"]), result["verdict"]]) + "\n"


def markdown_report(result: dict[str, Any], pictures: list[str]) -> str:
    """Verdict, findings, tables and pictures in GitHub's Markdown."""
    parts = [
        f"# Audit of {data_name(result['data'])}",
        result["verdict"],
        "\n".join(f"- {sentence}" for sentence in result["findings"]),
    ]
    for title, rows in _tables(result):
        head = [rows[0], ["---", *("---:" for _ in rows[0][1:])], *rows[1:]]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in head)
        parts.append(f"## {title}\n\n{table}")
    parts += [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in pictures]
    return "\n\n".join(parts) + "\n"


def _tables(result: dict[str, Any]) -> list[Table]:
    tables = [_groups(result)]
    if result["accuracy"] is not None:
        tables.append(_trend(result["accuracy"]))
    if result["headroom"] is not None:
        tables.append(_headroom(result["headroom"]))
    return tables


def _groups(result: dict[str, Any]) -> Table:
    counts, lengths = result["counts"], result["length"]
    rows = [["group", "users", "share", "pairs", "support", f"training pairs over {lengths['max_length']} tokens"]]
    for name, group in counts["groups"].items():
        rate = group["support_rate"]
        support = format_number(rate["median"])
        if rate["min"] < rate["max"]:
            support += f" ({format_number(rate['min'])} to {format_number(rate['max'])})"
        length = lengths["groups"].get(name)
        dropped = f"{length['dropped']} of {length['pairs']}" if length else "none in training"
        share = f"{100 * group['share_of_users']:.1f} %"
        rows.append([name, f"{group['users']:,}", share, f"{group['pairs']:,}", support, dropped])
    pairs = counts["pairs_a_user"]
    title = (
        f"{data_name(result['data'])}: {counts['users']:,} users, {counts['pairs']:,} pairs ({pairs['min']:g} to {pairs['max']:g} a user, median {pairs['median']:g}), "
        f"{counts['prompts']:,} prompts"
    )
    return title, rows


def _trend(accuracy: dict[str, Any]) -> Table:
    bins = accuracy["trend"]["bins"]
    known = any(entry.get("ceiling") for entry in bins)
    head = ["support", "users", "pairs", "accuracy"]
    rows = [head + (["accuracy on common pairs", "ceiling there"] if known else [])]
    for entry in bins:
        low, high = format_number(entry["low"]), format_number(entry["high"])
        row = [
            low if low == high else f"{low} to {high}",
            f"{entry['users']:,}",
            f"{entry['pairs']:,}",
            interval(entry["accuracy"]),
        ]
        if known:
            row += [format_number(entry["accuracy_there"]), interval(entry["ceiling"])] if entry.get("ceiling") else ["", ""]
        rows.append(row)
    return f"Accuracy by support ({accuracy['judge']})", rows


def _headroom(headroom: dict[str, Any]) -> Table:
    rows = [["group", "users", "no history", "shared", "own teacher", "headroom", "over repeats"]]
    for name, group in headroom["groups"].items():
        gains = group["gain_of_each_repeat"]
        rows.append(
            [
                name,
                f"{group['num_users']:,}",
                *(format_number(group[probe]) for probe in ("no_history", "shared", "teacher")),
                interval(group["gain"], True),
                f"{format_number(min(gains), True)} to {format_number(max(gains), True)}",
            ]
        )
    title = (
        f"Headroom: probes on {headroom['num_pairs']:,} pairs, features of {headroom['embedding_model']}, {headroom['folds']} x "
        f"{headroom['folds']} parts, {headroom['repeats']} repeats"
    )
    return title, rows
