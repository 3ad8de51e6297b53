"""What a run or an evaluation left on disk, as far as it is there, and why the rest is missing."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow.parquet import read_table

from trl_pafo.data.sources.splits import MINORITY_QUANTILE
from trl_pafo.errors import RunFolderError
from trl_pafo.evaluation.methods import OF_TEACHERS, STUDENTS, TITLES
from trl_pafo.evaluation.reference_path import CHOSEN, multiple_of, stage_of
from trl_pafo.metrics import pair_correctness
from trl_pafo.metrics.accuracy import FloatArray
from trl_pafo.report.tables import group_names
from trl_pafo.storage.run_folder import MANIFEST

ALL_PAIRS = "all pairs"
"""Stands where a group would, of pairs whose groups are not known."""
RUN_CONFIG = "run.yaml"
"""File in the folder of a run: its options, as `--config` takes them."""
_EVALUATED = {"model": "the model", "reference": "the reference model"}  # methods of `trl-pafo evaluate`
# The number of a method's color, the same in every run; then those of `trl-pafo evaluate`.
_IN_COLOR = ("bradley_terry", "personalized_bt", "pafo", "group_routed", "reweighted_bt", "distilled_ensemble", "worst_group_bt")
_SERIES = {**{method: i for i, method in enumerate((*_IN_COLOR, "teacher_mixture"))}, "reference": 1, "model": 2}


@dataclass(frozen=True)
class Rewards:
    """Rewards of the test pairs under one method; `user` and `group` hold a name a pair, `margins` has shape `(num_pairs,)`."""

    user: list[str]
    group: list[str]
    margins: FloatArray

    @property
    def correct(self) -> FloatArray:
        """1, 0, or 0.5 for a tie, of shape `(num_pairs,)`."""
        return pair_correctness(self.margins)


@dataclass
class Record:
    """
    One run, or one evaluation of a model.

    Attributes:
        folder (`Path`), name (`str`):
            Where it is, and the folder's name.
        results, stages, data (`dict`):
            `results.json`, the stages of the manifest, and `summary.json` of the prepared data; empty where they are missing.
        config (`str`, *optional*):
            `run.yaml`, with which the same run is made again.
        rewards (`dict[str, Rewards]`):
            By method, all over the same pairs.
        pairs (`list[dict]`, *optional*):
            The test pairs, in the order of the rewards.
        missing (`dict[str, str]`):
            Name of a part that is not there, and the reason.
    """

    folder: Path
    name: str
    results: dict[str, Any]
    stages: dict[str, Any] = field(default_factory=dict)
    config: str | None = None
    rewards: dict[str, Rewards] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    pairs: list[dict[str, Any]] | None = None
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def methods(self) -> dict[str, Any]:
        """The summaries by method, in the order in which they were asked for."""
        return self.results["methods"]

    @property
    def reference(self) -> str | None:
        """The method that the others are compared with."""
        named = self.results.get("reference", "reference")
        return named if named in self.methods else None

    @property
    def student(self) -> str | None:
        """The method that the report is about: PAFO's, the model of an evaluation, or what there is beside the reference."""
        others = [m for m in (*STUDENTS, *self.methods) if m in self.methods and m not in (self.reference, *OF_TEACHERS)]
        return others[0] if others else None

    @property
    def compared(self) -> list[str]:
        """Reference and student, as far as their rewards are there."""
        return [method for method in (self.reference, self.student) if method is not None and method in self.rewards]

    @property
    def groups(self) -> list[str]:
        """The groups: the majority first, the minority last, others by their number of test users between."""
        ends = {self.results.get("majority"): -1, self.results.get("minority"): 1}
        return sorted(group_names(next(iter(self.methods.values()))), key=lambda name: ends.get(name, 0))

    @property
    def has_minority(self) -> bool:
        """Whether there are two groups to set against each other."""
        majority, minority = self.results.get("majority"), self.results.get("minority")
        return majority != minority and {majority, minority} <= set(self.groups)

    @property
    def has_given_teachers(self) -> bool:
        """Whether the teachers were given, and not trained by the run."""
        return bool(set(STUDENTS) & set(self.stages)) and not any(name.startswith("teacher:") for name in self.stages)

    def title(self, method: str | None) -> str:
        """A method's name for people."""
        return (TITLES | _EVALUATED).get(str(method), str(method))

    def group_title(self, group: str) -> str:
        """A group's name, and whether it is the majority or the minority where the name does not say so."""
        for role in ("majority", "minority"):
            if self.has_minority and self.results[role] == group and group != role:
                return f"{group} ({role})"
        return group

    def series(self, method: str) -> int:
        """The number of a method's color."""
        return series_of(method)

    def training_of(self, method: str) -> dict[str, Any]:
        """The options of the training that made a method's model, as far as they are known."""
        path = self.results.get("path")
        stage = stage_of(multiple_of(method, path)) if path and method in CHOSEN else method
        return self.stages.get(stage, {}).get("inputs", {})

    def group_definition(self, numbers: bool = True) -> str:
        """How the groups were made, from the options of the data.

        Args:
            numbers (`bool`, *optional*, defaults to `True`):
                Give shares and thresholds, too. With the size of one group they tell that of the other.
        """
        data = self.results.get("data")
        if not self.groups:
            return "The data name no groups."
        if not data:
            return "The groups are those of the column `group` of the data; how they were made is for its author to say."
        source, cut = data.get("source", "unknown"), self.data.get("groups")
        text = f"The data are those of the source {source}."
        if data.get("infer_groups"):
            test = "are named by the data" if cut == "training pairs" else "follow from their past pairs"
            return f"{text} The groups were found in the training pairs; nobody said who belongs to which. Those of test users {test}."
        if data.get("group_by"):
            held = f"; the minority: {', '.join(data['minority'])}" if data.get("minority") else ""
            return f"{text} The answers of users to the field {data['group_by']} of the survey make the groups{held}."
        if source in ("styles", "dsp") or (source == "personal_llm" and data.get("majority") and data.get("minority")):
            sides = "".join(f"; the {side} {', '.join(data[side])}" for side in ("majority", "minority") if data.get(side))
            share = f" The share of the minority was set to {data.get('minority_ratio')}." if numbers else ""
            return f"{text} Its users are simulated: each holds one type, which decides what it chooses{sides}.{share}"
        if source == "polis":
            return f"{text} It names no groups: they are clusters of people who vote alike; nobody said which group a user belongs to."
        if cut == "data":
            return f"{text} The groups are those that the data name."
        if cut is None:
            return f"{text} The groups are those that the data name; where they name none, they follow from support rates."
        threshold, quantile = data.get("minority_threshold"), data.get("minority_quantile")
        who = "those whose rate is below a threshold" if threshold is not None else "those with the lowest rates"
        if numbers and threshold is not None:
            who = f"those whose rate is below {threshold}"
        elif numbers:
            who = f"the {MINORITY_QUANTILE if quantile is None else quantile:.0%} of training users with the lowest rates"
        return (
            f"{text} It names no groups: they were inferred from the users' preference support rates. The minority are {who}; "
            "nobody said which group a user belongs to."
        )


def series_of(method: str) -> int:
    """The number of a method's color."""
    return _SERIES.get(method, len(_SERIES))


def read_record(folder: str | Path) -> Record:
    """Read the folder of a run, or of `trl-pafo evaluate --output_dir`.

    Raises:
        RunFolderError: If it holds no results, or results that cannot be read.
    """
    folder = Path(folder)
    where = next((at for at in (folder / "results", folder) if (at / "results.json").is_file()), None)
    if where is None:
        raise RunFolderError(
            f"{folder} holds no results.json: it is neither a finished run of trl-pafo nor an --output_dir of `trl-pafo evaluate`. "
            "Finish the run with its own command, or name another folder."
        )
    results = _read_json(where / "results.json")
    methods = results.get("methods") if isinstance(results, dict) else None
    if not methods or not all({"overall", "num_pairs"} <= set(summary) for summary in methods.values()):
        raise RunFolderError(f"{where / 'results.json'} is not what this version of trl-pafo writes. Evaluate again.")
    record = Record(folder, folder.resolve().name, results)
    files = {"manifest": MANIFEST, "config": RUN_CONFIG, "summary": "data/summary.json"}
    for name, file in files.items():
        if not (folder / file).is_file():
            record.missing[name] = f"there is no {file}"
    if "manifest" not in record.missing:
        record.stages = _read_json(folder / MANIFEST).get("stages", {})
    if "config" not in record.missing:
        record.config = (folder / RUN_CONFIG).read_text(encoding="utf-8")
    if "summary" not in record.missing:
        record.data = _read_json(folder / "data/summary.json")
    _read_rewards(record, where)
    _read_pairs(record)
    return record


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{path} cannot be read ({error}). Make it again.") from error


def _read_rewards(record: Record, where: Path) -> None:
    for method in record.methods:
        path = where / f"{method}.jsonl"
        if not path.is_file():
            record.missing[f"rewards/{method}"] = f"there is no {path.name}"
            continue
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
            margins = np.array([line["reward_chosen"] - line["reward_rejected"] for line in lines], dtype=np.float64)
            # Without users each pair is another person's, as everywhere.
            user = [f"pair {row}" if line["user"] is None else str(line["user"]) for row, line in enumerate(lines)]
            group = [ALL_PAIRS if line["group"] is None else str(line["group"]) for line in lines]
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"{path} is not what an evaluation writes ({error!r}). Evaluate again.") from error
        found = Rewards(user, group, margins)
        first = next(iter(record.rewards.values()), found)
        if (found.user, found.group) == (first.user, first.group):
            record.rewards[method] = found
        else:
            record.missing[f"rewards/{method}"] = f"{path.name} is over other pairs than the other methods' files"


def _read_pairs(record: Record) -> None:
    path = record.folder / "data/test.parquet"
    if not path.is_file():
        record.missing["pairs"] = "there is no data/test.parquet, so the texts and support rates of the test pairs are not known"
        return
    pairs = read_table(path).to_pylist()
    scored = next(iter(record.rewards.values()), None)
    if scored is None or [str(row["user"]) for row in pairs] != scored.user:
        record.missing["pairs"] = "data/test.parquet does not hold the pairs that were scored"
        return
    record.pairs = pairs
