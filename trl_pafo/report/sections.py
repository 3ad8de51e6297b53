"""The sections that every report has: the verdict, the groups, how to make it again, and what it cannot say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trl_pafo.evaluation.history_effect import STUDENTS
from trl_pafo.evaluation.teacher_gain import worth_distilling
from trl_pafo.metrics.verdict import OVERALL, format_interval, format_number, is_known
from trl_pafo.plotting import PNG_DPI, WIDTH_INCHES
from trl_pafo.report import findings, pictures
from trl_pafo.report.plots import draw_majority_minority
from trl_pafo.report.records import Record
from trl_pafo.report.reproduce import as_yaml, given_teachers, run_config
from trl_pafo.report.tables import COUNTS, columns_of, counts_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEANINGS = {
    "improves": "More accurate for a group, and no loss measured for any other. A small loss may remain possible: see the lower ends.",
    "degrades": "Less accurate for a group, and no gain shown for any.",
    "mixed": "More accurate for one group, less accurate for another: one group pays for the other.",
    "same": "There is nothing to compare.",
    "cannot tell": "These test users show neither a Pareto improvement nor a loss. That is not the same as 'no difference'.",
}
_NO_GROUPS = "The data name no groups: this is about all pairs together, and says nothing of any group."
_UNKNOWN = "[unknown]: too few users for an interval, or none differ."
_PAGE_SIZE = (WIDTH_INCHES, 3.7)


@dataclass
class Picture:
    """A figure with its file name, its title, and what it shows."""

    name: str
    title: str
    caption: str
    figure: "Figure"


@dataclass
class Section:
    """What the template lays out, in this order; with `columns`, pictures of unlike heights fill two columns."""

    id: str
    title: str
    facts: list[str] = field(default_factory=list)
    verdict: dict[str, str] | None = None
    text: list[str] = field(default_factory=list)
    points: list[str] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    columns: bool = False
    cases: list[dict[str, Any]] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def number(value: Mapping[str, float] | float | None, signed: bool = False) -> dict[str, str]:
    """A cell: the value, and its interval where it has one."""
    if value is None:
        return {"text": "-", "interval": ""}
    if not isinstance(value, Mapping):
        return {"text": format_number(value, signed) if isinstance(value, float) else f"{value:,}", "interval": ""}
    if not is_known(value["value"]):
        return {"text": "-", "interval": ""}
    return {"text": format_number(value["value"], signed), "interval": format_interval(value, signed)}


def noted(note: str, rows: Sequence[Sequence[Any]]) -> str:
    """A note below a table, which says what an unknown interval is where there is one."""
    cells = [cell for row in rows for cell in row if isinstance(cell, Mapping)]
    return f"{note} {_UNKNOWN}".strip() if any(cell["interval"] == "[unknown]" for cell in cells) else note


def group_title(record: Record, group: str) -> str:
    """A group's name, and whether it is the majority or the minority where the name does not say so."""
    for role in ("majority", "minority"):
        if record.has_minority and record.results[role] == group and group != role:
            return f"{group} ({role})"
    return group


def verdict_of(record: Record, method: str | None) -> dict[str, str] | None:
    """The card of a method's verdict; `None` without one."""
    verdict = record.results.get("verdicts", {}).get(method)
    if verdict is None or record.reference is None:
        return None
    word = verdict["verdict"]
    against = f"{record.title(method or '')} against {record.title(record.reference)}"
    css = "cannot" if word == "cannot tell" else word
    meaning = MEANINGS.get(word, "") if record.groups or word == "same" else _NO_GROUPS
    return {"word": f"{against}: {word}", "sentence": verdict["sentence"], "meaning": meaning, "css": css}


def answer(record: Record, prefix: str = "") -> Section:
    """The verdict, what the other methods' say, and the table of results."""
    section = Section(f"{prefix}answer", "Results")
    section.verdict = verdict_of(record, record.student)
    if section.verdict is None:
        section.missing.append("No verdict: nothing was compared with a reference. Give a reference to get one.")
    for method, verdict in record.results.get("verdicts", {}).items():
        if method != record.student:
            section.points.append(f"{record.title(method)}: {verdict['sentence']}")
    gains = record.results.get("teachers") or []
    section.points += [f"{gain['sentence']}." for gain in gains]
    if gains and not worth_distilling(gain["better"] for gain in gains) and record.student in STUDENTS:
        shared = record.title("personalized_bt")
        unjudged = any(gain["better"] is None for gain in gains)
        why = "A teacher could not be judged" if unjudged else "No teacher is shown to be better"
        section.points.append(f"{why}, so nothing was distilled: {record.title(record.student)} is {shared}.")
    if (hint := findings.headroom(record)) is not None:
        section.points.append(hint)
    section.tables.append(results_table(record))
    return section


def results_table(record: Record) -> dict[str, Any]:
    """Every method's accuracies and inequality, with intervals."""
    summary = next(iter(record.methods.values()))
    columns = columns_of(summary, {g: group_title(record, g) for g in record.groups})
    rows: list[list[Any]] = [
        [record.title(method), *(number(s.get(key)) for key in columns.values())] for method, s in record.methods.items()
    ]
    who = (
        f"{summary['num_users']:,} users" if "num_users" in summary else "users who are not known, each taken as another person's"
    )
    note = (
        f"Accuracy on {summary['num_pairs']:,} test pairs of {who}. In brackets: "
        f"{100 * summary['confidence']:g} % bootstrap intervals over users, each by itself; the verdict uses stricter ones."
    )
    if "difference" in summary:
        note += " Gap: best minus worst group."
    if "user_gini" in summary:
        note += " Gini: inequality of user accuracies, 0 if all are equal."
    if not record.groups:
        note += f" {_NO_GROUPS}"
    note = noted(note, rows)
    ties = [f"{record.title(m)} {r.ties:,}" for m, r in record.rewards.items() if r.ties]
    if ties:
        note += f" Pairs with two equal rewards count half: {', '.join(ties)}."
    counts = [COUNTS, *({"text": counts_of(summary, key), "interval": ""} for key in columns.values())]
    return {"header": ["method", *columns], "rows": [counts, *rows], "note": note}


def accuracy_pictures(record: Record, prefix: str = "") -> Section:
    """Majority against minority, differences, groups."""
    section = Section(f"{prefix}groups", "Groups", columns=True)
    series = {record.title(m): record.series(m) for m in record.methods}
    if record.has_minority:
        section.pictures.append(majority_minority(record, prefix))
    else:
        why = "there is one group only, so there is nothing to set against it" if record.groups else "the data name no groups"
        section.missing.append(f"Majority against minority: {why}.")
    differences = {record.title(m): v["differences"] for m, v in record.results.get("verdicts", {}).items()}
    if differences and record.reference is not None:
        ordered = {m: {g: d[g] for g in (*record.groups, OVERALL) if g in d} for m, d in differences.items()}
        whose = "each group's accuracy, with simultaneous 95 % intervals"
        whose = whose if record.groups else "the accuracy on all pairs, with its 95 % interval"
        section.pictures.append(
            Picture(
                f"{prefix}differences",
                "What the verdicts rest on",
                f"Difference of {whose}, over users. Right of the line: better than the reference; an interval that crosses it shows "
                "nothing.",
                pictures.draw_differences(ordered, series, record.title(record.reference)),
            )
        )
    if not record.groups:
        return section
    summary = next(iter(record.methods.values()))
    untested = record.results.get("not_evaluated", [])
    if untested:
        section.missing.append(f"Accuracy of {', '.join(untested)}: there are no test pairs of theirs.")
    tested = [g for g in record.groups if g not in untested]
    accuracies = {
        g: {record.title(m): s[f"accuracy/{g}"] for m, s in record.methods.items() if f"accuracy/{g}" in s} for g in tested
    }
    counts = {g: f"{COUNTS}: {counts_of(summary, f'accuracy/{g}')}" for g in tested}
    unknown = any(not is_known(entry["low"]) for of_method in accuracies.values() for entry in of_method.values())
    caption = "Bars: share of test pairs whose chosen answer gets the higher reward. Lines: 95 % intervals over users."
    caption += " No line: too few users for an interval." if unknown else ""
    figure = pictures.draw_group_accuracy(accuracies, series, counts)
    section.pictures.append(Picture(f"{prefix}group_accuracy", "Accuracy of each group", caption, figure))
    return section


def majority_minority(record: Record, prefix: str) -> Picture:
    """The picture of the two ends, whatever lies between."""
    sides = {role: f"accuracy/{record.results[role]}" for role in ("majority", "minority")}
    points: list[dict[str, Any]] = [
        {"name": record.title(m), "series": record.series(m), **{role: s[key] for role, key in sides.items()}}
        for m, s in record.methods.items()
    ]
    reference = None if record.reference is None else record.title(record.reference)
    caption = "Lines: 95 % intervals over users. Dashed: both groups served alike. Each axis has its own scale."
    if any(not is_known(point[role]["low"]) for point in points for role in sides):
        caption += " No line: too few users for an interval."
    if reference is not None:
        caption += f" Shaded: neither group below {reference}, as a point; whether it is shown, the verdict says."
    if len(record.groups) > 2:
        caption += f" Of {len(record.groups)} groups these are the largest and the smallest in training."
    names = (group_title(record, record.results["majority"]), group_title(record, record.results["minority"]))
    figure = draw_majority_minority(points, reference=reference, size=_PAGE_SIZE, dpi=PNG_DPI, names=names)
    return Picture(f"{prefix}majority_minority", "Majority against minority", caption, figure)


def reproduction(record: Record) -> Section:
    """The command, the configuration, the data, how long it took."""
    section = Section("reproduce", "Make it again")
    config = run_config(record)
    if not config:
        section.missing.append(f"The command: {record.missing.get('manifest', 'the manifest knows no data')}.")
        return section
    section.text += [
        "The command, with run.yaml below it, which holds every option that the manifest keeps. What decides no result (logging, device, "
        "batch size of the evaluation) is not in it: add --use_cpu true without an accelerator. Another machine rounds otherwise, so its "
        "numbers agree closely, not to the last digit."
    ]
    section.code += ["trl-pafo run --config run.yaml --output_dir NEW_FOLDER", as_yaml(config)]
    if given_teachers(record):
        section.missing.append("The teachers were given, not trained here; their paths are not kept. Add --teachers.")
    seconds = {name: done.get("seconds") for name, done in record.stages.items()}
    rows = [[name, {"text": f"{value:,.0f}", "interval": ""}] for name, value in seconds.items() if value is not None]
    section.tables.append({"header": ["stage", "seconds"], "rows": rows, "note": ""})
    return section


def about(record: Record) -> Section:
    """What the numbers can and cannot say, and whose they are."""
    section = Section("about", "What this can and cannot say")
    section.points += [
        "The intervals are over test users. They speak of the models of this run alone: another seed of the training may give others.",
        "Accuracy is agreement with the labels of the test pairs, noise in them included.",
        "The paper's (PAFO, arXiv 2606.07988): the aim of Pareto fairness, a teacher for each preference group, and the distillation of "
        "their margins into one model that needs no group label, with a coefficient alpha (its Eq. 8).",
        "Not from the paper: the form of the losses, the pairs shown under borrowed histories, the trial of the teachers on held-out pairs, the verdicts, "
        "the intervals, and every number here. No number on this page is the paper's.",
    ]
    return section
