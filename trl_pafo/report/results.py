"""The results of a run beside its numbers: table, verdicts, and the picture of majority against minority."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_pafo.data.sources.arguments import data_name
from trl_pafo.evaluation.methods import TITLES
from trl_pafo.report.plain_words import plain_sentences
from trl_pafo.report.record import series_of
from trl_pafo.report.tables import markdown_path, markdown_table, splits_of
from trl_pafo.storage.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAJORITY_MINORITY = "majority_minority.png"
"""The picture of the results of a run."""


def write_results(out: Path, results: dict[str, Any]) -> None:
    """The plain sentences and the table as Markdown and, where both were tested, the picture of majority against minority accuracy."""
    from trl_pafo.metrics.plotting import write_png

    majority, minority = results["majority"], results["minority"]
    named = {TITLES.get(method, method): summary for method, summary in results["methods"].items()}
    path = results.get("path", {})
    parts = [
        "\n".join(plain_sentences(results)),
        f"Data: {data_name(results['data'])}",
        markdown_table(named),
        *([markdown_path(path)] if splits_of(path) else []),
        verdict_lines(results),
    ]
    write_text(out / "results.md", "\n\n".join(parts) + "\n")
    sides = {f"accuracy/{majority}", f"accuracy/{minority}"}
    if len(sides) < 2 or not all(sides <= set(summary) for summary in named.values()):
        return  # nothing to set against each other: one group, or one without test pairs
    write_png(draw_results(results, (majority, minority)), out / MAJORITY_MINORITY)


def draw_results(results: dict[str, Any], names: tuple[str, str]) -> "Figure":
    """Every method's accuracy on the largest group against that on the smallest, whose names are given, and the path of the reference."""
    from trl_pafo.report.pictures import draw_majority_minority

    sides = {role: f"accuracy/{results[role]}" for role in ("majority", "minority")}
    points = [
        {"name": TITLES.get(method, method), "series": series_of(method), **{role: summary[key] for role, key in sides.items()}}
        for method, summary in results["methods"].items()
    ]
    reference = TITLES.get(results["reference"], results["reference"])
    return draw_majority_minority(points, reference=reference, names=names, path=path_of(results))


def path_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The points of the path of personalized Bradley-Terry as [`~trl_pafo.report.pictures.draw_majority_minority`] takes them."""
    sides = {role: f"accuracy/{results[role]}" for role in ("majority", "minority")}
    points = results.get("path", {}).get("points", [])
    return [
        {"label": f"x{point['multiple']:g}", **{role: point["test"][key]["value"] for role, key in sides.items()}}
        for point in points
    ]


def verdict_lines(results: dict[str, Any]) -> str:
    """What the reference is, which features models of users read, one line a method with the Pareto verdict against the reference, and
    what could be had from the teachers."""
    reference = TITLES.get(results["reference"], results["reference"])
    lines = [results["path"]["sentence"]] if results.get("path") else []
    lines += [found["sentence"] for found in results.get("features", {}).values()]
    lines += [f"{TITLES.get(m, m)} against {reference}: {verdict['sentence']}" for m, verdict in results["verdicts"].items()]
    lines += [front["sentence"]] if (front := results.get("front")) else []
    if untested := results.get("not_evaluated"):
        lines.append(f"Not evaluated, without test pairs: {', '.join(untested)}.")
    return "\n".join(lines)
