"""What a finished run left on disk."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyarrow.parquet import read_table

from trl_pafo.data.messages import content_text
from trl_pafo.data.people import GROUPS, RATES, read_people
from trl_pafo.data.sources.splits import MINORITY_QUANTILE
from trl_pafo.errors import RunFolderError
from trl_pafo.evaluation.likes import Pairs, find_likes
from trl_pafo.evaluation.methods import RIVALS, STUDENTS, TITLES
from trl_pafo.evaluation.reference_path import CHOSEN, multiple_of, stage_of
from trl_pafo.metrics import pair_correctness
from trl_pafo.metrics.accuracy import FloatArray
from trl_pafo.report.plain_words import student_of
from trl_pafo.report.tables import group_names
from trl_pafo.storage.run_folder import MANIFEST

RUN_CONFIG = "run.yaml"
"""File in the folder of a run: its options, as `--config` takes them."""
# The number of a method's color, the same in every run.
_IN_COLOR = ("bradley_terry", "personalized_bt", "pafo", "group_routed", "reweighted_bt", "distilled_ensemble", "worst_group_bt")
_READ: dict[str, Any] = {"chosen": content_text, "rejected": content_text, "user": str, "group": str}
_SERIES = {method: i for i, method in enumerate((*_IN_COLOR, "teacher_mixture", *RIVALS))}


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
    A finished run.

    Attributes:
        folder (`Path`), name (`str`):
            Where it is, and the folder's name.
        results, stages, data (`dict`):
            `results.json`, the stages of the manifest, and `summary.json` of the prepared data.
        config (`str`):
            `run.yaml`, with which the same run is made again.
        rewards (`dict[str, Rewards]`):
            By method, all over the same pairs.
        pairs (`list[dict]`):
            The test pairs, in the order of the rewards.
        people (`pandas.DataFrame`, *optional*):
            A row a user, `groups.csv`; `None` where the data were prepared without it.
    """

    folder: Path
    name: str
    results: dict[str, Any]
    stages: dict[str, Any]
    data: dict[str, Any]
    config: str
    rewards: dict[str, Rewards]
    pairs: list[dict[str, Any]]
    people: pd.DataFrame | None = None

    @property
    def methods(self) -> dict[str, Any]:
        """The summaries by method, in the order in which they were asked for."""
        return self.results["methods"]

    @property
    def reference(self) -> str:
        """The method that the others are compared with."""
        return self.results["reference"]

    @property
    def student(self) -> str | None:
        """The method that the report is about: PAFO's, or what there is beside the reference."""
        return student_of(self.results)

    @property
    def compared(self) -> list[str]:
        """Reference and student, as far as there is one."""
        return [method for method in (self.reference, self.student) if method is not None]

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

    @cached_property
    def likes(self) -> dict[str, Any] | None:
        """What [`~trl_pafo.evaluation.likes.find_likes`] finds in the texts; `None` where the groups may have been cut by the choices that are
        to be looked at."""
        if self.data["groups"] in RATES:
            return None
        train = read_table(self.folder / "data/train.parquet", columns=[*_READ]).to_pylist()
        known, judged = (
            Pairs(*([read(row[name]) for row in rows] for name, read in _READ.items())) for rows in (train, self.pairs)
        )
        return find_likes(known, judged)

    @property
    def has_given_teachers(self) -> bool:
        """Whether the teachers were given, and not trained by the run."""
        return bool(set(STUDENTS) & set(self.stages)) and not any(name.startswith("teacher") for name in self.stages)

    def title(self, method: str | None) -> str:
        """A method's name for people."""
        return TITLES.get(str(method), str(method))

    def group_title(self, group: str) -> str:
        """A group's name, and whether it is the majority or the minority where the name does not say so."""
        for role in ("majority", "minority"):
            if self.has_minority and self.results[role] == group and group != role:
                return f"{group} ({role})"
        return group

    def stage_of(self, method: str) -> dict[str, Any]:
        """What the manifest says of the training that made a method's model; empty where that is not known."""
        path = self.results.get("path")
        stage = stage_of(multiple_of(method, path)) if path and method in CHOSEN else method
        return self.stages.get(stage, {})

    def training_of(self, method: str) -> dict[str, Any]:
        """The options of the training that made a method's model, as far as they are known."""
        return self.stage_of(method).get("inputs", {})

    def group_definition(self, numbers: bool = True) -> str:
        """How the groups were made; see [`group_definition`]."""
        return group_definition(self.results["data"], self.data["groups"], numbers)


def group_definition(data: Mapping[str, Any], groups_from: str, numbers: bool = True) -> str:
    """How the groups were made, from the options of the data.

    Args:
        data (`Mapping`):
            The options of the data.
        groups_from (`str`):
            `groups` of the summary of prepared data; of an audit that finds groups, `"all pairs"`.
        numbers (`bool`, *optional*, defaults to `True`):
            Give shares and thresholds, too. With the size of one group they tell that of the other.
    """
    source = data["source"]
    text = f"The data are those of the source {source}."
    if data.get("infer_groups"):
        test = "are named by the data" if groups_from == "training pairs" else "follow from their past pairs"
        where = "the pairs" if groups_from == "all pairs" else "the training pairs"
        of_test = "" if groups_from == "all pairs" else f" Those of test users {test}."
        return f"{text} The groups were found in {where}; nobody said who belongs to which.{of_test}"
    if data.get("group_by"):
        held = f"; the minority: {', '.join(data['minority'])}" if data.get("minority") else ""
        return f"{text} The answers of users to the field {data['group_by']} of the survey make the groups{held}."
    if source in ("styles", "dsp") or (source == "personal_llm" and data.get("majority") and data.get("minority")):
        sides = "".join(f"; the {side} {', '.join(data[side])}" for side in ("majority", "minority") if data.get(side))
        share = f" The share of the minority was set to {data.get('minority_ratio')}." if numbers else ""
        return f"{text} Its users are simulated: each holds one type, which decides what it chooses{sides}.{share}"
    if source == "polis":
        return (
            f"{text} It names no groups: they are clusters of people who vote alike; nobody said which group a user belongs to."
        )
    if groups_from == "data":
        return f"{text} The groups are those that the data name."
    threshold, quantile = data.get("minority_threshold"), data.get("minority_quantile")
    rate = RATES[groups_from]
    who = f"those with the lowest {rate}"
    if threshold is not None:
        who = f"those whose {rate} is below {threshold if numbers else 'a threshold'}"
    elif numbers:
        who = f"the {MINORITY_QUANTILE if quantile is None else quantile:.0%} of training users with the lowest {rate}"
    noise = " They may be annotators who err, not people of another taste." if groups_from == "agreement" else ""
    return f"{text} It names no groups: they were inferred. The minority are {who}; nobody said which group a user belongs to.{noise}"


def series_of(method: str) -> int:
    """The number of a method's color."""
    return _SERIES.get(method, len(_SERIES))


def read_record(folder: str | Path) -> Record:
    """Read the folder of a finished run.

    Raises:
        RunFolderError: If it is none, or a file is missing or cannot be read.
    """
    folder = Path(folder)
    paths = [
        folder / name
        for name in ("results/results.json", MANIFEST, "data/summary.json", RUN_CONFIG, "data/test.parquet", "data/train.parquet")
    ]
    if missing := [path for path in paths if not path.is_file()]:
        raise RunFolderError(
            f"{folder} is not a finished run of trl-pafo: {missing[0]} is missing. Give the folder of a `trl-pafo run`, and finish one that was "
            "interrupted with its own command; `evaluate` and `audit` write none."
        )
    results, manifest, summary = map(_read_json, paths[:3])
    methods = results.get("methods") if isinstance(results, dict) else None
    if not methods or not all({"overall", "num_pairs"} <= set(summary) for summary in methods.values()):
        raise RunFolderError(f"{paths[0]} is not what this version of trl-pafo writes. Evaluate again.")
    rewards = {method: _read_rewards(folder / f"results/{method}.jsonl") for method in methods}
    pairs = read_table(paths[4]).to_pylist()
    for method, scored in rewards.items():
        if scored.user != [str(row["user"]) for row in pairs]:
            raise RunFolderError(
                f"The rewards of {method} in {folder / 'results'} are those of other pairs than data/test.parquet. Evaluate again."
            )
    config = paths[3].read_text(encoding="utf-8")
    people = read_people(folder / "data") if (folder / "data" / GROUPS).is_file() else None
    return Record(folder, folder.resolve().name, results, manifest["stages"], summary, config, rewards, pairs, people)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{path} cannot be read ({error}). Make it again.") from error


def _read_rewards(path: Path) -> Rewards:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        margins = np.array([line["reward_chosen"] - line["reward_rejected"] for line in lines], dtype=np.float64)
        return Rewards([str(line["user"]) for line in lines], [str(line["group"]) for line in lines], margins)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path} is not what an evaluation writes ({error!r}). Evaluate again.") from error
