"""Several runs on one page: tables, a picture over all, and the pair-by-pair verdict where their test pairs are the same."""

from typing import Any

import yaml

from trl_pafo.metrics import Verdict, compare
from trl_pafo.report.pictures import draw_majority_minority
from trl_pafo.report.plain_words import plain_sentences
from trl_pafo.report.record import Record, series_of
from trl_pafo.report.sections import Picture, Section, about, answer, groups, lines_of, number
from trl_pafo.report.tables import over

_ROLES = ("majority", "minority")
_SAME = ("user", "group", "prompt", "chosen", "rejected")


def compare_sections(records: list[Record]) -> tuple[str, list[str], list[Section]]:
    """Title, introduction and sections of the comparison of several runs."""
    names = [f"{i}. {record.name}" for i, record in enumerate(records, start=1)]
    lead = ["Each run's own report has its users and flipped pairs: trl-pafo report RUN."]
    sections = [_overview(records, names), _against_first(records, names)]
    for i, (name, record) in enumerate(zip(names, records, strict=True), start=1):
        section, of_groups = answer(record, f"run{i}-"), groups(record, f"run{i}-")
        section.title, section.text = f"Run {name}", plain_sentences(record.results)
        section.pictures = of_groups.pictures
        section.missing += of_groups.missing
        sections.append(section)
    return f"Comparison of {len(records)} runs", lead, [*sections, about(records[0])]


def _overview(records: list[Record], names: list[str]) -> Section:
    section = Section("runs", "All runs")
    sides = [_side(records, role) for role in _ROLES]
    rows: list[list[Any]] = []
    points: list[dict[str, Any]] = []
    arrows = []
    for i, (name, record) in enumerate(zip(names, records, strict=True), start=1):
        methods = record.compared
        verdict = record.results["verdicts"].get(record.student)
        cells = []
        for method in (record.reference, record.student):
            summary = record.methods.get(method or "", {}) if record.has_minority else {}
            cells += [number(summary.get(f"accuracy/{record.results.get(role)}")) for role in _ROLES]
        against = " against ".join(record.title(method) for method in reversed(methods))
        rows.append([name, *cells, f"{against}: {verdict['verdict']}" if verdict else "-"])
        for method in methods if record.has_minority else ():
            accuracies = {role: record.methods[method][f"accuracy/{record.results[role]}"] for role in _ROLES}
            points.append({"name": record.title(method), "label": str(i), "series": series_of(method), **accuracies})
        if record.has_minority and len(methods) == 2:
            arrows.append((len(points) - 2, len(points) - 1))
    summaries = [next(iter(record.methods.values())) for record in records]
    note = (
        f"Accuracies of the largest and of the smallest group in training, with 95 % intervals over {over(*summaries)}. Each verdict is against the "
        "run's own reference on the run's own test pairs; rows of different data cannot be set against each other."
    )
    header = ["run", *(f"{whose}: {side}" for whose in ("reference", "model") for side in sides), "verdict"]
    section.add_table(header, rows, note)
    _add_options(section, records, names)
    if points:
        caption = (
            "An arrow goes from a run's reference to its model; the number is the run's. Up: the minority gains; left: the majority pays. "
            f"{lines_of(*summaries)}"
        )
        figure = draw_majority_minority(points, names=(sides[0], sides[1]), arrows=arrows)
        section.pictures.append(Picture("runs_majority_minority", "Majority against minority, all runs", caption, figure))
    else:
        section.missing.append("Majority against minority: no run has two groups.")
    return section


def _side(records: list[Record], role: str) -> str:
    """The name of the majority or the minority where it is the same in all runs, else what it is."""
    names = {record.results[role] for record in records if record.has_minority}
    return str(names.pop()) if len(names) == 1 else role


def _add_options(section: Section, records: list[Record], names: list[str]) -> None:
    """The options in which the runs differ, as their run.yaml have them."""
    configs = [yaml.safe_load(record.config) for record in records]
    every = sorted({option for config in configs for option in config})
    rows = [[option, *(str(config.get(option, "-")) for config in configs)] for option in every]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    if rows:
        section.add_table(["option", *names], rows, "Options in which the runs differ; -: the default.")


def _against_first(records: list[Record], names: list[str]) -> Section:
    """The models of the runs against that of the first, on the same test pairs."""
    section = Section("against", f"Against {names[0]}")
    first, elsewhere = records[0], []
    for name, record in zip(names[1:], records[1:], strict=True):
        verdict = compare_runs(first, record)
        if verdict is None:
            elsewhere.append(name)
            continue
        pair = f"{record.title(record.student)} of {name} against {first.title(first.student)} of {names[0]}"
        section.points.append(f"{pair}: {verdict.sentence}")
    if len(section.points) > 1:
        section.text.append("These sentences are not corrected for their number: of many, some may be said by chance.")
    if elsewhere:
        section.missing.append(
            f"Not compared pair by pair: {', '.join(elsewhere)}. The test pairs are others than those of {names[0]}, so that a difference would "
            "be one of the data too."
        )
    return section


def compare_runs(first: Record, other: Record) -> Verdict | None:
    """The student of one run against that of another, pair by pair; `None` where the pairs are others, or one has no student."""
    rewards, base = other.rewards.get(other.student or ""), first.rewards.get(first.student or "")
    pairs = [[[row[key] for key in _SAME] for row in record.pairs] for record in (first, other)]
    if rewards is None or base is None or pairs[0] != pairs[1]:
        return None
    unit = [row["unit"] for row in first.pairs] if "num_units" in next(iter(first.methods.values())) else None
    who = (base.user, base.group)
    return compare(rewards.correct, base.correct, *who, margins=rewards.margins, reference_margins=base.margins, unit=unit)
