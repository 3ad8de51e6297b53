"""Several runs on one page: a table, a picture over all, and the pair-by-pair verdict where their test pairs are the same."""

from typing import Any

from trl_pafo.metrics.verdict import is_known
from trl_pafo.plotting import PNG_DPI, WIDTH_INCHES
from trl_pafo.report import findings
from trl_pafo.report.plots import draw_majority_minority
from trl_pafo.report.records import Record
from trl_pafo.report.sections import Picture, Section, about, accuracy_pictures, answer, noted, number

_ROLES = ("majority", "minority")


def compare_sections(records: list[Record]) -> tuple[str, list[str], list[Section]]:
    """Title, introduction and sections of the comparison of several runs."""
    names = [f"{i}. {record.name}" for i, record in enumerate(records, start=1)]
    lead = ["Each run's own report has its users, cases, hidden states, margins and curves: trl-pafo report RUN."]
    sections = [_overview(records, names), _against_first(records, names)]
    for i, (name, record) in enumerate(zip(names, records, strict=True), start=1):
        section = answer(record, f"run{i}-")
        section.title = f"Run {name}"
        section.facts = [_settings(record)]
        groups = accuracy_pictures(record, f"run{i}-")
        section.pictures, section.missing = groups.pictures, section.missing + groups.missing
        sections.append(section)
    return f"Comparison of {len(records)} runs", lead, [*sections, about(records[0])]


def _settings(record: Record) -> str:
    """Where the run is, and the options in which runs usually differ, in a line."""
    inputs: dict[str, Any] = {}
    for stage in ("prepare", "model", "personalized_bt", "pafo"):
        inputs |= record.stages.get(stage, {}).get("inputs", {})
    names = [
        "source",
        "data_path",
        "test_data_path",
        "population_seed",
        "tokenizer",
        "num_hidden_layers",
        "seed",
        "num_train_epochs",
        "learning_rate",
    ]
    names += ["distillation_loss", "alpha", "counterfactual_weight"]
    known = [f"{name} {inputs[name]}" for name in names if inputs.get(name) is not None]
    known += [f"data {record.results['dataset']}"] if "dataset" in record.results else []
    return "; ".join([str(record.folder), *known])


def _overview(records: list[Record], names: list[str]) -> Section:
    section = Section("runs", "All runs")
    sides = [_side(records, role) for role in _ROLES]
    header = ["run", *(f"{whose}: {side}" for whose in ("reference", "model") for side in sides), "verdict"]
    rows: list[list[Any]] = []
    for name, record in zip(names, records, strict=True):
        cells: list[Any] = []
        for method in (record.reference, record.student):
            for role in _ROLES:
                summary = record.methods.get(method or "", {})
                cells.append(number(summary.get(f"accuracy/{record.results[role]}") if record.has_minority else None))
        verdict = record.results.get("verdicts", {}).get(record.student)
        word = "-" if verdict is None else verdict["verdict"]
        pair = f"{record.title(record.student or '')} against {record.title(record.reference or '')}"
        rows.append([name, *cells, f"{pair}: {word}" if verdict else "-"])
    note = (
        "Accuracies of the largest and of the smallest group in training, with 95 % intervals over users. Each verdict is against the "
        "run's own reference on the run's own test pairs; rows of different data cannot be set against each other."
    )
    section.tables.append({"header": header, "rows": rows, "note": noted(note, rows)})
    picture = _all_points(records)
    if picture is None:
        section.missing.append("Majority against minority: no run has two groups.")
    else:
        section.pictures.append(picture)
    return section


def _side(records: list[Record], role: str) -> str:
    """The name of the majority or the minority where it is the same in all runs, else what it is."""
    names = {record.results[role] for record in records if record.has_minority}
    return str(names.pop()) if len(names) == 1 else role


def _against_first(records: list[Record], names: list[str]) -> Section:
    """The models of the runs against that of the first, on the same test pairs."""
    section = Section("against", f"Against {names[0]}")
    first, elsewhere = records[0], []
    for name, record in zip(names[1:], records[1:], strict=True):
        verdict = findings.compare_runs(first, record)
        if verdict is None:
            elsewhere.append(name)
            continue
        section.points.append(
            f"{record.title(record.student or '')} of {name} against {first.title(first.student or '')} of {names[0]}: {verdict.sentence}"
        )
    if len(section.points) > 1:
        section.text.append("These sentences are not corrected for their number: of many, some may be said by chance.")
    if elsewhere:
        section.missing.append(
            f"Not compared pair by pair: {', '.join(elsewhere)}. Test pairs or rewards are not kept, or the test pairs are others than "
            f"those of {names[0]}, so that a difference would be one of the data too."
        )
    return section


def _all_points(records: list[Record]) -> Picture | None:
    """Reference and model of every run, joined by an arrow; the number at the arrow's end is the run's."""
    points: list[dict[str, Any]] = []
    arrows: list[tuple[str, str]] = []
    legend: dict[str, int] = {}
    for i, record in enumerate(records, start=1):
        if not record.has_minority:
            continue
        sides = {role: f"accuracy/{record.results[role]}" for role in _ROLES}
        methods = [m for m in (record.reference, record.student) if m is not None]
        for method in methods:
            summary = record.methods[method]
            legend.setdefault(record.title(method), record.series(method))
            point = {"name": f"{i} {method}", "label": str(i), "series": record.series(method)}
            points.append(point | {role: summary[key] for role, key in sides.items()})
        if len(methods) == 2:
            arrows.append((f"{i} {methods[0]}", f"{i} {methods[1]}"))
    if not points:
        return None
    look: dict[str, Any] = {"size": (WIDTH_INCHES, 4.2), "dpi": PNG_DPI, "arrows": arrows, "legend": legend}
    names = (_side(records, "majority"), _side(records, "minority"))
    figure = draw_majority_minority(points, reference=None, names=names, **look)
    caption = (
        "An arrow goes from a run's reference to its model; the number is the run's. Up: the minority gains; left: the majority pays. "
        "Lines: 95 % intervals over users. Dashed: both groups served alike. Each axis has its own scale."
    )
    if any(not is_known(point[role]["low"]) for point in points for role in _ROLES):
        caption += " No line: too few users for an interval."
    return Picture("runs_majority_minority", "Majority against minority, all runs", caption, figure)
