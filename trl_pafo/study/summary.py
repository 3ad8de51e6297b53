"""Means over the runs of a study, with intervals over runs. (Not from the paper.)

A run is a cell: one population and one training seed. Intervals are Student's t over the runs, 95 %, as if runs were independent; those of one
population share their test users, so that of few populations they say more of seeds than of people.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from trl_pafo.study.config import REFERENCE
from trl_pafo.study.rows import ROLES, Row, key_of

ROUTED = "group_routed"
"""The method whose accuracies are the end of the way: teachers that are told the group."""
CONFIDENCE = 0.95

Entry = dict[str, float]


def mean_with_interval(values: Sequence[float]) -> Entry:
    """`value`, the mean of what is known, and `low` and `high` of its interval over runs: NaN with fewer than two."""
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return dict.fromkeys(("value", "low", "high"), math.nan)
    mean = float(known.mean())
    if len(known) < 2:
        return {"value": mean, "low": math.nan, "high": math.nan}
    half = float(student_t.ppf((1 + CONFIDENCE) / 2, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known)))
    return {"value": mean, "low": mean - half, "high": mean + half}


@dataclass(frozen=True)
class Summary:
    """A method, or a point of the reference's path, over the runs of one data set and setting.

    `accuracy` and `difference`, to the reference of the same run, are means by role; the difference of `worst` compares the worst groups,
    which need not be the same. `way` is the share of the way from the reference to the group-routed teachers: the mean difference, added up
    over majority and minority, over that of the teachers in the same runs; NaN without them, or where they gain nothing. `failed` counts
    the runs beside the `runs` behind the numbers, `verdicts` runs by verdict; steps and seconds are means over runs.
    """

    data: str
    setting: str
    method: str
    accuracy: dict[str, Entry]
    difference: dict[str, Entry]
    way: float
    runs: int
    failed: int
    verdicts: dict[str, int]
    steps: float
    steps_in_all: float
    seconds: float
    trials: float

    @property
    def is_point(self) -> bool:
        """Whether it is a point of the reference's path."""
        return self.method.startswith(f"{REFERENCE}@")


def blocks_of(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """The rows of each data set and setting, in the order in which these come; within, by population and seed."""
    blocks: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        blocks.setdefault((row["data"], row["setting"]), []).append(row)
    # So that sums are the same in whichever order cells came.
    return {name: sorted(block, key=lambda row: (row["population_seed"], row["seed"])) for name, block in blocks.items()}


def summarize(rows: Sequence[Row]) -> dict[tuple[str, str], list[Summary]]:
    """Summaries of the rows of cells: by data and setting, methods in the order of the rows, then the points of the path."""
    found = {}
    for (data, setting), block in blocks_of(rows).items():
        methods = list(dict.fromkeys(row["method"] for row in block))
        routed = _differences(row for row in block if row["method"] == ROUTED)
        summaries = [_summary(data, setting, m, [row for row in block if row["method"] == m], routed) for m in methods]
        found[data, setting] = sorted(summaries, key=lambda summary: summary.is_point)
    return found


def by_method(summaries: Iterable[Sequence[Summary]]) -> dict[tuple[str, str], list[Summary]]:
    """The summaries of [`summarize`] the other way around: by data and method, the settings in which it was trained."""
    found: dict[tuple[str, str], list[Summary]] = {}
    for summary in chain(*summaries):
        if not summary.is_point:
            found.setdefault((summary.data, summary.method), []).append(summary)
    return found


def _summary(data: str, setting: str, method: str, rows: list[Row], routed: Mapping[Any, float]) -> Summary:
    done = [row for row in rows if not row["error"]]
    by_role = {role: [row for row in done if row["role"] == role] for role in ROLES}
    overall = by_role["overall"]
    return Summary(
        data,
        setting,
        method,
        {role: mean_with_interval([row["accuracy"] for row in of_role]) for role, of_role in by_role.items()},
        {role: mean_with_interval([row["difference"] for row in of_role]) for role, of_role in by_role.items()},
        _way(_differences(done), routed),
        len(overall),
        len(rows) - len(done),
        dict(Counter(row["verdict"] for row in overall if row["verdict"])),
        *(mean_with_interval([row[name] for row in overall])["value"] for name in ("steps", "steps_in_all", "seconds", "trials")),
    )


def _differences(rows: Iterable[Row]) -> dict[Any, float]:
    """Differences of majority and minority by cell and role."""
    return {(*key_of(row), row["role"]): row["difference"] for row in rows if row["role"] in ROLES[:2]}


def _way(differences: Mapping[Any, float], routed: Mapping[Any, float]) -> float:
    both = [place for place in differences if place in routed]
    whole = sum(routed[place] for place in both)
    return sum(differences[place] for place in both) / whole if whole > 0 else math.nan
