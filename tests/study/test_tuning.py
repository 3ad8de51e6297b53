"""Tuning: the same trials for every method, chosen on validation users."""

import json

import numpy as np
import pytest
from helpers import small_runs
from helpers.studies import make_config, pretend
from pyarrow.parquet import read_table

from trl_pafo.baselines import UserModel
from trl_pafo.errors import ConfigError, StudyError
from trl_pafo.metrics import compare
from trl_pafo.study.config import Trial
from trl_pafo.study.doing import parts_of
from trl_pafo.study.rows import ROWS, complete, read_rows, rows_of_run
from trl_pafo.study.study import Study
from trl_pafo.study.tuning import TrialRun, choose

RATES = [1e-4, 2e-4, 3e-4]
TUNING = {"learning_rate": RATES, "population_seeds": [10, 11]}


def make_tuned(folder, **given):
    one = {"tuning": TUNING, "data": {"a": {"source": "styles"}}, "seeds": [1, 2], "population_seeds": [0]}
    return make_config(folder, **one | given)


@pytest.fixture
def config(tmp_path):
    return lambda folder="study", **given: make_tuned(tmp_path / folder, **given)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A tuned study, its rows, and the options of each run."""
    done = []
    study = Study(make_tuned(tmp_path_factory.mktemp("tuned") / "study"), attempt=pretend(done=done))
    return study, study(), done


def correct(folder, method):
    """Of each pair 1, 0, or one half for a tie, and whose it is."""
    rows = [json.loads(line) for line in (folder / f"results/{method}.jsonl").read_text().splitlines()]
    return (
        (np.sign([row["reward_chosen"] - row["reward_rejected"] for row in rows]) + 1) / 2,
        [r["user"] for r in rows],
        [r["group"] for r in rows],
    )


def test_every_method_has_the_same_trials_on_populations_of_their_own(tuned):
    _, _, done = tuned
    trials = [options for options in done if "/tuning/" in options["output_dir"]]
    assert [(o["learning_rate"], o["population_seed"], o["seed"]) for o in trials] == [
        (rate, population, 1) for population in (10, 11) for rate in RATES
    ]
    assert {tuple(options["methods"]) for options in trials} == {("personalized_bt", "bradley_terry", "pafo", "group_routed")}
    assert {options["population_seed"] for options in done if options not in trials} == {0}


def test_each_method_gets_the_values_that_are_best_in_the_trials_and_is_compared_across_runs(tuned):
    """Against a loop over what trials and runs left."""
    study, rows, _ = tuned
    best = {}
    for method in ("personalized_bt", "bradley_terry", "pafo", "group_routed"):
        of_rates = []
        for rate in RATES:
            found = []
            for population in (10, 11):
                right, _, group = correct(
                    study.folder / f"tuning/a/default/learning_rate={rate}/population{population}-seed1/run", method
                )
                of_groups = [right[np.array(group) == g].mean() for g in ("majority", "minority")]
                found.append(np.mean(of_groups))
            of_rates.append(np.mean(found))
        best[method] = RATES[int(np.argmax(of_rates))]
    assert len(set(best.values())) > 1  # else nothing is compared across runs
    for cell in study.cells:
        folder = study.folder / cell.folder
        own = [row for row in rows if row["seed"] == cell.seed]
        reference, user, group = correct(folder / f"run-learning_rate={best['personalized_bt']}", "personalized_bt")
        for method, rate in best.items():
            [overall] = [row for row in own if (row["method"], row["role"]) == (method, "overall")]
            assert (overall["tuned"], overall["trials"]) == (f"learning_rate={rate}", 3)
            right, *_ = correct(folder / f"run-learning_rate={rate}", method)
            assert overall["accuracy"] == pytest.approx(right.mean())
            assert overall["difference"] == pytest.approx(right.mean() - reference.mean())
            if method != "personalized_bt":
                expected = compare(right, reference, user, group, num_resamples=2000, seed=cell.seed)
                for role, difference in expected.differences.items():
                    [row] = [row for row in own if (row["method"], row["role"]) == (method, role)]
                    found = {"value": row["difference"], "low": row["difference_low"], "high": row["difference_high"]}
                    if rate != best["personalized_bt"]:  # else the run has said it, with resamples of its own
                        assert row["verdict"] == expected.verdict
                        assert found == pytest.approx(difference)


def test_a_study_that_was_tuned_is_not_tuned_again(tuned):
    study, *_ = tuned
    done = []
    Study(make_tuned(study.folder), attempt=pretend(done=done))()
    assert done == []
    with pytest.raises(ConfigError, match="was done with other options"):
        Study(make_tuned(study.folder, tuning={"learning_rate": [1e-4]}), attempt=pretend())


def test_parts_share_the_trials_and_wait_for_each_other(config):
    few = {"tuning": TUNING | {"learning_rate": RATES[:2]}, "seeds": [1, 2, 3]}
    for number, missing in ((1, 3), (2, 2)):
        with pytest.raises(StudyError, match=f"{missing} trials of tuning are those of other parts"):
            Study(config(**few), f"{number}/3", attempt=pretend())()
    for number in (3, 1, 2):
        Study(config(**few), f"{number}/3", attempt=pretend())()
    Study(config("whole", **few), attempt=pretend())()
    study, whole = (Study(config(name, **few)).folder / "study.csv" for name in ("study", "whole"))
    assert study.read_text() == whole.read_text()


def trial(rate, population, **accuracies):
    """A trial, and the rows of its methods: accuracies of the groups, or an error."""
    rows = []
    for method, found in accuracies.items():
        if isinstance(found, str):
            rows.append({"method": method, "error": found})
        else:
            rows += [
                {"method": method, "role": role, "accuracy": a} for role, a in zip(("majority", "minority"), found, strict=True)
            ]
            rows += [{"method": method, "role": role, "accuracy": 0.0} for role in ("worst", "overall")]
    return Trial("a", "default", population, 1, {}, {}, {"rate": rate}), [complete(row) for row in rows]


def test_groups_count_the_same_equals_go_to_the_first_and_failures_to_none():
    trials = dict(
        [
            trial(1, 0, pafo=(0.9, 0.5), bradley_terry=(0.5, 0.5), maxmin="no memory", group_routed=(0.9, 0.9)),
            trial(1, 1, pafo=(0.9, 0.5), bradley_terry=(0.5, 0.5), maxmin="no memory", group_routed="no memory"),
            trial(2, 0, pafo=(0.7, 0.9), bradley_terry=(0.6, 0.4), maxmin="no memory", group_routed=(0.1, 0.1)),
            trial(2, 1, pafo=(0.7, 0.6), bradley_terry=(0.6, 0.4), maxmin="no memory", group_routed=(0.1, 0.1)),
        ]
    )
    chosen = choose(trials, ["pafo", "bradley_terry", "maxmin", "group_routed"])
    assert chosen == {"pafo": {"rate": 2}, "bradley_terry": {"rate": 1}, "group_routed": {"rate": 2}}


def test_a_method_that_fails_in_all_trials_is_told_and_the_others_are_done(config):
    fails = lambda options: "no memory" if "pafo" in options["methods"] and "/tuning/" in options["output_dir"] else None  # noqa: E731
    study = Study(config(seeds=[1], tuning={"learning_rate": RATES[:1]}), attempt=pretend(fails))
    with pytest.raises(StudyError, match="1 of 1 cells"):
        study()
    rows = read_rows(study.folder / study.cells[0].folder / ROWS)
    assert {row["method"]: row["error"] for row in rows if row["error"]} == {"pafo": "it failed in all trials"}
    assert {row["method"] for row in rows} >= {"personalized_bt", "bradley_terry", "group_routed"}


def test_methods_of_the_same_values_share_a_run_and_only_those_that_read_the_path_train_it():
    slow, fast = {"learning_rate": 1}, {"learning_rate": 2}
    chosen = {"personalized_bt": slow, "bradley_terry": fast, "reweighted_bt": fast, "pafo": slow}
    parts = parts_of(["bradley_terry", "personalized_bt", "reweighted_bt", "pafo"], chosen)
    assert [(part.folder, part.methods, part.options) for part in parts] == [
        ("run-learning_rate=1", ["personalized_bt", "pafo"], slow),
        ("run-learning_rate=2", ["bradley_terry", "reweighted_bt"], fast | {"reference_steps": [1]}),
    ]
    [part] = parts_of(["personalized_bt", "pafo"], {})
    assert (part.folder, part.options) == ("run", {})


@pytest.mark.parametrize(
    ("tuning", "match"),
    [
        ({"learning_rate": 1e-4}, "learning_rate must be a list of different values"),
        ({"learning_rate": [1e-4, 1e-4]}, "learning_rate must be a list of different values"),
        ({"model_name_or_path": ["a/b", "a_b"]}, "model_name_or_path must be a list of different values"),
        ({"learning_rte": [1]}, "learning_rte=1: unknown option 'learning_rte'"),
        ({"alpha": [0.5, 2]}, r"alpha=2: `alpha` must be in \[0, 1\]"),
        ({"num_history": [1, 2]}, "num_history: all methods of a cell see the same pairs"),
        ({"train_users": [1, 2]}, "train_users: all methods of a cell see the same pairs"),
        ({"seed": [1]}, "tuning: seed: list the training seeds"),
        ({"population_seeds": [1]}, "must name an option"),
    ],
)
def test_tuning_that_cannot_be_is_refused(config, tuning, match):
    with pytest.raises(ConfigError, match=match):
        config(tuning=tuning)


def test_a_trial_is_judged_on_its_validation_pairs(encoder, training, tmp_path, monkeypatch):
    """Those of a user model read features, which are made of the pairs that are judged."""
    monkeypatch.setattr(small_runs, "Run", TrialRun)
    monkeypatch.setattr(UserModel, "num_steps", 5)
    options = {"methods": ["bradley_terry", "lore"], "reference": "bradley_terry", "validation_share": 0.3, "validation_users": 8}
    results = small_runs.small_run(tmp_path / "run", training, encoder, **options)()
    users = {name: read_table(tmp_path / f"run/data/{name}.parquet")["user"].to_pylist() for name in ("validation", "test")}
    rows = {row["method"]: row for row in rows_of_run(tmp_path / "run")}
    for method in options["methods"]:
        _, judged, _ = correct(tmp_path / "run", method)
        assert judged == users["validation"]
        assert not set(judged) & set(users["test"])
        assert results["methods"][method]["num_users"] == len(set(judged))
    steps = {method: (row["steps"], row["steps_in_all"]) for method, row in rows.items()}
    assert steps == {"bradley_terry": (2, 2), "lore": (5, 2 * 5 + 2)}  # on these pairs, with two fits
    assert "tuned" not in rows["bradley_terry"]
    assert rows["lore"]["tuned"] == f"features={results['features']['lore']['chosen']}"
