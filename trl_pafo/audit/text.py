"""The audit in words and tables. Every claim is one that an interval shows; what is not shown is said to be open."""

from statistics import median
from typing import Any

from trl_pafo.data.sources.arguments import data_name
from trl_pafo.evaluation.tastes import tastes_sentences
from trl_pafo.metrics.verdict import format_number, is_known, number_with_interval
from trl_pafo.report.front import FRONT_NOTE
from trl_pafo.report.tables import COUNTS, columns_of, counts_of, group_names

MIN_GAIN = 0.02
"""Smallest gain of accuracy that is worth a head of its own."""
# A gain that intervals this wide cannot exclude leaves the question open, however small its estimate.
_WIDE = 5


def verdict_sentence(result: dict[str, Any]) -> str:
    """Whether PAFO can help, in a few sentences: what [`~trl_pafo.evaluation.front.predict_front`] found for the probes."""
    if result["front"] is not None:
        return result["front"]["sentence"]
    if tastes := result["tastes"]:
        if len(tastes["users"]) == 1:
            return "Nothing to distill: no groups are given, and the pairs show none."
        return f"Open: no groups are given, but the pairs show {len(tastes['users'])}; `trl-pafo run --infer_groups` trains a teacher for each."
    return "Whether PAFO can help is not known: no probes were fitted (--probes false)."


def findings(result: dict[str, Any]) -> list[str]:
    """What else was found, a sentence each: bias, noise, tastes."""
    tastes = result["tastes"]
    return [
        *(_bias(accuracy, f"Bias of {name}") for name, accuracy in result["models"].items()),
        *([] if result["accuracy"] is None else [_bias(result["accuracy"])]),
        *_noise(result["noise"]),
        *([] if tastes is None else [*tastes_sentences(tastes), *given_sentences(tastes, result["groups_from"])]),
    ]


def _bias(accuracy: dict[str, Any], title: str = "Bias") -> str:
    trend = accuracy["support_spearman"]
    if not is_known(trend["value"]):
        return f"{title}: accuracy or support does not vary over users, so that there is no trend."
    if not is_known(trend["low"]):
        return f"{title}: too few users to tell whether user accuracy rises with support, Spearman {number_with_interval(trend, True)}."
    word = "rises" if trend["low"] > 0 else "falls" if trend["high"] < 0 else "shows no trend"
    sentence = f"{title}: user accuracy {word} with support, Spearman {number_with_interval(trend, True)}"
    if accuracy["support_is_agreement"]:
        sentence += "; but support is agreement on these pairs, where one stray label lowers both: compare each group with its noise ceiling"
    return sentence + "."


def given_sentences(tastes: dict[str, Any], groups_from: str) -> list[str]:
    """Which of the given groups, beside the largest, have a taste of their own, and whether those that were found are the same."""
    found = []
    given = list(tastes["given"].items())
    for name, group in given[1:]:
        gain, lag = group["gain"], given[0][1]["shared"] - group["shared"]
        if gain["low"] > 0:
            word = "a taste of its own"
        elif gain["high"] >= _WIDE * MIN_GAIN:
            word = "whether it has a taste of its own is open; audit more users"
        else:
            word = f"no taste of its own{': noise' if lag >= MIN_GAIN else ', and served as well as the largest group'}"
        found.append(
            f"{name}: {word}: a head of its own gains {number_with_interval(gain, True)} over everybody's on held-out pairs (from "
            f"{format_number(group['shared'])} to {format_number(group['own'])})."
        )
    if tastes["adjusted_rand"] is not None and len(tastes["users"]) > 1:
        agreed = f"agree by {format_number(tastes['adjusted_rand'])} (adjusted Rand index)"
        if groups_from == "agreement":
            found.append(
                f"The groups that were found and those of agreement {agreed}; `--infer_groups MODEL` takes those that were found."
            )
        else:
            found.append(f"The groups that were found and those that are given {agreed}.")
    return found


def _noise(noise: dict[str, Any]) -> list[str]:
    if "known" in noise:
        return [f"Noise: labels are made by rule, so the ceiling is known: {format_number(noise['known'])}."]
    if "leave_one_out" not in noise:
        return [f"Noise: {noise['reason']}"]
    low, high = noise["best_shared_bounds"]
    return [
        f"Noise: the majority of the others predicts {number_with_interval(noise['leave_one_out'])} of labels on common pairs "
        f"({noise['votes_a_pair']:.1f} votes a pair); a judge that does not see the user can reach between {format_number(low)} and "
        f"{format_number(high)}."
    ]


def markdown_report(result: dict[str, Any]) -> str:
    """Tables, findings and verdict in GitHub's Markdown, its columns aligned for a terminal."""
    counts = result["counts"]
    pairs = counts["pairs_a_user"]
    parts = [
        f"# Audit of {data_name(result['data'])}",
        f"{counts['users']:,} users, {counts['pairs']:,} pairs ({pairs['min']:g} to {pairs['max']:g} a user, median {pairs['median']:g}), "
        f"{counts['prompts']:,} prompts",
        _table(_group_rows(result)),
        " ".join(result["groups"]),
    ]
    for name, accuracy in result["models"].items():
        parts += [f"## Accuracy of {name}", _table(_accuracy_rows(accuracy))]
    if result["accuracy"] is not None:
        parts += ["## Accuracy of the shared probe, cross-validated", _table(_accuracy_rows(result["accuracy"]))]
    if (front := result["front"]) is not None:
        parts += [
            "## Predicted front",
            f"Probes on {front['num_pairs']:,} pairs, features of {front['embedding_model']}, {front['folds']} x {front['folds']} parts, "
            f"{front['repeats']} repeats. {FRONT_NOTE}",
            _table(_front_rows(front["points"])),
        ]
    parts += ["## Findings", "\n".join(f"- {sentence}" for sentence in result["findings"]), f"**{result['verdict']}**"]
    return "\n\n".join(parts) + "\n"


def _table(rows: list[list[str]]) -> str:
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))] for row in rows
    ]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _group_rows(result: dict[str, Any]) -> list[list[str]]:
    rows = [["group", "users", "share", "pairs", "support"]]
    for name, group in result["counts"]["groups"].items():
        rates = group["support_rates"]
        support = format_number(median(rates))
        if rates[0] < rates[-1]:
            support += f" ({format_number(rates[0])} to {format_number(rates[-1])})"
        share = f"{100 * group['share_of_users']:.1f} %"
        rows.append([name, f"{group['users']:,}", share, f"{group['pairs']:,}", support])
    return rows


def _accuracy_rows(accuracy: dict[str, Any]) -> list[list[str]]:
    rows = [["group", "users", "pairs", "accuracy", "common pairs", "accuracy there", "noise ceiling there"]]
    for name, group in accuracy["groups"].items():
        row = [name, f"{group['users']:,}", f"{group['pairs']:,}", number_with_interval(group["accuracy"])]
        there = (
            [format_number(group["accuracy_there"]), number_with_interval(group["ceiling"])]
            if group["common_pairs"]
            else ["-", "-"]
        )
        rows.append([*row, f"{group['common_pairs']:,}", *there])
    known = any(group["common_pairs"] for group in accuracy["groups"].values())
    return rows if known else [row[:4] for row in rows]


def _front_rows(points: dict[str, Any]) -> list[list[str]]:
    first = next(iter(points.values()))
    columns = columns_of(first, {name: name for name in group_names(first)})
    return [
        ["", *columns],
        [COUNTS, *(counts_of(first, key) for key in columns.values())],
        *([name, *(number_with_interval(point[key]) for key in columns.values())] for name, point in points.items()),
    ]
