"""The results of a run beside its numbers: table, verdicts, and the picture of majority against minority."""

from pathlib import Path
from typing import Any

from trl_pafo.data.sources.arguments import data_name
from trl_pafo.evaluation.methods import TITLES
from trl_pafo.report.tables import markdown_table
from trl_pafo.storage.files import write_text


def write_results(out: Path, results: dict[str, Any]) -> None:
    """The table as Markdown and, where both were tested, the picture of majority against minority accuracy."""
    from trl_pafo.plotting import write_png
    from trl_pafo.report.pictures import draw_majority_minority

    majority, minority = results["majority"], results["minority"]
    named = {TITLES.get(method, method): summary for method, summary in results["methods"].items()}
    parts = [f"Data: {data_name(results['data'])}", markdown_table(named), verdict_lines(results)]
    write_text(out / "results.md", "\n\n".join(parts) + "\n")
    sides = {f"accuracy/{majority}", f"accuracy/{minority}"}
    if len(sides) < 2 or not all(sides <= set(summary) for summary in named.values()):
        return  # nothing to set against each other: one group, or one without test pairs
    points = [
        {"name": name, "series": i, "majority": summary[f"accuracy/{majority}"], "minority": summary[f"accuracy/{minority}"]}
        for i, (name, summary) in enumerate(named.items())
    ]
    reference = TITLES.get(results["reference"], results["reference"])
    write_png(draw_majority_minority(points, reference=reference, names=(majority, minority)), out / "majority_minority.png")


def verdict_lines(results: dict[str, Any]) -> str:
    """One line a method: the Pareto verdict against the reference. And one a teacher: whether it is better than the shared model."""
    reference = TITLES.get(results["reference"], results["reference"])
    lines = [f"{TITLES.get(m, m)} against {reference}: {verdict['sentence']}" for m, verdict in results["verdicts"].items()]
    lines += [f"{teacher['sentence']}." for teacher in results.get("teachers", [])]
    if untested := results.get("not_evaluated"):
        lines.append(f"Not evaluated, without test pairs: {', '.join(untested)}.")
    return "\n".join(lines)
