"""What a finished run says as rows of a table: a row a method and group. They are all that tables and pictures of a study are made of."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset

from trl_pafo.baselines.table import USER_MODELS
from trl_pafo.errors import DataError
from trl_pafo.evaluation.evaluate import verdict_of
from trl_pafo.evaluation.methods import OF_TEACHERS, STUDENTS
from trl_pafo.evaluation.reference_path import CHOSEN, stage_of
from trl_pafo.evaluation.rewards import ScoredPairs
from trl_pafo.report.record import Rewards, read_record
from trl_pafo.storage.files import write_text
from trl_pafo.storage.run_folder import MANIFEST

ROWS = "cell.csv"
"""File of a cell's rows."""
_KEY = {"data": str, "setting": str, "population_seed": int, "seed": int}
KEY = tuple(_KEY)
"""The columns that name a cell."""
_TEXTS = ("method", "role", "group", "verdict", "tuned", "options", "error")
COLUMNS = (
    *(*KEY, "method", "role", "group", "accuracy", "low", "high", "users", "pairs"),
    *("difference", "difference_low", "difference_high", "verdict", "steps", "steps_in_all", "seconds", "trials", "tuned"),
    *("options", "error"),
)
ROLES = ("majority", "minority", "worst", "overall")
"""What `role` says, beside `other`, of further groups: the largest and the smallest group in training, the group that the method serves
worst, and all pairs together."""

Row = dict[str, Any]


def rows_of_run(folder: Path, reference: Path | None = None, seed: int = 0) -> list[Row]:
    """The rows of the methods of a finished run, and of the points of the reference's path (`personalized_bt@2`).

    The reference is that of the run, or of another run on the same test pairs, whose folder is given; `seed` is that of its verdicts.
    `accuracy` has its 95 % bootstrap interval over users, `difference` is that to the reference on the same pairs, with the simultaneous
    interval of the verdict where it is that of a group, `steps` are those of the method's own model, `steps_in_all` and `seconds` those of
    all trainings that it needs. A run that is not finished is a [`DataError`].
    """
    try:
        results = json.loads((folder / "results/results.json").read_text(encoding="utf-8"))
        stages = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["stages"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder} is no finished run of trl-pafo ({error}). Finish it with its own command.") from error
    steps = {name: _steps(folder / stage["output"], stage["inputs"]) for name, stage in stages.items()}
    rows: list[Row] = []
    of_reference, verdicts = results["methods"][results["reference"]], results["verdicts"]
    if reference is not None:
        of_reference, verdicts = _against(folder, reference, list(results["methods"]), seed)
    path = results.get("path") or {}
    steps |= {stage_of(point["multiple"]): point["steps"] for point in path.get("points", ())}
    for method, summary in results["methods"].items():
        needed = [name for name in stages if _needs(method, name)]
        in_all = sum(steps[name] * stages[name]["inputs"].get("fits", 1) for name in needed if not math.isnan(steps[name]))
        cost = {
            "steps": in_all if method in OF_TEACHERS else steps.get(method, math.nan),
            "steps_in_all": in_all,
            "seconds": sum(stages[name]["seconds"] for name in needed),
        }
        if method in results.get("features", {}):
            cost["tuned"] = f"features={results['features'][method]['chosen']}"
        verdict = verdicts.get(method, {})
        rows += [cost | {"method": method} | row for row in _of_groups(summary, of_reference, verdict, results)]
    for point in path.get("points", ()):
        name = stage_of(point["multiple"])
        cost = {"method": name, "steps": point["steps"], "steps_in_all": point["steps"]}
        cost["seconds"] = stages.get(name, {}).get("seconds", math.nan)
        rows += [cost | row for row in _of_groups(point["test"], of_reference, {}, results)]
    return rows


def _against(folder: Path, reference: Path, methods: Sequence[str], seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The summary of the reference of another run, and the verdicts on the methods of a run against it, pair by pair."""
    ours, theirs = read_record(folder), read_record(reference)
    same = ("user", "group", "prompt", "chosen", "rejected")
    if [[row[name] for name in same] for row in ours.pairs] != [[row[name] for name in same] for row in theirs.pairs]:
        raise DataError(f"{folder} and {reference} have other test pairs, so their methods cannot be compared.")
    rewards, rows = theirs.rewards[theirs.reference], Dataset.from_list(ours.pairs)
    verdicts = {
        method: verdict_of(_as_scored(ours.rewards[method]), _as_scored(rewards), rows, (), seed=seed) for method in methods
    }
    return theirs.methods[theirs.reference], verdicts


def _as_scored(rewards: Rewards) -> ScoredPairs:
    """Rewards of which only differences are known."""
    return ScoredPairs(rewards.margins, np.zeros_like(rewards.margins))


def _steps(output: Path, inputs: Mapping[str, Any]) -> float:
    """Optimizer steps of what a stage has trained, as its Trainer or its inputs say; NaN of anything else."""
    state = output / "trainer_state.json"
    if isinstance(steps := inputs.get("steps"), int):
        return float(steps)
    return float(json.loads(state.read_text(encoding="utf-8"))["global_step"]) if state.is_file() else math.nan


def _needs(method: str, stage: str) -> bool:
    """Whether a method needs the training of a stage: of the path all points, since the best is chosen among them."""
    if method in CHOSEN:
        return stage.startswith("personalized_bt@")
    of_teachers = method in (*STUDENTS, *OF_TEACHERS) and stage.startswith("teacher")
    of_ensemble = method == "distilled_ensemble" and stage.startswith("ensemble_seed")
    of_features = method in USER_MODELS and stage == "bradley_terry"
    return stage == method or of_teachers or of_ensemble or of_features


def _of_groups(
    summary: Mapping[str, Any], reference: Mapping[str, Any], verdict: Mapping[str, Any], results: Mapping[str, Any]
) -> Iterator[Row]:
    said, differences = verdict.get("verdict", ""), verdict.get("differences", {})
    named = {results["majority"]: "majority", results["minority"]: "minority"}
    roles = named if len(named) == 2 else {}
    groups = {key.removeprefix("accuracy/"): key for key in summary if key.startswith("accuracy/")}
    places = [(roles.get(group, "other"), group, key) for group, key in groups.items()]
    known = [group for group, key in groups.items() if _number(summary[key]["value"]) == _number(summary[key]["value"])]
    if known:  # of a point of the path, which has no numbers of its own for it
        worst = min(known, key=lambda group: summary[groups[group]]["value"])
        places.append(("worst", worst, groups[worst]))
    for role, group, key in [*places, ("overall", "", "overall")]:
        entry, suffix = summary[key], f"/{group}" if group else ""
        if role == "worst":
            before = min(_number(reference[other]["value"]) for other in groups.values() if reference[other]["value"] is not None)
            difference = {"value": entry["value"] - before}
        else:
            before = _number(reference[key]["value"])
            difference = differences.get(group, {"value": _number(entry["value"]) - before})
        numbers = {"accuracy": entry["value"], "low": entry["low"], "high": entry["high"]}
        numbers |= {name: summary.get(f"num_{name}{suffix}") for name in ("users", "pairs")}
        numbers |= {"difference": difference["value"], **{f"difference_{end}": difference.get(end) for end in ("low", "high")}}
        yield {"role": role, "group": group, "verdict": said, **{name: _number(value) for name, value in numbers.items()}}


def _number(value: float | str | None) -> float:
    """What is not known is `None` in JSON."""
    return math.nan if value is None else float(value)


def complete(row: Row) -> Row:
    """A row with all [`COLUMNS`]: of what is not given, texts are empty and numbers NaN."""
    return {name: row.get(name, "" if name in _TEXTS else math.nan) for name in COLUMNS}


def key_of(row: Row) -> tuple[Any, ...]:
    """The cell that a row is of."""
    return tuple(row[name] for name in KEY)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a CSV file; a number that is not known is empty."""
    write_text(path, pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False, lineterminator="\n"))


def read_rows(path: Path) -> list[Row]:
    """The rows that [`write_rows`] wrote, to the last digit.

    Raises:
        DataError: If the file holds something else.
    """
    kinds = {name: str if name in _TEXTS else _KEY.get(name, lambda text: _number(text or None)) for name in COLUMNS}
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if differ := set(COLUMNS) ^ set(table.columns):
            raise ValueError(f"its columns differ from those of this version in {', '.join(sorted(differ))}")
        return [{name: kinds[name](text) for name, text in row.items()} for row in table.to_dict("records")]
    except ValueError as error:
        raise DataError(f"{path} is no table of the cell of a study: {error}.") from error
