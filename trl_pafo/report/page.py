"""`report.html`: one file without scripts or network, its pictures in it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from trl_pafo.data.sources.arguments import data_name
from trl_pafo.errors import ConfigError, RunFolderError
from trl_pafo.metrics.plotting import as_svg
from trl_pafo.report.curves import curves
from trl_pafo.report.details import cases, users
from trl_pafo.report.likes import likes
from trl_pafo.report.people import people
from trl_pafo.report.plain_words import plain_sentences
from trl_pafo.report.record import Record, read_record
from trl_pafo.report.sections import Picture, Section, about, answer, front, groups, reproduction
from trl_pafo.storage.files import write_text
from trl_pafo.storage.versions import __version__

SECTIONS: tuple[Callable[[Record], Section], ...] = (
    answer,
    people,
    groups,
    likes,
    front,
    users,
    cases,
    curves,
    reproduction,
    about,
)
"""The sections of a report, in order."""

_HERE = Path(__file__).parent
_MARK = '<meta name="generator" content="trl-pafo '


def write_report(folder: str | Path, output: str | Path | None = None) -> Path:
    """Write the report of a run as one HTML file, by default `report.html` in its folder. An older report of trl-pafo at the same
    place is replaced.

    Raises:
        ConfigError: If `output` is no HTML file.
        RunFolderError: If the folder is not that of a finished run, or `output` is a file of another kind.
    """
    path = Path(folder) / "report.html" if output is None else Path(output)
    refuse_foreign(path)
    record = read_record(folder)
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True)
    environment.filters["unbroken"] = lambda text: text.replace(" %", "\u00a0%")
    html = environment.get_template("page.html.jinja").render(
        title=f"Report of {record.name}",
        words=plain_sentences(record.results),
        lead=_lead(record),
        version=__version__,
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        sections=[{**vars(made), "pictures": list(map(_shown, made.pictures))} for made in (make(record) for make in SECTIONS)],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html + "\n")
    return path


def _shown(picture: Picture) -> dict[str, Any]:
    name = re.sub(r"[^A-Za-z0-9_-]", "_", picture.name)
    svg = Markup(as_svg(picture.figure, name, f"{picture.title}. {picture.caption}"))
    return {**vars(picture), "name": name, "svg": svg}


def _lead(record: Record) -> list[str]:
    """In a sentence or two, what was run."""
    summary, data, train = next(iter(record.methods.values())), record.results["data"], record.data["train"]
    prepared, evaluated = (record.stages[name] for name in ("prepare", "evaluate"))
    trained, tested = (
        ", ".join(
            f"{record.data[split]['users'][group]:,} {group}" for group in record.groups if group in record.data[split]["users"]
        )
        for split in ("train", "test")
    )
    pairs, num_users = sum(train["pairs"].values()), sum(train["users"].values())
    return [
        f"Data: {data_name(data)}; population seed {data['population_seed']}; model: {prepared['inputs'].get('tokenizer')}; training seed "
        f"{evaluated['inputs']['seed']}; {evaluated['finished'][:10]}.",
        f"Trained on {pairs:,} pairs of {num_users:,} users ({trained}). Tested on {summary['num_pairs']:,} pairs of {summary['num_users']:,} "
        f"users ({tested}), {_TESTED[record.data.get('hold_out', 'users_and_prompts')]}.",
        record.group_definition(),
    ]


_TESTED = {
    "users_and_prompts": "none of them among these",
    "users": "none of them among these, on prompts that were judged in training too",
    "pairs": "who are among these, on prompts that they did not judge in training",
}


def refuse_foreign(path: Path) -> None:
    """Raise if a report cannot be written to `path`, since something else is there."""
    if path.suffix != ".html":
        raise ConfigError(f"A report is a .html file; --output is {path}.")
    if path.is_dir() or (path.exists() and _MARK not in path.read_text(encoding="utf-8", errors="replace")[:4000]):
        raise RunFolderError(f"{path} is there and is no report of trl-pafo. Choose another --output; nothing was overwritten.")
