"""The sections that every report has: the verdict, the groups, how to reproduce it, and what it cannot say."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trl_pafo.evaluation.methods import STUDENTS
from trl_pafo.metrics.verdict import format_interval, format_number, is_known
from trl_pafo.report import pictures
from trl_pafo.report.front import FRONT_NOTE, draw_front
from trl_pafo.report.record import Record, series_of
from trl_pafo.report.results import draw_results, path_of
from trl_pafo.report.tables import COUNTS, SPLITS, columns_of, counts_of, over, path_columns, path_entry, path_title, splits_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEANINGS = {
    "improves": "More accurate for a group, and no loss measured for any other. A small loss may remain possible: see the lower ends.",
    "degrades": "Less accurate for a group, and no gain shown for any.",
    "mixed": "More accurate for one group, less accurate for another: one group pays for the other.",
    "same": "There is nothing to compare.",
    "cannot tell": "These test users show neither a Pareto improvement nor a loss. That is not the same as 'no difference'.",
}
_UNKNOWN = "[unknown]: too few users for an interval, or none differ."


def lines_of(summary: Mapping[str, Any]) -> str:
    """What the lines of a picture of such summaries are."""
    return f"Lines: 95 % intervals over {over(summary)}, none where there are too few; each axis has its own scale."


@dataclass
class Picture:
    """A figure with its file name, its title, and what it shows."""

    name: str
    title: str
    caption: str
    figure: "Figure"


@dataclass
class Section:
    """What the template lays out, in this order."""

    id: str
    title: str
    verdict: dict[str, str] | None = None
    text: list[str] = field(default_factory=list)
    points: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    cases: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def add_table(self, header: list[str], rows: list[list[Any]], note: str = "") -> None:
        """Append a table; its note says what an unknown interval is where there is one."""
        cells = [cell for row in rows for cell in row if isinstance(cell, Mapping)]
        if any(cell["interval"] == "[unknown]" for cell in cells):
            note = f"{note} {_UNKNOWN}".strip()
        self.tables.append({"header": header, "rows": rows, "note": note})


def number(value: Mapping[str, float] | float | None, signed: bool = False) -> dict[str, str]:
    """A cell: the value, and its interval where it has one."""
    if isinstance(value, Mapping):
        known = is_known(value["value"]) and "low" in value
        return {"text": format_number(value["value"], signed), "interval": format_interval(value, signed) if known else ""}
    return {"text": f"{value:,}" if isinstance(value, int) else format_number(value, signed), "interval": ""}


def answer(record: Record) -> Section:
    """The verdict, those of the other methods, and the table of results."""
    section = Section("answer", "Results")
    verdicts = record.results.get("verdicts", {})
    if record.student in verdicts:
        verdict = verdicts[record.student]
        word = verdict["verdict"]
        section.verdict = {
            "word": f"{record.title(record.student)} against {record.title(record.reference)}: {word}",
            "sentence": verdict["sentence"],
            "meaning": MEANINGS[word],
            "css": word.split()[0],
        }
    else:
        section.missing.append("No verdict: there is no method beside the reference.")
    section.points += [path["sentence"]] if (path := record.results.get("path")) else []
    section.points += [found["sentence"] for found in record.results.get("features", {}).values()]
    section.points += [f"{record.title(m)}: {v['sentence']}" for m, v in verdicts.items() if m != record.student]
    if front := record.results.get("front"):
        section.points.append(front["sentence"])
        if record.student in STUDENTS and not front.get("students"):
            section.points.append(f"Nothing was distilled: {record.title(record.student)} is {record.title('personalized_bt')}.")
    _add_results(section, record)
    _add_path(section, record)
    return section


def _add_results(section: Section, record: Record) -> None:
    """Every method's accuracies and inequality, with intervals."""
    summary = next(iter(record.methods.values()))
    columns = columns_of(summary, {group: record.group_title(group) for group in record.groups})
    counts = [COUNTS, *({"text": counts_of(summary, key), "interval": ""} for key in columns.values())]
    rows = [[record.title(method), *(number(s.get(key)) for key in columns.values())] for method, s in record.methods.items()]
    note = (
        f"Accuracy on {summary['num_pairs']:,} test pairs of {summary['num_users']:,} users. In brackets: {100 * summary['confidence']:g} % "
        f"bootstrap intervals over {over(summary)}, each by itself; the verdict uses stricter ones."
    )
    if "difference" in summary:
        note += " Gap: best minus worst group."
    note += " Gini: inequality of user accuracies, 0 if all are equal."
    ties = {record.title(method): int((rewards.margins == 0).sum()) for method, rewards in record.rewards.items()}
    if any(ties.values()):
        note += f" Pairs with two equal rewards count half: {', '.join(f'{title} {n:,}' for title, n in ties.items() if n)}."
    section.add_table(["method", *columns], [counts, *rows], note)


def _add_path(section: Section, record: Record) -> None:
    """What the reference was chosen from."""
    path = record.results.get("path", {})
    for split in splits_of(path):
        first = path["points"][0][split]
        columns = path_columns(first, {group: record.group_title(group) for group in record.groups})
        counts = [COUNTS, *({"text": counts_of(first, key), "interval": ""} for key in columns.values())]
        rows = [[path_title(p, path), *(number(path_entry(p[split], key)) for key in columns.values())] for p in path["points"]]
        note = "*: the reference. Balanced: the mean over groups, each counted once."
        if split == "validation":
            note = f"By these the reference is chosen: pairs that no training saw. {note}"
        section.add_table([SPLITS[split], *columns], [counts, *rows], note)


def groups(record: Record) -> Section:
    """Majority against minority, and the differences."""
    section = Section("groups", "Groups")
    reference = record.title(record.reference)
    if record.has_minority:
        section.pictures.append(_majority_minority(record, reference))
    else:
        section.missing.append("Majority against minority: there is one group only, so there is nothing to set against it.")
    verdicts = record.results.get("verdicts", {})
    if verdicts:
        tested = [group for group in record.groups if all(group in v["differences"] for v in verdicts.values())]
        differences = {group: {record.title(m): v["differences"][group] for m, v in verdicts.items()} for group in tested}
        what = over(next(iter(record.methods.values())))
        caption = (
            f"Simultaneous 95 % intervals over {what}. Right of the line: better; an interval that crosses it shows nothing."
        )
        compared = {record.title(method): series_of(method) for method in verdicts}
        figure = pictures.draw_differences(differences, compared, reference)
        section.pictures.append(Picture("differences", "What the verdicts rest on", caption, figure))
    if untested := record.results.get("not_evaluated", []):
        section.missing.append(f"Accuracy of {', '.join(untested)}: there are no test pairs of theirs.")
    return section


def front(record: Record) -> Section:
    """What could be had from the teachers, judged before a student was trained, and what the student reached on the same pairs."""
    section, found = Section("front", "The predicted front"), record.results.get("front")
    if not found or not found["points"]:
        section.missing.append("The predicted front: no held-out pairs were judged under teachers and personalized BT.")
        return section
    first = next(iter(found["points"].values()))
    columns = columns_of(first, {group: record.group_title(group) for group in record.groups})
    counts = [COUNTS, *({"text": counts_of(first, key), "interval": ""} for key in columns.values())]
    rows = [[name, *(number(point[key]) for key in columns.values())] for name, point in found["points"].items()]
    section.add_table(["on held-out pairs", *columns], [counts, *rows], FRONT_NOTE)
    if figure := draw_front(found):
        caption = f"{lines_of(first)} Arrows: the mixture of teachers from tau 0 to 1. {found['sentence']}"
        section.pictures.append(Picture("predicted_front", "The predicted front", caption, figure))
    return section


def _majority_minority(record: Record, reference: str) -> Picture:
    """The picture of the two ends, whatever lies between."""
    lines = lines_of(next(iter(record.methods.values())))
    caption = f"{lines} Shaded: neither group below {reference} as a point; the verdict says what is shown."
    if len(record.groups) > 2:
        caption += f" Of {len(record.groups)} groups these are the largest and the smallest in training."
    names = (record.group_title(record.results["majority"]), record.group_title(record.results["minority"]))
    if path_of(record.results):
        caption += f" The line is the path of {record.title('personalized_bt')}, by multiples of the student's steps."
    figure = draw_results(record.results, names)
    return Picture("majority_minority", "Majority against minority", caption, figure)


def reproduction(record: Record) -> Section:
    """The command, its options, and how long each stage took."""
    section = Section("reproduce", "How to reproduce it")
    section.text.append(
        "The command, and below it run.yaml, which the folder of the run holds. What decides no result (logging, device, batch size of "
        "the evaluation) is not in it. Another machine rounds otherwise, so its numbers agree closely, not to the last digit."
    )
    section.code += ["trl-pafo run --config run.yaml --output_dir NEW_FOLDER", record.config]
    seconds = [[name, number(round(done["seconds"]))] for name, done in record.stages.items() if done.get("seconds") is not None]
    if seconds:
        section.add_table(["stage", "seconds"], seconds)
    return section


def about(record: Record) -> Section:
    """What the numbers can and cannot say, and whose they are."""
    section = Section("about", "What this can and cannot say")
    section.points += [
        f"The intervals are over {over(next(iter(record.methods.values())))}. They speak of the models of this run alone: another seed of the training may give others.",
        "Accuracy is agreement with the labels of the test pairs, noise in them included.",
        "From the paper (PAFO, arXiv 2606.07988): the aim of Pareto fairness, a teacher for each preference group, and the distillation of "
        "their margins into one model that needs no group label, with a coefficient alpha (its Eq. 8).",
        "Not from the paper: the form of the losses, counterfactual histories, the test of the teachers on held-out pairs, "
        "the verdicts, the intervals, and every number on this page.",
    ]
    return section
