"""Which options each method gets: the same trials for all, and the best of them on validation users. Test users decide nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import DatasetDict

from trl_pafo.pipeline.run import Run
from trl_pafo.study.config import Trial, name_of
from trl_pafo.study.rows import Row

Values = Mapping[str, Any]


class TrialRun(Run):
    """A run that is judged on its validation pairs, and reads no test pair. It leaves no report."""

    def __call__(self) -> dict[str, Any]:
        with self.folder.locked():
            return self._do_stages()

    def _load(self) -> DatasetDict:
        data = super()._load()
        return DatasetDict({**data, "test": data["validation"]})

    def _check(self, data: DatasetDict) -> None:
        super()._check(super()._load())  # with the lengths that were counted


def balanced_accuracy(rows: Sequence[Row]) -> float:
    """The mean over groups, each counted once, of the accuracies of a method in a run."""
    of_groups = [
        row["accuracy"] for row in rows if row["role"] not in ("worst", "overall") and row["accuracy"] == row["accuracy"]
    ]
    return sum(of_groups) / len(of_groups)


def choose(trials: Mapping[Trial, Sequence[Row]], methods: Sequence[str]) -> dict[str, Values]:
    """The values of the options that each method gets: those with the highest group-balanced accuracy, the mean over trials; of equals
    the first. A method that failed in a trial with some values is not given these, and none if it failed with all.

    `trials` has the rows of each trial of one data set and setting, on validation users.
    """
    chosen = {}
    for method in methods:
        found: dict[str, list[float]] = {}
        failed, values = set(), {name_of(trial.values): trial.values for trial in trials}
        for trial, rows in trials.items():
            own = [row for row in rows if row["method"] == method]
            if not own or any(row["error"] for row in own):
                failed.add(name_of(trial.values))
            else:
                found.setdefault(name_of(trial.values), []).append(balanced_accuracy(own))
        means = {name: sum(found[name]) / len(found[name]) for name in values if name in found and name not in failed}
        if means:
            chosen[method] = values[max(means, key=lambda name: means[name])]
    return chosen
